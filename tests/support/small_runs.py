"""Settings of a training that takes seconds, and its metrics without times."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

from pitune import envs, rl
from pitune.experiments.train import TrainConfig


def small_run(
    algorithm: rl.AlgorithmConfig, checkpoint: Path, out: Path, /, **changes: Any
) -> TrainConfig:
    """Return the config of two iterations on `mock/Reach`, with other settings."""
    config = TrainConfig(
        algorithm=algorithm,
        env=envs.config_for("mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7),
        checkpoint=checkpoint,
        out=out,
        num_iterations=2,
        num_chunks=4,
        eval_every=2,
        eval_episodes=4,
        wandb="off",
        video=False,
        device="cpu",
    )
    return replace(config, **changes)


def rows(folder: Path) -> list[dict[str, str]]:
    """Return metrics.csv without what a clock measured, and without memory."""
    with (folder / "metrics.csv").open(newline="") as lines:
        return [
            {k: v for k, v in row.items() if "second" not in k and "memory/" not in k}
            for row in csv.DictReader(lines)
        ]
