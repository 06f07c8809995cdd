"""Settings of a training that takes seconds, and its metrics without times."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

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


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def assert_same(first: Any, second: Any, where: str = "") -> None:
    """Compare nested dicts and lists of tensors and numbers exactly."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


def assert_same_run(first: Path, second: Path, last: int = 4) -> None:
    """Two runs agree in metrics, results and last state, but for what a clock measured.

    Args:
        first: Folder of a run.
        second: Folder of the other.
        last: Number of their last iteration.
    """
    assert rows(first) == rows(second)
    a, b = (folder / f"checkpoint_{last:06d}" for folder in (first, second))
    assert (a / "policy.safetensors").read_bytes() == (b / "policy.safetensors").read_bytes()
    assert_same(*(torch.load(folder / "training.pt", weights_only=True) for folder in (a, b)))
    progress = [read(folder / "progress.json") for folder in (a, b)]
    for values in progress:
        values.pop("seconds")
    assert progress[0] == progress[1]
    results = [read(folder / "summary.json") for folder in (first, second)]
    for name in ("before", "after", "env_steps", "iterations"):
        assert results[0][name] == results[1][name], name
    best = [Path(result["best_checkpoint"]).name for result in results]
    assert best[0] == best[1]
