"""The shape of the repository: who may import whom, and what must not be there."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "policies": {"policies"},
    "envs": {"envs"},
    "rl": {"policies", "envs", "rl"},
    "experiments": {"policies", "envs", "rl", "experiments"},
}
SIMULATORS = {"mujoco", "gymnasium", "mani_skill", "metaworld", "sapien", "libero", "robosuite"}
packages = pytest.mark.parametrize("package", ALLOWED)


def modules(package: str) -> Iterator[tuple[Path, ast.Module]]:
    """Yield every file of a package and its syntax tree."""
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, package
    for file in files:
        yield file.relative_to(ROOT), ast.parse(file.read_text(), filename=str(file))


def imported(tree: ast.AST) -> set[str]:
    """Return the modules that a piece of code imports, wherever in it, as written."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            module = str(node.module)
            submodules = {f"pitune.{alias.name}" for alias in node.names}
            names |= submodules if module == "pitune" else {module}
    return names


def top(names: set[str]) -> set[str]:
    """Return the packages of some modules; our own without their common `pitune`."""
    return {name.removeprefix("pitune.").partition(".")[0] for name in names}


@packages
def test_imports_point_one_way(package: str) -> None:
    for file, tree in modules(package):
        ours = top(imported(tree)) & ALLOWED.keys()
        assert ours <= ALLOWED[package], file


def test_the_packages_never_import_their_tests() -> None:
    names = {file.stem for file in (ROOT / "tests" / "support").glob("*.py")}
    names |= {"tests", "conftest", "pytest"}
    for package in ALLOWED:
        for file, tree in modules(package):
            assert not top(imported(tree)) & names, file


def test_an_arrow_that_points_back_would_be_seen() -> None:
    """Negative control: imports inside functions and of submodules count too."""
    code = "def f():\n    from pitune.rl.registry import make\n    from pitune import experiments\n"
    assert top(imported(ast.parse(code))) == {"rl", "experiments"}


def room(name: str) -> str:
    """Return the folder of a module inside its package, or the module itself at its top."""
    parts = name.removeprefix("pitune.").split(".")
    if len(parts) == 1:
        return parts[0]
    inside = (ROOT / parts[0] / parts[1]).is_dir()
    return ".".join(parts[:2]) if inside else ".".join([parts[0], "<top>", parts[1]])


def arrows() -> dict[str, set[str]]:
    """Return the rooms that each room imports from. A package's `__init__` only collects names."""
    found: dict[str, set[str]] = {}
    for package in ALLOWED:
        for file, tree in modules(package):
            if file.name == "__init__.py":
                continue
            here = room(".".join(file.with_suffix("").parts))
            ours = {name for name in imported(tree) if top({name}) & ALLOWED.keys()}
            targets = {room(name) for name in ours if name.count(".") > 1}
            found.setdefault(here, set()).update(targets - {here})
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return rooms that import each other in a circle, or nothing."""
    done: set[str] = set()

    def search(here: str, path: list[str]) -> list[str]:
        if here in path:
            return [*path[path.index(here) :], here]
        if here in done:
            return []
        for following in sorted(graph.get(here, ())):
            if found := search(following, [*path, here]):
                return found
        done.add(here)
        return []

    return next((found for start in sorted(graph) if (found := search(start, []))), [])


def test_no_folders_import_each_other_in_a_circle() -> None:
    assert circle(arrows()) == []


def test_a_circle_between_folders_would_be_seen() -> None:
    """Negative control: one import of a learner by the flow's mathematics closes a circle."""
    graph = arrows()
    assert "policies.flow" in graph["policies.likelihood"]
    graph["policies.flow"].add("policies.<top>.actor")
    assert circle(graph)


@pytest.mark.parametrize(
    ("room", "reachable"),
    [
        ("policies.flow", {"policies.flow"}),
        ("policies.preprocessing", {"policies.preprocessing"}),
        ("policies.network", {"policies.network", "policies.flow"}),
        (
            "rl.evaluation",
            {"rl.evaluation", "rl.experience", "rl.<top>.algorithm", "rl.<top>.ranks"},
        ),
    ],
)
def test_the_lower_floors_know_nothing_of_the_upper_ones(room: str, reachable: set[str]) -> None:
    package = room.partition(".")[0]
    graph, found = arrows(), {room}
    while fresh := {t for f in found for t in graph.get(f, ())} - found:
        found |= fresh
    assert {name for name in found if name.startswith(f"{package}.")} <= reachable


def test_a_folder_is_small_enough_to_be_read() -> None:
    for package in ALLOWED:
        folders = {file.parent for file in (ROOT / package).rglob("*.py")}
        for folder in folders:
            names = [file.name for file in folder.glob("*.py") if file.name != "__init__.py"]
            assert len(names) <= 14, f"{folder.relative_to(ROOT)} holds {len(names)} modules"


@pytest.mark.parametrize("package", ["policies", "rl"])
def test_learning_and_acting_know_no_simulator(package: str) -> None:
    for file, tree in modules(package):
        assert not top(imported(tree)) & SIMULATORS, file


def test_a_simulator_is_imported_when_it_is_asked_for() -> None:
    """What every user of `envs` imports must not need any simulator."""
    needed, seen = {"pitune.envs"}, set()
    while needed:
        name = needed.pop()
        seen.add(name)
        path = ROOT / name.removeprefix("pitune.").replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        tree = ast.parse(file.read_text())
        at_import = ast.Module(
            [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []
        )
        names = imported(at_import)
        assert not top(names) & SIMULATORS, name
        needed |= {other for other in names if other.startswith("pitune.envs")} - seen
    assert {"pitune.envs.registry", "pitune.envs.chunk_env", "pitune.envs.checked"} <= seen
    assert "pitune.envs.tabletop.env" not in seen


@packages
def test_the_packages_are_this_repositorys(package: str) -> None:
    """Another installed `rl` or `envs` would be tested instead of ours."""
    found = importlib.import_module(f"pitune.{package}").__file__
    assert found is not None
    assert Path(found).resolve() == ROOT / package / "__init__.py"


@packages
def test_errors_are_raised_and_not_asserted(package: str) -> None:
    for file, tree in modules(package):
        lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        assert not lines, f"{file}, lines {lines}"


def test_no_file_is_named_for_nothing() -> None:
    for package in (*ALLOWED, "tests"):
        for file in (ROOT / package).rglob("*.py"):
            assert file.stem not in {"utils", "common", "helpers", "base"}, file


def test_the_tests_are_no_packages() -> None:
    """They run with `--import-mode=importlib`; an `__init__` would make `tests/rl` a package."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


@packages
def test_what_a_package_exports_exists(package: str) -> None:
    module = importlib.import_module(f"pitune.{package}")
    exported = getattr(module, "__all__", [])
    assert len(set(exported)) == len(exported)
    assert all(hasattr(module, name) for name in exported)


@pytest.mark.parametrize("package", ["policies", "envs", "rl"])
def test_a_source_folder_is_no_second_package(package: str) -> None:
    """From the root of the tree, `import rl` would make other classes than `pitune.rl`."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {package}"], cwd=ROOT, capture_output=True, text=True
    )
    message = f"`import {package}` found the folder {ROOT / package} of pitune: write "
    assert message + f"`from pitune import {package}`" in done.stderr
    importlib.import_module(f"pitune.{package}")


def test_the_trainer_starts_from_its_source_folder() -> None:
    command = [sys.executable, "-m", "experiments.train", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m experiments.train ALGORITHM")
