"""Averages of weights: where an algorithm keeps one, it is deployed, saved and resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pitune import envs, policies, rl
from pitune.policies.finetuning.ema import EMA
from settings import changed
from vision_policies import ENV, vision_policy


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("demonstrations") / "pictures.safetensors"
    rl.collect_demonstrations(envs.make(replace(ENV, max_episode_steps=20)), 3, seed=0).save(file)
    return file


def averages(thing: Any, seen: set[int] | None = None) -> list[EMA]:
    """Return every average that is reachable from an object of this project."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return []
    seen.add(id(thing))
    if isinstance(thing, EMA):
        return [thing]
    values: list[Any] = []
    if isinstance(thing, dict):
        values = list(thing.values())
    elif isinstance(thing, list | tuple):
        values = list(thing)
    elif type(thing).__module__.startswith("pitune"):
        values = list(vars(thing).values())
    return [ema for value in values for ema in averages(value, seen)]


@pytest.mark.parametrize("name", sorted(rl.presets()))
def test_an_average_that_is_kept_is_what_is_deployed(name: str, pictures: Path) -> None:
    """With a vision-language policy, for which openpi averages by default."""
    algorithm = rl.make(rl.preset(name).with_demonstrations(pictures), vision_policy())
    kept = averages(algorithm)
    assert len(kept) == (name == "bc")
    if not kept:
        return
    config = changed(rl.BCConfig(), gradient_steps=3, minibatch_size=4, warmup_steps=0)
    algorithm = rl.make(config.with_demonstrations(pictures), vision_policy())
    algorithm.update(rl.Rollouts(envs.make(ENV), algorithm, 4, seed=0).collect())
    (ema,) = averages(algorithm)
    deployed = dict(algorithm.deployed_policy().named_parameters())
    state = ema.state_dict()
    moved = [k for k in deployed if not torch.equal(state[f"average.{k}"], state[f"raw.{k}"])]
    assert moved
    assert all(torch.equal(deployed[k], state[f"average.{k}"]) for k in deployed)


def test_the_saved_policy_is_the_average(pictures: Path, tmp_path: Path) -> None:
    config = changed(rl.BCConfig(), gradient_steps=3, minibatch_size=4, warmup_steps=0)
    algorithm = rl.make(config.with_demonstrations(pictures), vision_policy())
    algorithm.update(rl.Rollouts(envs.make(ENV), algorithm, 4, seed=0).collect())
    policies.save(algorithm.deployed_policy(), tmp_path / "policy")
    (ema,) = averages(algorithm)
    saved = policies.load(tmp_path / "policy").state_dict()
    for key, value in ema.state_dict().items():
        if key.startswith("average."):
            assert torch.equal(saved[key.removeprefix("average.")], value), key


def test_the_search_finds_averages(tiny_policy: Callable) -> None:
    """Otherwise the tests above would show nothing."""
    assert len(averages({"step": [EMA(tiny_policy(), 0.9)]})) == 1
