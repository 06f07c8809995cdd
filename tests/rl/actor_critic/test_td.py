"""`td`: which transitions are booked, and what a critic is taught from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from pitune.envs import ChunkEnv, EpisodeSeeds
from pitune.envs.checked import CheckedEnv
from pitune.envs.mock.reach import Script
from pitune.rl.actor_critic.off_policy_config import OffPolicyConfig
from pitune.rl.actor_critic.td import OffPolicy
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.experience.transitions import encode_next, transitions

DISCOUNT = 0.9
CONFIG = OffPolicyConfig(
    capacity=50, minibatch_size=16, hidden=(8,), discount=DISCOUNT, warmup_decisions=0
)


@pytest.fixture
def rollout() -> TensorDictBase:
    """Return chunks of two steps of scripted episodes (3, 4); the reward of a step is its time.

    Environment 0 succeeds at step 3, 1 runs out of time at step 4, 2 fails at step 2.
    """
    script = Script(3, lengths=(3, 4, 2), ends=("success", "time", "failure"))
    env = ChunkEnv(CheckedEnv(script), 2, EpisodeSeeds(3, 0, "train"))
    td, columns = env.reset(), []
    for _ in range(4):
        td["action"] = torch.zeros(3, 2, 1)
        td, following = env.step_and_maybe_reset(td)
        columns.append(td)
        td = following
    return TensorDict.stack(columns, 1)


def booked(rollout: TensorDictBase) -> TensorDictBase:
    before, after = rollout.select("state"), sub_dict(rollout, "next").select("state")
    return transitions(rollout, before, after)


def learner(config: OffPolicyConfig = CONFIG) -> OffPolicy:
    torch.manual_seed(0)
    return OffPolicy(config, 3, torch.device("cpu"))


def sampled(rows: TensorDictBase, config: OffPolicyConfig) -> TensorDictBase:
    """Return many samples, one of each kind of row at least."""
    memory = learner(replace(config, minibatch_size=200))
    memory.replay.push(rows)
    return memory.sample()


def row_of(batch: TensorDictBase, env: int, time: float) -> TensorDictBase:
    found = (batch["state"][:, 0] == env) & (batch["state"][:, 2] == time)
    return sub_dict(sub_dict(batch, found), 0)


def test_rewards_and_discounts_of_chunks_by_hand(rollout: TensorDictBase) -> None:
    """Rewards 1, 2 | 3, ...: a chunk that ends inside is rewarded and discounted to its end."""
    batch = sampled(booked(rollout), CONFIG)
    by_hand = {
        # (environment, time): reward, discount, ended
        (0, 0): (1 + 0.9 * 2, 0.81, False),
        (0, 2): (3.0, 0.9, True),  # success at the chunk's first step
        (1, 0): (1 + 0.9 * 2, 0.81, False),
        (1, 2): (3 + 0.9 * 4, 0.81, False),  # the time ran out: values go on
        (2, 0): (1 + 0.9 * 2, 0.81, True),
    }
    for (env, time), (reward, discount, ended) in by_hand.items():
        row = row_of(batch, env, time)
        assert float(row["discounted_reward"]) == pytest.approx(reward)
        assert float(row["discount"]) == pytest.approx(discount)
        assert bool(row["ended"]) is ended, (env, time)


def test_a_time_limit_that_is_part_of_the_task_ends_it(rollout: TensorDictBase) -> None:
    batch = sampled(booked(rollout), replace(CONFIG, time_limit="terminal"))
    assert bool(row_of(batch, 1, 2)["ended"])
    assert not bool(row_of(batch, 1, 0)["ended"])


def test_the_next_observation_is_the_true_last_one(rollout: TensorDictBase) -> None:
    """Not the first of the episode after it."""
    rows = booked(rollout)
    last = row_of(rows, 1, 2)
    assert last["next", "state"][2] == 4
    assert last["next", "state"][1] == last["state"][1]  # the same episode
    assert float(last["next", "elapsed"]) == 1.0


def test_rewards_are_transformed_once_and_only_where_a_step_was_taken(
    rollout: TensorDictBase,
) -> None:
    config = replace(CONFIG, reward_scale=2.0, reward_offset=-1.0)
    memory = learner(replace(config, minibatch_size=200))
    memory.replay.push(booked(rollout))
    for _ in range(2):  # sampling twice transforms once
        batch = memory.sample()
        assert float(row_of(batch, 0, 0)["discounted_reward"]) == pytest.approx(1 + 0.9 * 3)
        assert float(row_of(batch, 0, 2)["discounted_reward"]) == pytest.approx(
            5.0
        )  # one step, one cost
    assert float(memory.replay.all()["reward_steps"].max()) == 4.0  # raw


def test_transitions_of_a_broken_simulator_are_not_learned(rollout: TensorDictBase) -> None:
    num = len(booked(rollout))
    assert num == 12
    rollout["next", "invalid"][1, 2] = True
    rows = booked(rollout)
    assert len(rows) == 11


def test_each_observation_is_encoded_once(rollout: TensorDictBase) -> None:
    asked = []

    def encode(obs: TensorDictBase) -> TensorDict:
        asked.append(len(obs))
        return TensorDict({"input": 10 * obs["state"]}, [len(obs)])

    rollout = sub_dict(
        rollout, (slice(None), slice(3))
    ).clone()  # in the last column two episodes go on
    rollout["encoded"] = TensorDict({"input": 10 * rollout["state"]}, rollout.batch_size)
    following = encode_next(rollout, sub_dict(rollout, "encoded"), encode)
    assert torch.equal(following["input"], 10 * rollout["next", "state"])
    ends = rollout["next", "done"].squeeze(-1)
    assert asked == [int((ends | (torch.arange(3) == 2)).sum())]
    assert asked[0] < rollout.numel()


def test_the_critics_do_not_see_the_time_when_values_go_on_past_it() -> None:
    rows = TensorDict({"elapsed": torch.tensor([[0.5], [1.0]])}, [2])
    assert learner().time(rows).tolist() == [[0.0], [0.0]]
    terminal = learner(replace(CONFIG, time_limit="terminal"))
    assert terminal.time(rows).tolist() == [[0.5], [1.0]]


@pytest.mark.parametrize(("rate", "pushes"), [(0.25, [10, 10, 1]), (2.0, [3, 1]), (0.3, [1] * 10)])
def test_rounds_follow_the_update_to_data_ratio(rate: float, pushes: list[int]) -> None:
    memory = learner(replace(CONFIG, updates_per_decision=rate))
    due = [memory.rounds_due(num) for num in pushes]
    assert sum(due) == int(rate * sum(pushes))
    assert all(abs(d - rate * n) <= 1 for d, n in zip(due, pushes, strict=True))


def test_a_critic_learns_the_value_of_a_chain_of_chunks() -> None:
    """Three decisions of durations 2, 1, 2 and a reward of 1 at the end: powers of the discount."""
    state = torch.eye(3)
    rows = TensorDict(
        {
            "state": state,
            "next": {"state": state.roll(-1, 0), "elapsed": torch.zeros(3, 1)},
            "elapsed": torch.zeros(3, 1),
            "reward_steps": torch.tensor([[0.0, 0], [0, 0], [0, 1]]),
            "live": torch.tensor([[True, True], [True, False], [True, True]]),
            "duration": torch.tensor([[2], [1], [2]]),
            "terminated": torch.tensor([[False], [False], [True]]),
            "truncated": torch.zeros(3, 1, dtype=torch.bool),
        },
        batch_size=[3],
    )
    config = replace(CONFIG, target_update_rate=0.1, critic_learning_rate=1e-2)
    memory = learner(config)
    memory.replay.push(rows)
    for _ in range(600):
        batch = memory.sample()
        with torch.no_grad():
            value = memory.next_value(batch, batch["next", "state"])
        metrics = memory.critic_step(batch, value, batch["state"])
    values = memory.value(rows, state)
    expected = [0.9**2 * 0.9 * 0.9, 0.9 * 0.9, 0.9]
    assert values.tolist() == pytest.approx(expected, abs=0.02)
    assert metrics["q_loss"] < 1e-2


def test_no_gradient_reaches_the_target_critic_or_the_next_value(rollout: TensorDictBase) -> None:
    memory = learner()
    memory.replay.push(booked(rollout))
    batch = memory.sample()
    next_value = torch.ones(16, requires_grad=True)
    memory.critic_step(batch, next_value, batch["state"])
    assert next_value.grad is None
    assert all(p.grad is None for p in memory.target.parameters())
    assert all(p.grad is not None for p in memory.critic.parameters())


def test_a_loss_that_is_not_finite_stops(rollout: TensorDictBase) -> None:
    memory = learner()
    memory.replay.push(booked(rollout))
    batch = memory.sample()
    with pytest.raises(
        FloatingPointError, match="critic loss is nan in round 0; no step was taken"
    ):
        memory.critic_step(batch, torch.full((16,), float("nan")), batch["state"])


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="updates_per_decision=0 must be above 0"):
        OffPolicyConfig(updates_per_decision=0)
    with pytest.raises(ValueError, match=r"critic_subset=3 must be between 0 \(all\) and num_cr"):
        OffPolicyConfig(critic_subset=3)
