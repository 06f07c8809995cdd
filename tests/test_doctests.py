"""The examples in the docstrings: they run, and every public class has one.

Those of `envs` run in `tests/envs/test_examples.py`.
"""

from __future__ import annotations

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pitune.policies.likelihood import registry as likelihoods
from pitune.rl import registry as algorithms

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("policies", "rl", "experiments")
SIMULATORS = {"gymnasium", "mani_skill", "metaworld", "mujoco", "sapien", "libero", "robosuite"}


def modules() -> Iterator[str]:
    """Yield the names of the modules with examples that import without a simulator."""
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            source = file.read_text()
            if ">>>" in source and not SIMULATORS & imported(ast.parse(source)):
                parts = file.relative_to(ROOT).with_suffix("").parts
                yield ".".join(("pitune", *parts)).removesuffix(".__init__")
    yield from ("pitune.extras", "pitune.ranges")  # beside the links to the folders


def imported(tree: ast.Module) -> set[str]:
    """Return the top-level packages that a module imports when it is imported itself."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    return names


def test_most_modules_with_examples_need_no_simulator() -> None:
    names = list(modules())
    assert {"pitune.policies.policy", "pitune.rl.algorithms.ppo"} <= set(names)


@pytest.mark.parametrize("name", list(modules()))
def test_examples_print_the_results_that_they_show(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(name)
    # an example may register an algorithm or a likelihood
    algorithms.entries()
    for registry in (algorithms, likelihoods):
        monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    torch.manual_seed(0)
    assert doctest.testmod(module).failed == 0


def public_classes(tree: ast.Module) -> Iterator[ast.ClassDef]:
    """Yield the public classes at the top of a module."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node


@pytest.mark.parametrize("folder", [*FOLDERS, "envs"])
def test_every_public_class_has_an_example(folder: str) -> None:
    classes = [
        (f"{file.relative_to(ROOT)}: {node.name}", ast.get_docstring(node) or "")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for node in public_classes(ast.parse(file.read_text()))
    ]
    assert classes
    for name, docstring in classes:
        assert ">>>" in docstring.partition("Example:")[2], name
