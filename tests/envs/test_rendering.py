"""The search for a renderer: EGL, OSMesa, a Vulkan driver; each is tried in its own process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import types
from collections.abc import Iterator

import pytest

from pitune.envs.rendering import opengl, vulkan
from pitune.envs.rendering.attempt import problem_of
from pitune.envs.rendering.cameras import check_cameras
from pitune.envs.rendering.opengl import bind_mujoco, offscreen, opengl_backend, try_backend
from pitune.envs.rendering.vulkan import vulkan_problem

SETTINGS = ("MUJOCO_GL", "PYOPENGL_PLATFORM", opengl.FOUND, vulkan.FOUND)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting, and no answer that was found before."""
    for name in SETTINGS:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(opengl.platform, "system", lambda: "Linux")
    for search in (opengl._search, vulkan._search):
        search.cache_clear()
    yield
    for search in (opengl._search, vulkan._search):
        search.cache_clear()


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the backends that are tried on a machine with OSMesa alone."""
    tries: list[str] = []

    def fake(backend: str) -> str | None:
        tries.append(backend)
        return None if backend == "osmesa" else "OSError: libEGL.so.1"

    monkeypatch.setattr(opengl, "try_backend", fake)
    return tries


# Attempts


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("print('drawn')", None),
        ("raise OSError('libEGL.so.1')", "OSError: libEGL.so.1"),
        ("import os; os.abort()", "it crashed (signal 6)"),
        ("raise SystemExit(3)", "it ended with status 3"),
        ("import time; time.sleep(9)", "it drew nothing in 0.5 s"),
    ],
)
def test_an_attempt_survives_every_end(code: str, problem: str | None) -> None:
    seconds = 0.5 if "sleep" in code else 60.0
    assert problem_of(code, seconds) == problem


def test_the_backend_of_this_machine_draws_a_picture() -> None:
    problems = {backend: try_backend(backend) for backend in ("egl", "osmesa")}
    working = [backend for backend, problem in problems.items() if problem is None]
    if not working:
        with pytest.raises(RuntimeError, match="neither EGL nor OSMesa draws a picture"):
            opengl_backend()
        pytest.skip(f"this machine cannot render: {problems}")
    assert opengl_backend() == working[0]


def test_osmesa_draws_where_egl_is_broken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if try_backend("osmesa") is not None:
        pytest.skip("this machine has no OSMesa")
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", "/dev/null")
    with caplog.at_level(logging.WARNING):
        assert opengl_backend() == "osmesa"
    assert "MuJoCo draws with OSMesa, on the CPU, because EGL does not:" in caplog.text
    assert "install libegl1 for EGL, or set MUJOCO_GL=osmesa" in caplog.text


# The order, and its answer


def test_egl_comes_before_osmesa_and_the_answer_is_kept(tried: list[str]) -> None:
    assert [opengl_backend() for _ in range(3)] == ["osmesa"] * 3
    assert tried == ["egl", "osmesa"]


def test_a_child_process_does_not_search_again() -> None:
    code = (
        "from pitune.envs.rendering import opengl\n"
        "def fail(backend): raise SystemExit('searched')\n"
        "opengl.try_backend = fail\n"
        "print(opengl.opengl_backend())"
    )
    environment = {**os.environ, opengl.FOUND: "=osmesa"}
    for setting in ("", "osmesa"):
        environment["MUJOCO_GL"] = setting
        found = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert found.stdout.strip() == "osmesa", found.stderr
    environment["MUJOCO_GL"] = "egl"  # another setting than that of the parent
    changed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert "searched" in changed.stderr


def test_a_machine_without_a_backend_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opengl, "try_backend", lambda backend: f"no {backend}")
    message = r"neither EGL nor OSMesa draws.*egl: no egl, osmesa: no osmesa.*libegl1.*libosmesa6"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            opengl_backend()


# MUJOCO_GL


def test_a_setting_is_honored(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", " OSMesa ")
    assert opengl_backend() == "osmesa"
    assert tried == ["osmesa"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("egl", r"MUJOCO_GL=egl is set, but egl does not draw: OSError.*install libegl1, or unset"),
        ("glx", r"MUJOCO_GL=glx is set, but glfw does not draw.*needs a screen.*libglfw3"),
        ("osmea", r"MUJOCO_GL='osmea' is no backend \(did you mean 'osmesa'\?\); valid: \['egl', "),
        ("off", "MUJOCO_GL=off switches it off; unset it"),
    ],
)
def test_a_setting_that_cannot_draw_is_refused_by_name(
    setting: str, message: str, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", setting)
    with pytest.raises(RuntimeError, match=message):
        opengl_backend()
    assert "osmesa" not in tried  # no other backend is taken in silence


@pytest.mark.parametrize("setting", ["", "1", "enable"])
def test_a_setting_without_a_name_leaves_the_choice(
    setting: str, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", setting)
    assert opengl_backend() == "osmesa"


def test_a_bound_pyopengl_is_followed(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    assert opengl_backend() == "osmesa"
    assert tried == ["osmesa"]
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    with pytest.raises(RuntimeError, match="PYOPENGL_PLATFORM=egl is set, and OSError: libEGL"):
        opengl_backend()


def test_the_backend_of_this_process_does_not_start_another_search(
    tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MuJoCo sets PYOPENGL_PLATFORM when it begins to draw."""
    opengl_backend()
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    opengl_backend()
    assert tried == ["egl", "osmesa"]


