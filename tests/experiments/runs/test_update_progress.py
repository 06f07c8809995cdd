"""Progress inside an update: minutes of gradient rounds give a sign of life."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pitune import envs, rl
from pitune.experiments.runs.progress import Screen
from pitune.experiments.runs.report import update_progress
from pitune.rl.algorithm import no_progress
from settings import changed


class Clock:
    """Time that passes with every look at it [s]."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


def shown(algorithm: rl.Algorithm[Any], seconds: float) -> str:
    """Return the lines of one update that ends the warm-up."""
    text = io.StringIO()
    display = Screen(Console(file=text, width=200), clock=Clock(seconds))
    config = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7)
    rollout = rl.Rollouts(envs.make(config), algorithm, 4, seed=0).collect()
    with update_progress(algorithm, display):
        algorithm.update(rollout)
    assert algorithm.on_progress is no_progress
    return text.getvalue()


@pytest.mark.parametrize("name", ["wsrl", "dgn", "dsrl"])
def test_rounds_at_the_end_of_the_warm_up_are_shown(
    name: str, tiny_policy: Callable, demonstrations_file: Path
) -> None:
    config = rl.preset(name).with_demonstrations(demonstrations_file)
    settings: dict[str, Any] = {"warmup_decisions": 16, "warmup_rounds": 40, "minibatch_size": 8}
    if name == "dgn":
        settings["initial_fit_steps"] = 40
    algorithm = rl.make(changed(config, **settings), tiny_policy())
    lines = shown(algorithm, seconds=30.0)
    assert "learning: " in lines
    assert "/40" in lines
    assert ("noise model: " in lines) == (name == "dgn")


def test_short_updates_are_not_shown(tiny_policy: Callable) -> None:
    settings: dict[str, Any] = {"warmup_decisions": 16, "warmup_rounds": 4, "minibatch_size": 8}
    algorithm = rl.make(changed(rl.preset("wsrl"), **settings), tiny_policy())
    assert shown(algorithm, seconds=1e-3) == ""
