"""The examples in the docstrings run, and their results are as printed."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

POLICIES = Path(__file__).resolve().parents[2] / "policies"
FOLDERS = ("checkpoints", "finetuning", "flow", "network")
MODULES = [
    f"pitune.policies.{folder}.{file.stem}"
    for folder in FOLDERS
    for file in sorted((POLICIES / folder).glob("[!_]*.py"))
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_right(name: str) -> None:
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0