# Users of MuJoCo's own renderer


@pytest.mark.usefixtures("tried")
def test_others_find_the_backend_in_the_setting_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with offscreen():
        assert os.environ["MUJOCO_GL"] == "osmesa"
    assert "MUJOCO_GL" not in os.environ
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with offscreen():
        pass
    assert os.environ["MUJOCO_GL"] == "osmesa"


@pytest.mark.usefixtures("tried")
def test_a_mujoco_that_was_imported_before_is_bound_too(monkeypatch: pytest.MonkeyPatch) -> None:
    bound, wanted = types.ModuleType("mujoco.gl_context"), types.ModuleType("mujoco.osmesa")
    bound.GLContext, wanted.GLContext = "glfw's", "osmesa's"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mujoco.gl_context", bound)
    monkeypatch.setitem(sys.modules, "mujoco.osmesa", wanted)
    bind_mujoco()
    assert bound.GLContext == "osmesa's"
    assert os.environ["MUJOCO_GL"] == "osmesa"


# Vulkan


def test_the_driver_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []
    monkeypatch.setattr(vulkan, "problem_of", lambda code, seconds: tries.append(code))
    assert vulkan_problem() is vulkan_problem() is None
    assert len(tries) == 1
    monkeypatch.setenv("VK_ICD_FILENAMES", "/another/driver.json")
    assert vulkan_problem() is None
    assert len(tries) == 2


def test_a_missing_driver_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vulkan, "problem_of", lambda code, seconds: "RuntimeError: no device")
    assert vulkan_problem() == "RuntimeError: no device"
    assert vulkan.FOUND not in os.environ
    assert "mesa-vulkan-drivers >= 24.3" in vulkan.DRIVER_NEEDED


# Cameras


@pytest.mark.parametrize(
    ("cameras", "message"),
    [
        (["frnt", "wrist"], r"cameras=\['frnt'\] do not exist in toy/A; .*'front' instead of"),
        (["xyz"], r"cameras=\['xyz'\] do not exist in toy/A; it has \['front', 'wrist'\]$"),
        (["front", "front"], r"cameras=\['front', 'front'\] of toy/A has a camera twice"),
    ],
)
def test_cameras_that_do_not_exist_are_refused(cameras: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_cameras("toy/A", cameras, ["wrist", "front"])


def test_known_cameras_pass() -> None:
    check_cameras("toy/A", ["wrist", "front"], ["front", "wrist", "top"])
