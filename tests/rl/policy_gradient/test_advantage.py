"""`advantage`: generalized advantages of chunks, by hand, by a slow reference, by identities.

Letters: E envs, T decisions, h executed actions per chunk, d duration.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.policy_gradient.advantage import (
    TimeLimit,
    chunk_reward,
    generalized_advantage,
    standardize,
)

TERMINATED, TRUNCATED, RUNNING = "terminated", "truncated", "running"


def rollout_of(
    rewards: list[list[float]],
    ends: list[str],
    value: list[float],
    next_value: list[float],
    horizon: int,
) -> TensorDict:
    """Return the rollout (1, T) of one environment.

    Args:
        rewards: Rewards of the steps that each chunk executed.
        ends: How each chunk ends: TERMINATED, TRUNCATED or RUNNING.
        value: Of the observation before each chunk.
        next_value: Of the observation that each chunk ended in.
        horizon: h.
    """
    padded = [row + [0.0] * (horizon - len(row)) for row in rewards]
    live = [[j < len(row) for j in range(horizon)] for row in rewards]
    num = len(rewards)
    flags = {name: torch.tensor([end == name for end in ends]) for name in (TERMINATED, TRUNCATED)}
    after = {
        "reward_steps": torch.tensor(padded)[None],
        "live": torch.tensor(live)[None],
        "duration": torch.tensor([len(row) for row in rewards])[None, :, None],
        "state_value": torch.tensor(next_value)[None, :, None],
        "done": (flags[TERMINATED] | flags[TRUNCATED])[None, :, None],
        "invalid": torch.zeros(1, num, 1, dtype=torch.bool),
        **{name: flag[None, :, None] for name, flag in flags.items()},
    }
    before = torch.tensor(value)[None, :, None]
    return TensorDict({"state_value": before, "next": TensorDict(after, [1, num])}, [1, num])


def random_rollout(num_envs: int, num_chunks: int, horizon: int, seed: int) -> TensorDict:
    """Return a rollout with random rewards, values, durations and ends."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(num_envs, num_chunks, *shape, generator=generator)

    end = uniform(1)
    terminated, truncated = end < 0.15, (end > 0.7) & (end < 0.85)
    done = terminated | truncated
    full = torch.full((num_envs, num_chunks, 1), horizon)
    short = torch.randint(1, horizon + 1, full.shape, generator=generator)
    duration = torch.where(done, short, full)
    after = {
        "reward_steps": uniform(horizon) - 0.3,
        "live": torch.arange(horizon) < duration,
        "duration": duration,
        "state_value": 2 * uniform(1) - 1,
        "done": done,
        "terminated": terminated,
        "truncated": truncated,
        "invalid": torch.zeros_like(done),
    }
    size = [num_envs, num_chunks]
    return TensorDict({"state_value": 2 * uniform(1) - 1, "next": TensorDict(after, size)}, size)


def reference(
    rollout: TensorDict, discount: float, gae_lambda: float, time_limit: TimeLimit
) -> Tensor:
    """Return advantages (E, T) as sums over all that follows: O(T^2), double precision."""
    after = sub_dict(rollout, "next")
    num_envs, num_chunks = rollout.batch_size
    found = torch.zeros(num_envs, num_chunks, dtype=torch.float64)
    for i in range(num_envs):

        def surprise(t: int, i: int = i) -> float:
            rewards = after["reward_steps"][i, t].tolist()
            duration = int(after["duration"][i, t])
            gain = sum(discount**j * rewards[j] for j in range(duration))
            ended = after["done"] if time_limit == "terminal" else after["terminated"]
            if not ended[i, t]:
                gain += discount**duration * float(after["state_value"][i, t])
            return gain - float(rollout["state_value"][i, t])

        for t in range(num_chunks):
            weight = 1.0
            for later in range(t, num_chunks):
                found[i, t] += weight * surprise(later)
                if after["done"][i, later]:
                    break
                weight *= discount ** int(after["duration"][i, later]) * gae_lambda
    return found


# Worked by hand


