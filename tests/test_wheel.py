"""The wheel holds all of `pitune` and nothing else, and works beside packages of the same names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from documentation import ROOT

FOLDERS = ("rl", "policies", "envs", "experiments")
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "pitune", *FOLDERS)
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def run(command: Sequence[str], folder: Path, path: Path | None = None) -> str:
    """Run a command in a folder, with another folder in front of the import path; return stdout."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel that was built without the network from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (*SOURCES, "tests", "docs"):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    build = (*PIP, "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run([*build, "--wheel-dir", str(folder), str(source)], folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that the wheel is installed into, beside a stranger's `envs`."""
    target = tmp_path_factory.mktemp("site")
    run([*PIP, "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)], target)
    stranger(target / "envs")
    return target


def stranger(folder: Path) -> None:
    """Write a package of somebody else."""
    folder.mkdir()
    (folder / "__init__.py").write_text("OWNER = 'stranger'\n")


@pytest.mark.slow
def test_the_wheel_holds_every_module_the_types_marker_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    modules = {
        f"pitune/{file.relative_to(ROOT)}" for name in FOLDERS for file in python_files(name)
    }
    own = {f"pitune/{file.name}" for file in (ROOT / "pitune").glob("*.py")}
    expected = modules | own | {"pitune/py.typed"}
    assert {name for name in names if not name.startswith(info)} == expected
    assert "pitune = pitune.experiments.command_line.main:main" in entry_points


def python_files(package: str) -> list[Path]:
    """Return the modules of a package in the source tree."""
    files = list((ROOT / package).rglob("*.py"))
    assert files, package
    return files


@pytest.mark.slow
def test_pitune_and_a_package_named_envs_are_both_imported(installed: Path, tmp_path: Path) -> None:
    code = (
        "import envs, pitune; from pitune import envs as ours, experiments, policies, rl;"
        "print(envs.OWNER, pitune.__file__, ours.__file__, sep='\\n'); rl.PPO; policies.FlowPolicy"
    )
    owner, file, ours = run([sys.executable, "-c", code], tmp_path, installed).split()
    assert owner == "stranger"
    assert Path(file) == installed / "pitune" / "__init__.py"
    assert Path(ours) == installed / "pitune" / "envs" / "__init__.py"


@pytest.mark.slow
def test_folders_of_our_names_in_the_working_directory_are_no_obstacle(
    installed: Path, tmp_path: Path
) -> None:
    for name in (*FOLDERS, "tests"):
        stranger(tmp_path / name)
    code = "from pitune.experiments.command_line.main import main; main(['list', 'algorithms'])"
    output = run([sys.executable, "-c", code], tmp_path, installed)
    assert "dsrl" in output
    output = run([str(installed / "bin" / "pitune"), "list", "environments"], tmp_path, installed)
    assert "mock/Reach" in output
