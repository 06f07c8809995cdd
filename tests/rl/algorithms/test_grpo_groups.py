"""`grpo`: groups with broken episodes, and rollouts that wait for an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase

from pitune import envs, rl
from pitune.policies import FlowPolicy
from pitune.rl.experience.sub_dict import sub_dict
from settings import changed

SETTINGS: dict[str, Any] = {"group_size": 3, "minibatch_size": 8, "num_epochs": 1}


@pytest.fixture
def policy(tiny_policy: Callable) -> FlowPolicy:
    return tiny_policy()


def new_grpo(policy: FlowPolicy, **changes: Any) -> rl.GRPO:
    torch.manual_seed(0)
    return rl.GRPO(changed(rl.GRPOConfig(), **{**SETTINGS, **changes}), policy)


Table = list[list[bool]]
WINS: Table = [
    [True, False],
    [False, True],
    [False, False],
    [True, True],
    [False, False],
    [False, True],
]
"""Success of two episodes of six environments. The groups have 1, 1, 1 and 2 wins of three."""


def ended(algorithm: rl.GRPO, wins: Table = WINS, broken: Table | None = None) -> TensorDictBase:
    """Return a rollout (6, 8) whose episodes end as in the tables (6, 2)."""
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=6, num_workers=0, max_episode_steps=7)
    rollout = rl.Rollouts(envs.make(config), algorithm, 9, seed=0).collect().clone()
    outcome = sub_dict(rollout, "next")
    done = outcome["done"].squeeze(-1)
    column = (done.long().cumsum(1) - 1).clamp(min=0)  # (E, T)
    tables = {"success": wins, "invalid": broken or [[False] * 2] * 6}
    for key, table in tables.items():
        outcome[key] = (done & torch.tensor(table).gather(1, column))[..., None]
    outcome["reward_steps"][:] = 0
    outcome["reward_steps"][..., 0] = outcome["success"].squeeze(-1).float()
    return rollout


def only(env: int, episode: int) -> Table:
    """Return a table (6, 2) that is true at one place."""
    return [[(e, n) == (env, episode) for n in range(2)] for e in range(6)]


def advantages(batch: TensorDictBase) -> dict[int, float]:
    """Return the advantage of each episode of a batch, by its number."""
    pairs = zip(batch["episode"].tolist(), batch["advantage"].flatten().tolist(), strict=True)
    return dict(pairs)


# Broken episodes


def test_a_group_whose_only_winner_broke_down_is_dropped(policy: FlowPolicy) -> None:
    algorithm = new_grpo(policy)
    batch, num_kept, _ = algorithm.prepare(ended(algorithm, broken=only(0, 0)))
    assert num_kept == 3
    assert not {0, 2, 4} & set(batch["episode"].tolist())  # the first episode of each of three


@pytest.mark.parametrize("shaped", [0.0, 0.01])
def test_a_group_whose_only_loser_broke_down_is_solved(policy: FlowPolicy, shaped: float) -> None:
    algorithm = new_grpo(policy)
    rollout = ended(algorithm, broken=only(4, 1))
    rollout["next", "reward_steps"] += shaped * torch.rand_like(rollout["next", "reward_steps"])
    batch, num_kept, metrics = algorithm.prepare(rollout)
    assert num_kept == 3
    assert not {7, 9, 11} & set(batch["episode"].tolist())
    assert metrics["solved_groups"] == 0.25


def test_one_of_two_winners_that_broke_down_leaves_the_other(policy: FlowPolicy) -> None:
    algorithm = new_grpo(policy, advantage_scale="none")
    batch, num_kept, _ = algorithm.prepare(ended(algorithm, broken=only(3, 1)))
    assert num_kept == 4
    found = advantages(batch)
    assert 7 not in found
    assert (found[9], found[11]) == pytest.approx((-0.5, 0.5))


def test_decisions_of_a_broken_episode_are_not_learned(policy: FlowPolicy) -> None:
    algorithm = new_grpo(policy)
    whole, *_ = algorithm.prepare(ended(algorithm))
    batch, *_ = algorithm.prepare(ended(algorithm, broken=only(2, 0)))
    assert set(whole["episode"].tolist()) - set(batch["episode"].tolist()) == {4}
    assert len(batch) < len(whole)


def test_a_group_that_failed_is_dropped(policy: FlowPolicy) -> None:
    algorithm = new_grpo(policy)
    wins = [[False, second] for _, second in WINS]
    assert algorithm.prepare(ended(algorithm, wins))[1] == 2


# Advantages


def test_dropped_groups_are_no_part_of_the_batchs_deviation(policy: FlowPolicy) -> None:
    algorithm = new_grpo(policy, advantage_scale="batch")
    wins = [[first and env < 3, False] for env, (first, _) in enumerate(WINS)]
    rollout = ended(algorithm, wins)
    plain, num_kept, _ = algorithm.prepare(rollout)
    assert num_kept == 1
    rollout["next", "reward_steps"][3:] = torch.rand(3, 8, 2)  # shaped rewards of a dropped group
    shaped, *_ = algorithm.prepare(rollout)
    assert advantages(shaped) == pytest.approx(advantages(plain))
    # scores 1, 0, 0: mean 1/3, mean square 2/9
    deviation = (2 / 9) ** 0.5
    expected = {0: 2 / 3 / deviation, 2: -1 / 3 / deviation, 4: -1 / 3 / deviation}
    assert advantages(plain) == pytest.approx(expected, rel=1e-4)


def test_the_discount_counts_steps_from_the_episodes_start(policy: FlowPolicy) -> None:
    algorithm = new_grpo(policy, discount=0.5, advantage_scale="none")
    rollout = ended(algorithm)
    batch, *_ = algorithm.prepare(rollout)
    first = rollout["next", "done"][0].flatten().nonzero()[0]  # chunk of the success
    steps = int(rollout["next", "duration"][0, : int(first)].sum())
    assert steps > 0
    assert advantages(batch)[0] == pytest.approx(0.5**steps * 2 / 3, rel=1e-4)


# Pending rollouts


@pytest.mark.parametrize("changes", [{}, {"level": "trajectory"}, {"weighting": "episode"}])
def test_episodes_of_two_rollouts_stay_apart(changes: dict, policy: FlowPolicy) -> None:
    algorithm = new_grpo(policy, **changes)
    batch, *_ = algorithm.prepare(ended(algorithm))
    num, numbers = len(batch), batch["episode"].unique()
    assert numbers[0] == 0
    algorithm.pending = [batch, batch.clone()]
    whole = algorithm._whole_batch()
    first, second = (set(part.tolist()) for part in whole["episode"].split(num))
    assert not first & second
    assert len(first) == len(second) == len(numbers)
    assert first | second == set(range(2 * len(numbers)))
    assert float(whole["weight"].mean()) == pytest.approx(1)
    assert algorithm.pending == []
    assert algorithm.num_pending_groups == 0


@pytest.mark.parametrize(("min_kept", "updates"), [(0.25, True), (0.3, False), (0.0, True)])
def test_an_update_needs_at_least_its_share_of_the_groups(
    min_kept: float, updates: bool, policy: FlowPolicy
) -> None:
    """One kept group of four."""
    algorithm = new_grpo(policy, min_kept=min_kept)
    wins = [[first and env < 3, False] for env, (first, _) in enumerate(WINS)]
    metrics = algorithm.update(ended(algorithm, wins))
    assert metrics["pending_groups"] == 1
    assert (metrics["gradient_steps"] > 0) is updates
    assert algorithm.num_pending_groups == (0 if updates else 1)


@torch.no_grad()
def test_the_loss_is_the_weighted_mean_of_the_decisions(policy: FlowPolicy) -> None:
    algorithm = new_grpo(policy)
    batch, *_ = algorithm.prepare(ended(algorithm))
    batch["weight"], batch["advantage"] = torch.rand(2, len(batch), 1)
    weighted = (batch["advantage"] * batch["weight"]).mean()  # at ratio 1
    assert float(algorithm.loss(batch)[0]) == pytest.approx(-float(weighted), rel=1e-4)
    assert float(weighted) != pytest.approx(float(batch["advantage"].mean()), rel=1e-3)


@torch.no_grad()
def test_the_sides_of_the_clip_are_its_own(policy: FlowPolicy) -> None:
    algorithm = new_grpo(policy, low=0.1, high=0.4)
    batch, *_ = algorithm.prepare(ended(algorithm))
    for shift, ratio in ((-1.0, 0.9), (1.0, 1.4)):
        moved = batch.copy()
        moved["action_log_prob"] = batch["action_log_prob"] - shift
        moved["advantage"] = torch.full_like(batch["advantage"], shift)
        loss, _ = algorithm.loss(moved)
        assert float(loss) == pytest.approx(-ratio * shift, rel=1e-4)
