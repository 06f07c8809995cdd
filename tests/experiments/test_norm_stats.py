"""`norm_stats`: the statistics of what a checkpoint's pipeline normalizes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from openpi_fixtures import TOKENIZER, openpi_folder
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
    assert state.q01 is not None
    assert state.q99 is not None
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
    assert floored.q01 is not None
    assert floored.q99 is not None
    assert (floored.std[0], floored.q01[0], floored.q99[0]) == (0.5, -1.0, 1.0)
    assert floored.q99[1] - floored.q01[1] == pytest.approx(0.02)
    assert stats.flat(0.01) == [1]


def test_an_own_robot_is_measured_with_a_pipeline_file_and_the_demonstrations_widths(
    config: NormStatsConfig, tmp_path: Path
) -> None:
    """From openpi's base to a policy of a robot that openpi does not know, by files alone."""
    pipeline = {
        "base": "pi0_libero",
        "state_dim": None,
        "action_dim": None,
        "delta_mask": [True, False],
        "cameras": {"base_0_rgb": "top"},
        "action_horizon": 2,
        "execution_horizon": 2,
    }
    (tmp_path / "own.json").write_text(json.dumps(pipeline))
    base = tmp_path / "base"
    shutil.copytree(openpi_folder("pi0"), base)
    arch = json.loads((openpi_folder("pi0").parent / "arch.json").read_text())
    (base / "arch.json").write_text(json.dumps({**arch, "action_horizon": 2}))
    load = LoadConfig(pipeline=str(tmp_path / "own.json"), tokenizer=TOKENIZER)
    state, action, _ = norm_stats(replace(config, checkpoint=base, load=load))
    assert (state.dim, action.dim) == (4, 2)
    assert action.mean[0] == pytest.approx(16 / 6)  # relative: 1, 3, 2, 4, 3, 3

    policy = policies.load(base, replace(load, norm_stats=config.out))
    assert policy.preprocessor.config.state == state
    assert policy.preprocessor.config.action == action
    raw = {
        "state": [2.0, 1.0, 0.0, 5.0],
        "image/top": np.zeros((60, 80, 3), np.uint8),
        "prompt": "put the bowl",
    }
    assert policies.infer(policy, raw).shape == (2, 2)


def test_demonstrations_of_another_robot_are_refused(config: NormStatsConfig) -> None:
    load = LoadConfig(pipeline="pi0_libero", tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match=r"states of 4 and actions of 2 dim.* 8 and 7; for"):
        norm_stats(replace(config, checkpoint=openpi_folder("pi0"), load=load))


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_least_scale_without_a_meaning_is_refused(config: NormStatsConfig, value: float) -> None:
    with pytest.raises(ValueError, match=r"min_scale=\S+ must be at least 0"):
        replace(config, min_scale=value)
