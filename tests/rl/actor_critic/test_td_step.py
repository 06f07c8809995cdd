"""`td`: one step of the critics by hand, with critics whose values are known numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from pitune.rl.actor_critic.q_ensemble import QEnsemble
from pitune.rl.actor_critic.td import OffPolicy, OffPolicyConfig, explained_share, regression_loss

CONFIG = OffPolicyConfig(
    capacity=50, minibatch_size=8, hidden=(8,), discount=0.9, warmup_decisions=0
)
OBS, ACTION = torch.zeros(2, 1), torch.zeros(2, 2)


def learner(**changes: Any) -> OffPolicy:
    torch.manual_seed(0)
    return OffPolicy(replace(CONFIG, **changes), 3, torch.device("cpu"))


def say(ensemble: QEnsemble, values: Sequence[float]) -> None:
    """Give each critic a value that is the same everywhere."""
    with torch.no_grad():
        ensemble.head.weight.zero_()
        ensemble.head.bias.copy_(torch.tensor(values)[:, None, None])


def batch(elapsed: float = 0.25, next_elapsed: float = 0.5) -> TensorDict:
    """Return two sampled rows: the first goes on for a chunk of two steps, the second ends."""
    after = TensorDict({"elapsed": torch.full((2, 1), next_elapsed)}, [2])
    return TensorDict(
        {
            "elapsed": torch.full((2, 1), elapsed),
            "next": after,
            "discounted_reward": torch.tensor([2.0, 3.0]),
            "discount": torch.tensor([0.81, 0.9]),
            "ended": torch.tensor([False, True]),
        },
        [2],
    )


# The value of the next decision


@pytest.mark.parametrize(("pessimism", "expected"), [("min", 1.0), ("mean", 2.5)])
def test_the_next_value_is_that_of_the_target_critics(pessimism: Any, expected: float) -> None:
    memory = learner(num_critics=4, pessimism=pessimism)
    say(memory.target, [1, 2, 3, 4])
    say(memory.critic, [10, 20, 30, 40])
    assert memory.next_value(batch(), OBS, ACTION).tolist() == [expected] * 2


@pytest.mark.parametrize(("pessimism", "expected"), [("min", 10.0), ("mean", 25.0)])
def test_the_value_of_a_decision_is_that_of_all_trained_critics(
    pessimism: Any, expected: float
) -> None:
    memory = learner(num_critics=4, critic_subset=2, pessimism=pessimism)
    say(memory.target, [1, 2, 3, 4])
    say(memory.critic, [10, 20, 30, 40])
    found = {memory.value(batch(), OBS, ACTION)[0].item() for _ in range(20)}
    assert found == {expected}


def test_the_next_value_is_the_least_of_a_random_pair() -> None:
    """Of the six pairs of 1, 2, 3, 4 three have the least 1, two have 2 and one has 3."""
    memory = learner(num_critics=4, critic_subset=2)
    say(memory.target, [1, 2, 3, 4])
    drawn = [float(memory.next_value(batch(), OBS, ACTION)[0]) for _ in range(600)]
    shares = [drawn.count(value) / 600 for value in (1.0, 2.0, 3.0, 4.0)]
    assert shares == pytest.approx([1 / 2, 1 / 3, 1 / 6, 0], abs=0.06)


def last_entry(*inputs: Tensor) -> Tensor:
    """Values of one critic (1, N): the last number that it is given, the used time."""
    return torch.cat(inputs, -1)[None, :, -1]


@pytest.mark.parametrize(
    ("time_limit", "times"), [("terminal", (0.25, 0.5)), ("bootstrap", (0, 0))]
)
def test_each_value_has_the_used_time_of_its_own_observation(
    time_limit: Any, times: tuple[float, float]
) -> None:
    memory = learner(time_limit=time_limit)
    memory.target.forward = last_entry  # type: ignore[method-assign]
    original = QEnsemble.forward
    critic = memory.critic
    critic.forward = lambda *x: 0 * original(critic, *x) + last_entry(*x)  # type: ignore
    rows = batch()
    assert memory.value(rows, OBS, ACTION)[0].item() == times[0]
    assert float(memory.next_value(rows, OBS, ACTION)[0]) == times[1]
    metrics = memory.critic_step(rows, torch.zeros(2), OBS, ACTION)
    assert metrics["q"] == times[0]


# The step


def test_the_targets_and_the_loss_by_hand() -> None:
    """Targets 2 + 0.81 * 5 and 3, critics that say 1 and 4; squares are summed over the critics."""
    memory = learner(num_critics=2)
    say(memory.critic, [1, 4])
    metrics = memory.critic_step(batch(), torch.tensor([5.0, 7.0]), OBS, ACTION)
    targets = (2 + 0.81 * 5, 3.0)
    loss = sum(sum((value - target) ** 2 for target in targets) / 2 for value in (1, 4))
    assert metrics["td_target"] == pytest.approx(sum(targets) / 2)
    assert metrics["q_loss"] == pytest.approx(loss)
    assert metrics["q"] == pytest.approx(2.5)
    assert metrics["q_disagreement"] == pytest.approx(1.5)


def test_critics_explain_a_share_of_the_variance_of_their_targets() -> None:
    """Targets 1 and 3; two critics whose means 1 and 2 leave the errors 0 and 1."""
    memory = learner(num_critics=2)
    rows = TensorDict({"input": torch.zeros(2, 6), "target": torch.tensor([1.0, 3.0])}, [2])
    values = torch.tensor([[0.0, 2.0], [2.0, 2.0]])
    memory.critic.forward = lambda *x: values  # type: ignore[method-assign]
    _, metrics = regression_loss(memory.critic, rows)
    assert float(explained_share(metrics)["explained_variance"]) == 0.75
    rows["target"] = torch.ones(2)
    _, metrics = regression_loss(memory.critic, rows)
    assert math.isnan(float(explained_share(metrics)["explained_variance"]))


def test_critics_move_to_their_targets_and_the_target_critics_follow_them() -> None:
    """Adam's first step is the step size, in the direction of the error's sign."""
    memory = learner(num_critics=2, critic_learning_rate=0.1, target_update_rate=0.25)
    say(memory.critic, [1, 4])
    say(memory.target, [0, 8])
    old = [p.clone() for p in memory.target.parameters()]
    rows = batch()
    rows["ended"][:], rows["discounted_reward"][:] = True, 2.0
    memory.critic_step(rows, torch.zeros(2), OBS, ACTION)
    assert memory.critic.head.bias.flatten().tolist() == pytest.approx([1.1, 3.9])
    followed = [0.25 * 1.1, 0.75 * 8 + 0.25 * 3.9]
    assert memory.target.head.bias.flatten().tolist() == pytest.approx(followed)
    pairs = zip(old, memory.target.parameters(), memory.critic.parameters(), strict=True)
    for before, after, online in pairs:
        assert torch.allclose(after, 0.75 * before + 0.25 * online)


# The rows


def stored(num: int, reward: float) -> TensorDict:
    flag = torch.zeros(num, 1, dtype=torch.bool)
    return TensorDict(
        {
            "elapsed": torch.zeros(num, 1),
            "reward_steps": torch.full((num, 1), reward),
            "live": ~flag,
            "duration": torch.ones(num, 1, dtype=torch.int64),
            "terminated": flag,
            "truncated": flag.clone(),
            "next": TensorDict({"elapsed": torch.zeros(num, 1)}, [num]),
        },
        [num],
    )


@pytest.mark.parametrize("share", [0.25, 0.5, 0.875])
def test_the_share_of_demonstrations_is_theirs(share: float) -> None:
    memory = learner(offline_share=share)
    memory.replay.push(stored(5, 0.0))
    memory.store_demonstrations(stored(5, 1.0))
    reward = memory.sample()["discounted_reward"]
    assert int(reward.sum()) == round(8 * share)
    assert len(reward) == 8


def test_what_a_memory_counts_survives() -> None:
    first, second = learner(warmup_decisions=8), learner(warmup_decisions=8)
    assert [first.rounds_due(4) for _ in range(3)] == [0, CONFIG.warmup_rounds, 1]
    second.load_state(first.state())
    counts = ("num_warmup", "num_decisions", "num_rounds")
    assert [getattr(second, name) for name in counts] == [8, 4, 1]
