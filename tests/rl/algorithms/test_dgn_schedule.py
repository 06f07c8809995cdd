"""`dgn`: noise that decays exponentially becomes small and stays small."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pitune import rl
from settings import changed


@pytest.fixture
def new(tiny_policy: Callable, demonstrations_file: Path) -> Callable[..., rl.DGN]:
    def make(**changes: Any) -> rl.DGN:
        config = rl.DGNConfig().with_demonstrations(demonstrations_file)
        torch.manual_seed(0)
        return rl.DGN(changed(config, **changes), tiny_policy())

    return make


@pytest.mark.parametrize("noise", ["data_guided", "equal_size", "gaussian"])
@pytest.mark.parametrize("age", [0.0, 1.0, 30.0, 700.0, 745.2, 800.0, 1e6, 1e12])
def test_the_noise_never_grows_again(noise: Any, age: float, new: Callable) -> None:
    algorithm = new(noise=noise, schedule="exponential", decay_decisions=10)
    algorithm.learner.off_policy.num_decisions = int(10 * age)
    scale = algorithm.noise_scale()
    assert 0 < scale <= 1
    obs = torch.zeros(64, algorithm.learner.input_dim)
    size = float(algorithm.perturbation(obs).square().mean().sqrt())
    algorithm.learner.off_policy.num_decisions = 0
    full = float(algorithm.perturbation(obs).square().mean().sqrt())
    assert math.isfinite(size)
    assert size <= 2 * full * max(math.exp(-age), 1e-11)


def test_white_noise_belongs_to_the_success_schedule_alone(new: Callable) -> None:
    algorithm = new(schedule="success", success_window=4, exploration_std=0.2)
    algorithm.outcomes = [1.0] * 4
    assert algorithm.noise_scale() == 0.0
    noise = algorithm.perturbation(torch.zeros(4000, algorithm.learner.input_dim))
    assert float(noise.std()) == pytest.approx(0.2, rel=0.05)
