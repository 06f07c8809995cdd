"""`doctor`: versions against the stated ranges, and names of other packages."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pitune.envs.rendering import opengl, vulkan
from pitune.experiments.command_line import doctor
from pitune.experiments.command_line.doctor import Finding
from pitune.extras import install_command


def test_every_requirement_of_setup_cfg_is_checked() -> None:
    core, extras = doctor.requirements()
    assert {line.split(">=")[0] for line in core} >= {"torch", "tensordict", "torchrl", "tyro"}
    assert {name: bool(lines) for name, lines in extras.items()} == dict.fromkeys(
        doctor.EXTRAS, True
    )


@pytest.mark.parametrize(
    ("requirement", "ok", "text"),
    [
        ("torch>=2", True, "(>=2)"),
        ("torch>=999", False, 'does not fit >=999; pip install "torch>=999"'),
        ("no-such-package>=1", False, 'not installed; pip install "no-such-package>=1"'),
        ('torch>=2; platform_system == "Moon"', None, "not for this platform"),
    ],
)
def test_a_version_is_compared_with_its_range(requirement: str, ok: bool, text: str) -> None:
    found = doctor.package(requirement)
    assert found.ok is ok
    assert text in found.text


def test_a_missing_extra_is_a_note_with_the_line_that_brings_it() -> None:
    found = doctor.extra("vlm", ["torch>=2", "no-such-package>=1"])
    assert found.ok is None
    assert found.text == f"without no-such-package; {install_command('vlm')} brings it"


def test_a_package_that_owns_our_name_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(found.ok for found in doctor.names())
    owners = {"pitune": ["pitune", "stranger"]}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: owners)
    (bad,) = (found for found in doctor.names() if not found.ok)
    assert "also installed by stranger; pip uninstall stranger" in bad.text
    monkeypatch.setattr(doctor, "PACKAGE", Path("/elsewhere/pitune"))
    assert any("hides ours" in found.text for found in doctor.names())


def test_too_little_disk_space_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "LEAST_FREE", 0)
    assert doctor.disk(tmp_path).ok is True
    monkeypatch.setattr(doctor, "LEAST_FREE", 2**80)
    assert doctor.disk(tmp_path).ok is None


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (None, 0), (False, 1)])
def test_only_a_fault_makes_the_exit_status_nonzero(
    ok: bool | None,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda: {"part": [Finding("thing", "text", ok)]})
    with pytest.raises(SystemExit) as stopped:
        doctor.main([])
    assert stopped.value.code == status
    assert ("to mend: thing" in capsys.readouterr().out) is bool(status)


@pytest.fixture
def unknown_renderers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No renderer has been found in this process or by its parent."""
    for name in (opengl.FOUND, vulkan.FOUND, "MUJOCO_GL", "PYOPENGL_PLATFORM"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for module in (opengl, vulkan):
        monkeypatch.setattr(module, "_search", module._search.__wrapped__)


@pytest.mark.usefixtures("unknown_renderers")
def test_a_driver_that_hangs_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **settings: Any) -> None:
        raise subprocess.TimeoutExpired(command, settings["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    findings = {finding.name: finding for finding in doctor.renderers()}
    assert all(finding.ok is None for finding in findings.values())
    assert "it drew nothing in 60 s; apt install libegl1" in findings["egl"].text
    assert "no pictures and no films: cannot render: neither EGL nor" in findings["mujoco"].text


@pytest.mark.usefixtures("unknown_renderers")
def test_the_renderers_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = {"egl": "OSError: libEGL.so.1", "osmesa": None}
    monkeypatch.setattr(opengl, "try_backend", problems.get)
    monkeypatch.setattr(vulkan, "problem_of", lambda code, seconds: None)
    lines = [(finding.name, finding.ok, finding.text) for finding in doctor.renderers()]
    assert lines[:3] == [
        ("egl", None, "does not draw: OSError: libEGL.so.1; apt install libegl1"),
        ("osmesa", True, "draws"),
        ("mujoco", True, "pictures and films with osmesa (MUJOCO_GL=unset)"),
    ]
    assert lines[3][0] == "vulkan"
