"""A training whose weights are split over two ranks: as without, and on other numbers of ranks."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import on_ranks, start_ranks

from pitune import policies
from pitune.experiments.train import TrainConfig, Trainer, train
from settings import changed

TIMES = ("seconds", "memory", "env_steps_per")


@pytest.fixture
def config(small_preset: Callable, run_of: Callable[..., TrainConfig]) -> TrainConfig:
    algorithm = changed(
        small_preset("ppo"), kl_coefficient=0.1, critic_warmup=0, normalize_returns=True
    )
    return run_of(algorithm, eval_episodes=5, shard=True)


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open() as file:
        found = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items() if v and not k.startswith(TIMES)} for row in found]


def test_sharded_ranks_learn_as_whole_ones_and_go_on_in_other_numbers(
    config: TrainConfig, tmp_path: Path
) -> None:
    whole = replace(config, out=tmp_path / "whole", shard=False)
    on_ranks(partial(train, whole), 2, tmp_path / "a")
    on_ranks(partial(train, config), 2, tmp_path / "b")
    for first, second in zip(rows(whole.out), rows(config.out), strict=True):
        assert first == pytest.approx(second, abs=1e-4)
    name = "checkpoint_000002"
    before, after = (policies.load(run.out / name).state_dict() for run in (whole, config))
    for key, value in before.items():
        assert torch.allclose(value, after[key], rtol=0, atol=1e-5), key
    assert (config.out / name / "shards").is_dir()

    # 2 -> 1 -> 2, with the same moments in the optimizer
    def moments(shard: bool) -> list[Any]:
        trainer = Trainer(replace(config, num_iterations=4, resume=True, shard=shard))
        optimizer = trainer.algorithm.optimizers["actor"]
        trainer.run.abandon()
        return [
            value.full_tensor() if hasattr(value, "full_tensor") else value
            for state in optimizer.state.values()
            for value in state.values()
        ]

    expected = torch.load(whole.out / name / "training.pt", weights_only=True)
    states = expected["training"]["optimizers"]["actor"]["state"].values()
    in_whole = [value for state in states for value in state.values()]
    for world, shard in ((2, True), (1, False), (2, False)):
        for found in on_ranks(partial(moments, shard), world, tmp_path / f"{world}{shard}"):
            for one, other in zip(in_whole, found, strict=True):
                assert torch.allclose(one, other, rtol=0, atol=1e-5)
    go_on = partial(replace, config, resume=True)
    on_ranks(partial(train, go_on(num_iterations=4, shard=False)), 1, tmp_path / "d")
    (summary, _) = on_ranks(partial(train, go_on(num_iterations=6)), 2, tmp_path / "e")
    assert summary["restarts"] == [2, 4]
    assert [row["iteration"] for row in rows(config.out)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("name", "world", "text"),
    [
        ("ppo", 1, "shard=True splits the weights over several ranks, and there is one"),
        ("epo", 2, "shard=True cannot be combined with epo"),
        ("bc", 2, "shard=True cannot be combined with ema_decay=0.9"),
        ("compiled", 2, "shard=True cannot be combined with compile=True"),
    ],
)
def test_settings_that_cannot_be_sharded_are_refused_by_name(
    config: TrainConfig, small_preset: Callable, name: str, world: int, text: str, tmp_path: Path
) -> None:
    algorithm = small_preset("ppo" if name == "compiled" else name)
    if name == "bc":
        algorithm = changed(algorithm, ema_decay=0.9)
    settings = replace(config, algorithm=algorithm, compile=name == "compiled")
    children = start_ranks(partial(train, settings), world, tmp_path / "ranks")
    assert {child.wait() for child in children} == {99}
    assert text in children[0].output()
