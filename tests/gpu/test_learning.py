"""Every algorithm acts and learns on CUDA, and waits for it as often as on the pretend device."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_waits import cuda_waits
from device_runs import (
    ALGORITHMS,
    COVERING,
    HORIZON,
    NUM_CHUNKS,
    STATE_ENV,
    algorithm_config,
    policy_of,
    with_outcomes,
)

from pitune import envs, rl
from pitune.policies import FlowPolicy
from vision_policies import ENV

pytestmark = pytest.mark.gpu
FILE = "rl/gradient_step.py"


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with demonstrations that have the policies' cameras."""
    file = tmp_path_factory.mktemp("demonstrations") / "demonstrations.safetensors"
    rl.collect_demonstrations(envs.make(replace(ENV, num_envs=5)), 10, seed=0).save(file)
    return file


@pytest.fixture
def run(
    tiny_policy: Callable[..., FlowPolicy], demonstrations: Path, cuda: torch.device
) -> Callable[..., tuple[Counter[str], dict[str, float]]]:
    """Return the waits and the metrics of the third update of an algorithm."""

    def waits(name: str, kind: str, **settings: Any) -> tuple[Counter[str], dict[str, float]]:
        torch.manual_seed(0)
        policy = policy_of(kind, tiny_policy(horizon=HORIZON, executed=HORIZON), cuda)
        config = algorithm_config(name, demonstrations, **settings)
        algorithm = rl.make(config, policy)
        pictures = replace(ENV, max_episode_steps=NUM_CHUNKS * HORIZON)
        env = envs.make(pictures if policy.feature_dim else STATE_ENV)
        rollouts = rl.Rollouts(env, algorithm, NUM_CHUNKS, seed=0)
        for _ in range(2):
            algorithm.update(rollouts.collect())
        rollout = rollouts.collect()
        with_outcomes(rollout, algorithm)
        with cuda_waits() as found:
            metrics = algorithm.update(rollout)
        return found, metrics

    return waits


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("state", [True, False], ids=["state", "pictures"])
def test_every_algorithm_learns(name: str, state: bool, run: Callable) -> None:
    found, metrics = run(name, "state" if state else COVERING[name])
    losses = [value for key, value in metrics.items() if "loss" in key]
    assert losses, metrics
    assert all(math.isfinite(value) for value in losses), metrics
    assert found.total(), "CUDA reported no wait, so nothing was counted"


@pytest.mark.parametrize(
    ("name", "setting", "values"),
    [("ppo", "num_epochs", (4, 8)), ("dsrl", "updates_per_decision", (0.25, 0.5))],
)
def test_a_gradient_step_waits_once(
    name: str, setting: str, values: tuple[float, float], run: Callable
) -> None:
    """CUDA's own count of a longer update, less that of a shorter one."""
    counts, steps = [], []
    for value in values:
        found, _ = run(name, "state", **{setting: value})
        counts.append(found.total())
        steps.append(sum(num for line, num in found.items() if line.startswith(FILE)))
    assert steps[1] > steps[0]
    assert counts[1] - counts[0] == steps[1] - steps[0]
