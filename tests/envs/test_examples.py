"""The examples in the docstrings of `envs` run as printed."""

from __future__ import annotations

import doctest
import importlib

import pytest

from pitune.envs import registry

MODULES = (
    "",
    ".checked",
    ".chunk_env",
    ".config",
    ".gym.registration",
    ".gym.vector",
    ".libero.conversion",
    ".libero.registration",
    ".libero.suites",
    ".maniskill.experts",
    ".maniskill.registration",
    ".maniskill.tasks",
    ".maniskill.without_vulkan",
    ".metaworld.registration",
    ".mock.reach",
    ".mock.registration",
    ".mock.two_goals",
    ".registry",
    ".seeding",
    ".starts",
    ".tabletop.env",
    ".tabletop.experts",
    ".tabletop.model",
    ".tabletop.physics",
    ".tabletop.registration",
    ".tabletop.tasks",
    ".vector_env",
    ".workers.env",
    ".workers.pool",
    ".workers.process",
    ".workers.spaces",
    ".workers.sub_envs",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run_as_printed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # an example registers a prefix
    monkeypatch.setattr(registry, "_ADAPTERS", dict(registry._ADAPTERS))
    result = doctest.testmod(importlib.import_module(f"pitune.envs{name}"))
    assert result.attempted > 0
    assert result.failed == 0