def test_the_reward_of_a_chunk_discounts_each_step_and_skips_dead_ones() -> None:
    """1 + 2 / 2 + 4 / 4 = 3; the last without its dead third step: 2."""
    rewards = torch.tensor([[[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]])
    live = torch.tensor([[[True, True, True], [True, True, False]]])
    assert chunk_reward(rewards, live, 0.5).tolist() == [[[3.0], [2.0]]]


def test_two_chunks_by_hand() -> None:
    """Discount 1/2, lambda 1/2; the first lasts two steps, the second one, and terminates.

    d_2 = 4 - 1 = 3. d_1 = 1 + 2/2 + 1/4 * 1 - 2 = 0.25. A_1 = 0.25 + 1/4 * 1/2 * 3 = 0.625.
    """
    rollout = rollout_of([[1, 2], [4]], [RUNNING, TERMINATED], [2, 1], [1, 99], horizon=2)
    advantage, target = generalized_advantage(rollout, 0.5, 0.5, "bootstrap")
    assert advantage.flatten().tolist() == pytest.approx([0.625, 3])
    assert target.flatten().tolist() == pytest.approx([2.625, 4])
    assert advantage.shape == target.shape == (1, 2, 1)


def test_truncation_bootstraps_and_termination_does_not() -> None:
    """One step with reward 1 from a value of 2 into a value of 8, discount 1/2."""
    cases: dict[tuple[str, TimeLimit], int] = {
        (TERMINATED, "bootstrap"): 1 - 2,
        (TRUNCATED, "bootstrap"): 1 + 4 - 2,
        (TERMINATED, "terminal"): 1 - 2,
        (TRUNCATED, "terminal"): 1 - 2,
        (RUNNING, "bootstrap"): 1 + 4 - 2,
        (RUNNING, "terminal"): 1 + 4 - 2,
    }
    for (end, time_limit), expected in cases.items():
        rollout = rollout_of([[1.0]], [end], [2.0], [8.0], horizon=1)
        advantage, _ = generalized_advantage(rollout, 0.5, 0.9, time_limit)
        assert advantage.item() == pytest.approx(expected), (end, time_limit)


def test_lambda_zero_is_one_step_and_lambda_one_is_the_whole_return() -> None:
    """Rewards 1, 1, 1 at discount 1/2, then a value of 8; values 0.5 on the way.

    lambda 1: 1 + 1/2 + 1/4 + 8/8 - 1/2 = 2.25. lambda 0: 1 + 1/4 - 1/2 = 0.75.
    """
    rollout = rollout_of([[1.0]] * 3, [RUNNING] * 3, [0.5, 0.5, 0.5], [0.5, 0.5, 8.0], horizon=1)
    whole, _ = generalized_advantage(rollout, 0.5, 1.0, "bootstrap")
    step, _ = generalized_advantage(rollout, 0.5, 0.0, "bootstrap")
    assert whole[0, 0].item() == pytest.approx(2.25)
    assert step[0, 0].item() == pytest.approx(0.75)


# Against a slow reference


@pytest.mark.parametrize("time_limit", ["terminal", "bootstrap"])
@pytest.mark.parametrize(("discount", "gae_lambda"), [(0.9, 0.95), (1.0, 1.0), (0.5, 0.0)])
def test_advantages_equal_a_slow_reference(
    discount: float, gae_lambda: float, time_limit: TimeLimit
) -> None:
    """T-C2, over random durations and ends."""
    for seed in range(5):
        rollout = random_rollout(4, 9, 3, seed)
        expected = reference(rollout, discount, gae_lambda, time_limit)
        advantage, target = generalized_advantage(rollout, discount, gae_lambda, time_limit)
        assert torch.allclose(advantage.squeeze(-1).double(), expected, atol=1e-5)
        values = rollout["state_value"].squeeze(-1)
        assert torch.allclose(target.squeeze(-1), (expected + values).float(), atol=1e-5)


def test_the_two_time_limits_differ_where_time_ran_out() -> None:
    """Negative control: truncation taken for termination changes the numbers, and only there."""
    rollout = random_rollout(4, 9, 3, seed=0)
    assert rollout["next", "truncated"].any()
    first, second = (
        generalized_advantage(rollout, 0.9, 0.95, limit)[0] for limit in ("terminal", "bootstrap")
    )
    assert (first - second).abs().max() > 0.1
    rollout["next", "done"] = rollout["next", "terminated"]
    rollout["next", "truncated"][:] = False
    first, second = (
        generalized_advantage(rollout, 0.9, 0.95, limit)[0] for limit in ("terminal", "bootstrap")
    )
    assert torch.equal(first, second)


# A perfect critic


def perfect(ends: str, time_limit: TimeLimit, discount: float = 0.9) -> TensorDict:
    """Return chunks of an episode whose values are exactly those of its rewards.

    An episode of 8 steps in chunks of 3, so the last chunk executes two; then one of 9 steps whose
    first two chunks end the fragment.
    """
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(30, generator=generator).double().tolist()
    tail = 5.0  # what would have come after the time limit

    def value(step: int, length: int, end: str) -> float:
        """Value at a step of an episode that begins at reward 0."""
        gain = sum(discount ** (j - step) * rewards[j] for j in range(step, length))
        survives = end == TRUNCATED and time_limit == "bootstrap"
        return gain + (discount ** (length - step) * tail if survives else 0.0)

    chunks, kinds, before, after = [], [], [], []
    for start in (0, 3, 6):
        stop = min(8, start + 3)
        chunks.append(rewards[start:stop])
        kinds.append(ends if stop == 8 else RUNNING)
        before.append(value(start, 8, ends))
        after.append(value(stop, 8, ends) if stop < 8 else (tail if ends == TRUNCATED else 77.0))
    for start in (0, 3):
        chunks.append(rewards[start : start + 3])
        kinds.append(RUNNING)
        before.append(value(start, 9, TERMINATED))
        after.append(value(start + 3, 9, TERMINATED))
    return rollout_of(chunks, kinds, before, after, horizon=3)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("time_limit", ["terminal", "bootstrap"])
@pytest.mark.parametrize("end", [TERMINATED, TRUNCATED])
def test_a_perfect_critic_is_never_surprised(
    end: str, time_limit: TimeLimit, gae_lambda: float
) -> None:
    """T-C1: ends inside a chunk, in the middle and at the end of a fragment."""
    rollout = perfect(end, time_limit)
    for last in (3, 5):  # the fragment stops at the episode's end, or inside the next episode
        fragment = sub_dict(rollout, (slice(None), slice(last)))
        advantage, _ = generalized_advantage(fragment, 0.9, gae_lambda, time_limit)
        assert advantage.abs().max() < 1e-5


def test_a_perfect_critic_is_surprised_by_truncation_taken_for_an_end() -> None:
    """Negative control of T-C1: the last chunk of two steps misses discount^2 * 5."""
    rollout = perfect(TRUNCATED, "bootstrap")
    advantage, _ = generalized_advantage(rollout, 0.9, 0.0, "terminal")
    assert advantage.flatten().tolist() == pytest.approx([0, 0, -0.81 * 5, 0, 0], abs=1e-5)


# Chunks are semi-Markov


def merged(rollout: TensorDict, horizon: int) -> TensorDict:
    """Return the same steps (1, T) as chunks of h steps (1, T / h)."""
    after = sub_dict(rollout, "next")
    num = rollout.batch_size[1] // horizon
    first, last = torch.arange(num) * horizon, torch.arange(num) * horizon + horizon - 1
    joined: dict[str, Any] = {
        key: after[key][:, last] for key in ("done", "terminated", "truncated", "state_value")
    }
    joined["reward_steps"] = after["reward_steps"].reshape(1, num, horizon)
    joined["live"] = torch.ones(1, num, horizon, dtype=torch.bool)
    joined["duration"] = torch.full((1, num, 1), horizon)
    joined["invalid"] = torch.zeros(1, num, 1, dtype=torch.bool)
    before = rollout["state_value"][:, first]
    return TensorDict({"state_value": before, "next": TensorDict(joined, [1, num])}, [1, num])


def test_chunks_and_single_steps_have_the_same_return() -> None:
    """T-C7: with lambda 1, decisions of four steps see what decisions of one step see."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(12, generator=generator)[:, None].tolist()
    values = torch.rand(12, generator=generator).tolist()
    ends = [RUNNING] * 7 + [TERMINATED] + [RUNNING] * 4
    steps = rollout_of(rewards, ends, values, [*values[1:], 0.3], horizon=1)
    chunks = merged(steps, 4)
    single, _ = generalized_advantage(steps, 0.9, 1.0, "bootstrap")
    joint, _ = generalized_advantage(chunks, 0.9, 1.0, "bootstrap")
    assert torch.allclose(joint, single[:, ::4], atol=1e-6)
    # Negative control, what published codes do: sum the rewards, discount once per chunk.
    chunks["next", "duration"][:] = 1
    chunks["next", "reward_steps"][..., 0] = chunks["next", "reward_steps"].sum(-1)
    chunks["next", "reward_steps"][..., 1:] = 0
    naive, _ = generalized_advantage(chunks, 0.9, 1.0, "bootstrap")
    assert (naive - joint).abs().max() > 0.1


# What must not be read


def test_what_comes_after_an_end_changes_nothing_before_it() -> None:
    """T-C4."""
    rollout = random_rollout(4, 9, 3, seed=1)
    rollout["next", "done"][:, 5] = rollout["next", "truncated"][:, 5] = True
    first, _ = generalized_advantage(rollout, 0.9, 0.95, "bootstrap")
    for i in range(4):
        end = int(rollout["next", "done"][i].flatten().nonzero()[0])
        rollout["next", "reward_steps"][i, end + 1 :] += 100
        rollout["state_value"][i, end + 1 :] -= 100
        rollout["next", "state_value"][i, end + 1 :] += 100
    second, _ = generalized_advantage(rollout, 0.9, 0.95, "bootstrap")
    for i in range(4):
        end = int(rollout["next", "done"][i].flatten().nonzero()[0])
        assert torch.equal(first[i, : end + 1], second[i, : end + 1])
        assert not torch.equal(first[i], second[i])


def test_dead_steps_of_a_chunk_change_nothing() -> None:
    """T-C4, inside a chunk."""
    rollout = random_rollout(4, 9, 3, seed=1)
    first, _ = generalized_advantage(rollout, 0.9, 0.95, "bootstrap")
    dead = ~rollout["next", "live"]
    assert dead.any()
    rollout["next", "reward_steps"][dead] = 1e6
    second, _ = generalized_advantage(rollout, 0.9, 0.95, "bootstrap")
    assert torch.equal(first, second)


def test_the_value_after_a_termination_is_not_read() -> None:
    rollout = random_rollout(4, 9, 3, seed=2)
    first, _ = generalized_advantage(rollout, 0.9, 0.95, "bootstrap")
    rollout["next", "state_value"][rollout["next", "terminated"]] = 1e6
    second, _ = generalized_advantage(rollout, 0.9, 0.95, "bootstrap")
    assert torch.equal(first, second)


@pytest.mark.parametrize("time_limit", ["terminal", "bootstrap"])
def test_a_simulator_that_breaks_down_is_no_failure_of_the_policy(time_limit: TimeLimit) -> None:
    """Its episode is cut off, not ended: the chunk before continues past it with the value."""
    rollout = rollout_of([[0.0]] * 2, [RUNNING, TRUNCATED], [4, 2], [2, 1], horizon=1)
    rollout["next", "invalid"][0, 1] = True
    advantage, _ = generalized_advantage(rollout, 0.5, 1.0, time_limit)
    # d_2 = 1/2 * 1 - 2 = -1.5; d_1 = 1/2 * 2 - 4 = -3; A_1 = -3 - 1.5 / 2.
    assert advantage.flatten().tolist() == pytest.approx([-3.75, -1.5])


# Standardizing


def test_standardized_advantages_have_mean_zero_and_deviation_one() -> None:
    advantage = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    found = standardize(advantage)
    # Mean 3, variance (4 + 1 + 0 + 9) / 4.
    expected = (advantage - 3) / 3.5**0.5
    assert torch.allclose(found, expected, atol=1e-4)
    assert found.mean().abs() < 1e-6


@pytest.mark.parametrize("value", [0.0, 0.3, -7.0, 1e4])
def test_equal_advantages_become_zero(value: float) -> None:
    assert torch.equal(standardize(torch.full((5, 1), value)), torch.zeros(5, 1))


def test_rounding_errors_are_not_blown_up() -> None:
    noise = 1e-7 * torch.tensor([[1.0], [-1.0], [0.5]])
    assert torch.equal(standardize(0.25 + noise), torch.zeros(3, 1))
    assert standardize(torch.tensor([[1e-3], [-1e-3]])).abs().max() > 0.9
