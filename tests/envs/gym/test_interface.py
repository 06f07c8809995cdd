"""Environments that were written for an older interface, or for fewer arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pitune.envs import user_modules
from user_envs import make, play

OLD = ["Arrays", "FourResults", "ObsOnly", "NoSeed", "NoRenderMode"]


@pytest.mark.parametrize("name", OLD)
def test_an_older_interface_gives_the_episodes_of_todays(name: str) -> None:
    env, expected = make(name), make("Point")
    seeds = torch.tensor([3, 4, 5, 6])
    assert torch.equal(env.reset(seeds)["state"], expected.reset(seeds)["state"])
    for _ in range(4):
        action = torch.full((4, 2), -0.3)
        ours = env.step(action, torch.tensor([True] * 4))
        theirs = expected.step(action, torch.tensor([True] * 4))
        assert torch.equal(ours.obs["state"], theirs.obs["state"])
        assert torch.equal(ours.reward, theirs.reward)
        assert torch.equal(ours.terminated, theirs.terminated)
        if theirs.terminated.any():
            return


@pytest.mark.parametrize("name", ["NoSeed", "SeedMethod"])
def test_a_reset_without_a_seed_is_seeded_otherwise(name: str) -> None:
    env = make(name)
    start = env.reset(torch.tensor([1, 2, 1, 3]))["state"]
    assert torch.equal(start[0], start[2])
    assert len({tuple(row) for row in start.tolist()}) == 3
    assert env.spec.deterministic_reset


def test_a_time_limit_among_four_results_truncates() -> None:
    env = make("FourResults")
    env.reset(torch.tensor([3, 4, 5, 6]))
    for step in range(1, 6):
        result = env.step(torch.zeros(4, 2), torch.tensor([True] * 4))
        assert result.truncated.all() == (step == 5)
    assert not result.terminated.any()


def test_an_info_that_is_none_is_empty() -> None:
    assert play(make("NoInfo", reward="dense"), 13)[1:] == (4, 0)


def test_an_environment_without_a_render_mode_says_why_it_draws_nothing() -> None:
    env = make("NoRenderMode")
    env.reset(torch.arange(4))
    assert env.render().shape == (4, 16, 16, 3)  # this one draws all the same


@pytest.mark.parametrize("name", ["envs", "rl", "policies", "experiments"])
def test_a_package_with_the_name_of_a_folder_of_ours_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text(f"WORD = 'mine: {name}'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        assert f"mine: {name}" == user_modules.import_user_module(name).WORD
    finally:
        sys.modules.pop(name, None)


def test_a_module_that_does_not_exist_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ImportError, match=r"there is no module 'no_such_package' on Python's path"):
        user_modules.import_user_module("no_such_package")
