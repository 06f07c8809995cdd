"""Acting while learning: bounded staleness, learning, resuming, and refusal by name."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pitune import envs, experiments, rl
from pitune.experiments.runs.loop.update import learn
from pitune.experiments.train import TrainConfig, Trainer, train
from pitune.experiments.training import acting
from pitune.experiments.training.acting import (
    ActingRollouts,
    acting_state,
    as_bytes,
    load_acting_state,
    of_bytes,
)
from pitune.rl.experience.rollouts import Rollouts

OFF_POLICY = [entry.name for entry in rl.registry.entries() if entry.off_policy]


@pytest.fixture
def config(run_of: Callable[..., TrainConfig]) -> TrainConfig:
    return run_of("dsrl", num_iterations=6, eval_every=3, act_while_learning=True)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_the_actions_are_one_update_old_and_no_more(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = []
    original = Trainer._iterate

    def iterate(trainer: Trainer) -> dict[str, float]:
        metrics = original(trainer)
        assert isinstance(trainer.rollouts, ActingRollouts)
        behind.append(trainer.rollouts.updates_behind)
        return metrics

    monkeypatch.setattr(Trainer, "_iterate", iterate)
    summary = train(config)
    assert summary["iterations"] == 6
    assert behind == [0, 1, 1, 1, 1, 1]
    steps = [float(row["env_steps"]) for row in rows(config.out)]
    assert steps == sorted(set(steps))
    assert float(rows(config.out)[-1]["replay_size"]) > 4 * 4 * 5  # all rollouts are learned from

    # a resumed run goes on, with new episodes
    again = train(replace(config, resume=True, num_iterations=8))
    assert again["iterations"] == 8


def test_times_are_those_of_this_process_and_the_speed_is_that_of_the_other(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: list[dict[str, Any]] = []

    def received(content: bytes) -> dict[str, Any]:
        replies.append(of_bytes(content))
        return replies[-1]

    def slow(*args: Any) -> dict[str, float]:
        metrics = learn(*args)
        time.sleep(1.5)  # the next rollout is there before it is needed
        return metrics

    monkeypatch.setattr(acting, "of_bytes", received)
    monkeypatch.setattr(experiments.train, "learn", slow)
    train(replace(config, num_iterations=3, num_chunks=100))
    for row, reply in zip(rows(config.out), replies, strict=False):
        assert float(row["seconds/simulator"]) >= 0
        assert float(row["seconds/policy"]) >= 0
        assert 0 < float(row["env_steps_per_second"]) <= reply["steps"] / reply["simulator"]


def test_an_older_rollout_is_refused(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acting, "MOST_UPDATES_BEHIND", 0)
    with pytest.raises(RuntimeError, match="a rollout is 1 updates behind, at most 0 are allowed"):
        train(config)


def test_a_failure_of_the_process_ends_the_run_with_its_reason(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(algorithm: rl.Algorithm) -> dict[str, Any]:
        return {**acting_state(algorithm), "networks": {}}

    monkeypatch.setattr(acting, "acting_state", wrong)
    with pytest.raises(RuntimeError, match=r"(?s)acting while learning failed: .*KeyError"):
        train(config)


@pytest.mark.parametrize("name", OFF_POLICY)
def test_another_process_acts_as_the_learner_does(
    name: str, tiny_policy: Callable, small_preset: Callable
) -> None:
    env = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7)
    learner = rl.make(small_preset(name), tiny_policy())
    rollouts = Rollouts(envs.make(env), learner, num_chunks=4, seed=0)
    for _ in range(3):
        learner.update(rollouts.collect())
    actor = rl.make(small_preset(name), tiny_policy())  # whose weights have not changed
    load_acting_state(actor, of_bytes(as_bytes(acting_state(learner))))
    found = []
    for algorithm in (learner, actor):
        torch.manual_seed(0)
        own = Rollouts(envs.make(env), algorithm, num_chunks=4, seed=0)
        own.restart(5)
        found.append(own.collect())
    assert torch.equal(found[0]["action"], found[1]["action"])


@pytest.mark.parametrize("name", ["ppo", "grpo", "bc", "recap", "es"])
def test_it_is_refused_for_algorithms_that_learn_on_policy(
    name: str, config: TrainConfig, small_preset: Callable
) -> None:
    # before the folder, the policy and the environment
    config = replace(config, checkpoint=Path("missing"))
    message = rf"act_while_learning=True is not supported by {name}, .*one of dgn, dsrl, wsrl"
    with pytest.raises(ValueError, match=message):
        train(replace(config, algorithm=small_preset(name)))
    assert not config.out.exists()
