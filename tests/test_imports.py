"""Importing is cheap: nothing heavy is imported before it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pitune import rl

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"scipy", "rich", "matplotlib", "wandb", "tyro", "PIL", "mujoco", "imageio", "gymnasium"}


def imported_by(code: str) -> set[str]:
    """Return the top-level modules that a new process has imported after some code."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["pitune", "pitune.rl"])
def test_importing_the_package_imports_nothing_heavy(module: str) -> None:
    names = imported_by(f"import {module}")
    assert not names & (HEAVY | {"torch", "tensordict", "torchrl", "numpy"})


def test_using_every_name_imports_only_the_torch_libraries() -> None:
    """TorchRL itself imports Pillow, and MuJoCo where it is installed."""
    names = imported_by("from pitune.rl import *")
    assert {"torch", "torchrl"} <= names
    assert not names & (HEAVY - {"PIL", "mujoco"})


def test_the_table_of_lazy_names_is_complete() -> None:
    assert {*rl._MODULE_OF, "registry"} == set(rl.__all__)
    assert set(rl.__all__) <= set(dir(rl))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'pitune\.rl' has no attribute 'PP0'"):
        rl.PP0  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("order", ["", "from pitune import rl; rl.presets()\n"])
def test_outside_algorithms_register_before_and_after_the_built_in_ones(order: str) -> None:
    code = f"""{order}
from dataclasses import dataclass
from pitune.rl.registry import register
from pitune.rl.algorithm import Algorithm, AlgorithmConfig

@dataclass(frozen=True, kw_only=True)
class MyConfig(AlgorithmConfig):
    pass

try:
    register("ppo", MyConfig)
except ValueError as error:
    assert "'ppo' or its MyConfig is registered already" in str(error)
else:
    raise SystemExit("a built-in name was taken")

@register("mine", MyConfig)
class Mine(Algorithm[MyConfig]):
    pass

from pitune import rl
assert {{"mine", "ppo", "bc"}} <= rl.presets().keys()
"""
    imported_by(code)
