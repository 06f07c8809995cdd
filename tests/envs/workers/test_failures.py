"""Starts and numbers that break down cost their episode, up to a limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pitune import envs, rl
from pitune.policies import Actor
from user_envs import make, play


@pytest.mark.parametrize("how", ["raise", "nan", "inf", "exit"])
def test_a_start_that_fails_costs_its_episode_and_the_next_seed_is_taken(how: str) -> None:
    env = make("BadStarts", kwargs={"how": how})
    states, ended, invalid = play(env, 200)
    assert 0 < invalid < 60
    assert ended > invalid
    assert all(np.isfinite(states[-1][row]).all() for row in range(4))
    assert env.spec.deterministic_reset


def test_a_failed_start_is_reported_at_its_first_step() -> None:
    env = make("BadStarts", 2, kwargs={"how": "raise"})
    good = env.reset(torch.tensor([2**30, 2**30 + 1]))["state"]
    after = env.reset(torch.tensor([101]), torch.tensor([0]))["state"]
    assert torch.equal(after, good)
    result = env.step(torch.zeros(2, 2), torch.tensor([True, True]))
    assert result.info["invalid"].tolist() == [True, False]
    assert result.truncated.tolist() == [True, False]
    assert result.reward.tolist() == [0, 0]
    assert env.render().shape == (2, 16, 16, 3)
    assert env.expert().act()[0].tolist() == [0, 0]


@pytest.mark.parametrize("num_rows", [2, 3])
def test_a_worker_that_dies_in_a_second_try_ends_the_new_episodes_of_its_other_rows(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make("BadStarts", 3, kwargs={"how": "raise"})
    pool = env.env._pool  # type: ignore[attr-defined]
    exchange, tries = pool.exchange, []

    def dies_in_the_second_try(method: str, rows: np.ndarray, *values: np.ndarray) -> Any:
        result = exchange(method, rows, *values)
        if method == "reset":
            tries.append(rows.tolist())
            result.failed = {0: "no place"}
            if len(tries) == 2:
                pool.lost[1] = "the worker ended"
        return result

    monkeypatch.setattr(pool, "exchange", dies_in_the_second_try)
    rows = torch.arange(num_rows)
    env.reset(2**30 + rows, rows)
    assert tries == [rows.tolist(), [0]]
    active = torch.arange(3) < num_rows
    result = env.step(torch.zeros(3, 2), active)
    assert result.info["invalid"].tolist() == [True, True, False]
    assert result.truncated.tolist() == [True, True, False]


def test_rollouts_and_evaluations_go_on_after_failed_starts(tiny_policy: Callable) -> None:
    """Two runs with the same seed have the same episodes, as a resumption needs."""
    rollouts = []
    for _ in range(2):
        env = make("BadStarts", kwargs={"how": "nan"})
        collected = rl.Rollouts(env, rl.make(rl.PPOConfig(), tiny_policy()), 30, seed=0)
        torch.manual_seed(0)
        rollouts.append(collected.collect())
    assert rollouts[0]["next", "invalid"].any()
    assert torch.equal(rollouts[0]["next", "state"], rollouts[1]["next", "state"])
    outcome = rl.evaluate(make("BadStarts", kwargs={"how": "raise"}), Actor(tiny_policy()), 40)
    assert outcome.num_invalid > 0
    assert outcome.num_episodes + outcome.num_invalid == 40


@pytest.mark.parametrize("max_failures", [1, 3, 12])
def test_failures_in_a_row_are_limited_by_an_option(max_failures: int) -> None:
    env = make("BadStarts", 1, max_failures=max_failures, kwargs={"how": "raise", "share": 1.0})
    for number in range(max_failures):
        env.reset(torch.tensor([1000 + number]))
        if number < max_failures - 1:
            assert env.step(torch.zeros(1, 2), torch.tensor([True])).info["invalid"].all()
    message = rf"broke down {max_failures} times in a row \(max_failures\)(.|\n)*cannot place the"
    with pytest.raises(RuntimeError, match=message):
        env.step(torch.zeros(1, 2), torch.tensor([True]))


@pytest.mark.parametrize("reward", ["sparse", "dense"])
@pytest.mark.parametrize(
    "numbers",
    [
        {"reward": float("nan")},
        {"reward": float("-inf")},
        {"reward": 1e39},
        {"state": float("nan")},
        {"state": 1e39},
    ],
)
def test_numbers_that_are_not_finite_cost_their_episode(
    numbers: dict[str, float], reward: Any
) -> None:
    _, ended, invalid = play(make("BadNumber", reward=reward, kwargs=numbers), 30)
    assert invalid == ended == 28


@pytest.mark.parametrize("value", ["0.5", "none", "two"])
def test_a_reward_that_is_no_number_is_refused_by_name(value: str) -> None:
    from pitune.envs.workers.spaces import to_number

    raw = {"0.5": "0.5", "none": None, "two": np.zeros(2)}[value]
    with pytest.raises(ValueError, match=r"gym/x: step\(\) returned reward=.*; return one number"):
        to_number(raw, "reward", "gym/x")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_sparse_reward_is_one_on_success_and_else_zero(num_workers: int) -> None:
    env = make("Shaped", num_workers=num_workers)
    env.reset(torch.arange(4))
    expert, rewards, flags = env.expert(), [], []
    for _ in range(12):
        result = env.step(expert.act(), torch.tensor([True] * 4))
        rewards.append(result.reward)
        flags.append(result.info["success"])
    assert torch.equal(torch.stack(rewards), torch.stack(flags).float())
    assert torch.stack(flags).any()
    env.close()
    dense = make("Shaped", reward="dense")
    dense.reset(torch.arange(4))
    assert (dense.step(torch.zeros(4, 2), torch.tensor([True] * 4)).reward < 0).all()


def test_a_sparse_reward_without_success_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"reward='sparse' of gym/user_envs:NoInfo-v0 is 1 on succ"
    ):
        make("NoInfo")
    assert not make("NoInfo", reward="dense").spec.success_signal


def test_a_control_rate_that_the_environment_states_is_kept() -> None:
    assert make("Point", control_hz=10.0).spec.control_hz == 10
    with pytest.raises(ValueError, match=r"control_hz=5 is not supported by gym/user_envs:Point"):
        make("Point", control_hz=5.0)
    assert make("NoRate", control_hz=5.0).spec.control_hz == 5
    assert isinstance(make("NoRate"), envs.CheckedEnv)
