"""`norm_stats`: the statistics of what a checkpoint's pipeline normalizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pitune import policies, rl
from pitune.experiments.norm_stats import NormStatsConfig, norm_stats
from pitune.policies import FlowPolicy, LoadConfig, NormStats


@pytest.fixture
def config(tiny_policy: Callable[..., FlowPolicy], tmp_path: Path) -> NormStatsConfig:
    """Of a policy whose first action dimension is relative to the state, and three steps."""
    policy = tiny_policy()
    preprocessor = replace(policy.preprocessor.config, delta_mask=(True, False))
    relative = FlowPolicy(policy.network, preprocessor, policy.sampler)
    policies.save(relative, tmp_path / "policy")
    state = torch.tensor([[1.0, 0.0, 0.0, 5.0], [2.0, 1.0, 0.0, 5.0], [3.0, 2.0, 0.0, 5.0]])
    action = torch.tensor([[2.0, 0.0], [4.0, 1.0], [6.0, 2.0]])
    rl.Demonstrations(
        obs={"state": state}, action=action, episode=torch.zeros(3, dtype=torch.int64)
    ).save(tmp_path / "demonstrations.safetensors")
    return NormStatsConfig(
        checkpoint=tmp_path / "policy",
        demonstrations=tmp_path / "demonstrations.safetensors",
        out=tmp_path / "norm_stats.json",
    )


def test_relative_actions_are_measured_relative_over_whole_chunks(config: NormStatsConfig) -> None:
    state, action, floored = norm_stats(config)
    # chunks of two: (2, 4), (4, 6), (6, 6) minus the states 1, 2, 3
    differences = torch.tensor([1.0, 3.0, 2.0, 4.0, 3.0, 3.0])
    assert action.mean[0] == pytest.approx(float(differences.mean()))
    assert action.std[0] == pytest.approx(float(differences.std(correction=0)))
    assert action.mean[1] == pytest.approx(8 / 6)  # absolute: 0, 1, 1, 2, 2, 2
    assert state.mean == pytest.approx((2.0, 1.0, 0.0, 5.0))
    assert floored == {"state": [2, 3], "actions": []}
    assert state.std[2:] == (0.01, 0.01)
    assert (state.q01[3], state.q99[3]) == pytest.approx((4.99, 5.01))


def test_every_script_can_load_with_them(config: NormStatsConfig) -> None:
    state, action, _ = norm_stats(config)
    policy = policies.load(config.checkpoint, LoadConfig(norm_stats=config.out))
    assert policy.preprocessor.config.state == state
    assert policy.preprocessor.config.action == action


def test_an_existing_file_is_not_overwritten(config: NormStatsConfig) -> None:
    config.out.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        norm_stats(config)
    assert config.out.read_text() == "mine"


def test_floors_do_not_change_dimensions_that_move() -> None:
    stats = NormStats(mean=(0.0, 1.0), std=(0.5, 0.001), q01=(-1.0, 1.0), q99=(1.0, 1.001))
    floored = stats.floored(0.01)
    assert (floored.std[0], floored.q01[0], floored.q99[0]) == (0.5, -1.0, 1.0)
    assert floored.q99[1] - floored.q01[1] == pytest.approx(0.02)
    assert stats.flat(0.01) == [1]
