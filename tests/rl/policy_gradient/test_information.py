"""Rewards without information: no policy takes a step on them, whatever the algorithm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune import envs, rl
from pitune.rl.experience.reward_record import RewardRecord
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.policy_gradient.advantage import group_relative, standardize
from pitune.rl.policy_gradient.information import LEAST_SHARE, Information
from settings import changed

CRITIC_BASED = ("ppo", "fpo", "epo")
OFF_POLICY = ("wsrl", "dgn", "dsrl")
UNINFORMATIVE = {"zero": 0.0, "cost of time": -1.0, "large": 1e6, "small": 0.1, "1/3": 1 / 3}


def new(name: str, policy: Any, demonstrations: Path | None = None) -> Any:
    """Return an algorithm that would train its policy from the first update on."""
    settings: dict[str, dict[str, Any]] = {
        "ppo": {"critic_warmup": 0},
        "fpo": {"critic_warmup": 0},
        "epo": {"critic_warmup": 0, "num_members": 2},
        "grpo": {"group_size": 2, "min_kept": 0.0},
    }
    off_policy = {"warmup_decisions": 16, "warmup_rounds": 8, "actor_every": 1, "hidden": (8, 8)}
    guided = {"offline_share": 0.0, "initial_fit_steps": 2}
    config = changed(rl.preset(name), minibatch_size=8, **settings.get(name, off_policy))
    if name == "dgn":
        assert demonstrations is not None
        config = changed(config.with_demonstrations(demonstrations), **guided)
    torch.manual_seed(0)
    return rl.make(config, policy)


def rollouts(algorithm: rl.Algorithm[Any], num: int) -> list[TensorDictBase]:
    """Return rollouts (8, 4) of `mock/Reach`, none of which ends by a success."""
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=8, num_workers=0, max_episode_steps=4)
    source = rl.Rollouts(envs.make(config), algorithm, 4, seed=0)
    found = [source.collect() for _ in range(num)]
    for rollout in found:
        outcome = sub_dict(rollout, "next")
        outcome["truncated"] |= outcome["terminated"]
        outcome["terminated"] = torch.zeros_like(outcome["terminated"])
        outcome["elapsed"][outcome["done"]] = 1.0
    return found


def weights(algorithm: rl.Algorithm[Any]) -> Tensor:
    """Return what the deployed policy and its noise are made of, as one vector."""
    parts = [*algorithm.actor.policy.parameters(), *algorithm.actor.parameters()]
    return torch.cat([p.detach().flatten().clone() for p in parts])


@pytest.mark.parametrize("reward", UNINFORMATIVE.values(), ids=UNINFORMATIVE.keys())
@pytest.mark.parametrize("name", [*CRITIC_BASED, *OFF_POLICY])
def test_equal_rewards_leave_the_policy_as_it_is(
    name: str, reward: float, tiny_policy: Callable, demonstrations_file: Path
) -> None:
    algorithm = new(name, tiny_policy(), demonstrations_file)
    before = weights(algorithm)
    for rollout in rollouts(algorithm, 3):
        rollout["next", "reward_steps"] = torch.full_like(rollout["next", "reward_steps"], reward)
        metrics = algorithm.update(rollout)
        assert metrics["informative"] == 0.0
        assert all(value == value for key, value in metrics.items() if "loss" in key)
    assert torch.equal(weights(algorithm), before)
    if name == "dsrl":
        assert metrics["steered"] == 0.0


@pytest.mark.parametrize("name", [*CRITIC_BASED, *OFF_POLICY])
def test_rewards_that_differ_move_the_policy(
    name: str, tiny_policy: Callable, demonstrations_file: Path
) -> None:
    algorithm = new(name, tiny_policy(), demonstrations_file)
    before = weights(algorithm)
    for rollout in rollouts(algorithm, 3):
        rollout["next", "reward_steps"] += torch.rand_like(rollout["next", "reward_steps"])
        metrics = algorithm.update(rollout)
    assert metrics["informative"] == 1.0
    assert not torch.equal(weights(algorithm), before)


@pytest.mark.parametrize("name", [*CRITIC_BASED, "grpo"])
@pytest.mark.parametrize("one_is_valid", [False, True])
def test_rollouts_in_broken_simulators_teach_nothing(
    name: str, one_is_valid: bool, tiny_policy: Callable
) -> None:
    algorithm = new(name, tiny_policy())
    before = weights(algorithm)
    for rollout in rollouts(algorithm, 2):
        rollout["next", "reward_steps"] = torch.zeros_like(rollout["next", "reward_steps"])
        invalid = torch.ones_like(rollout["next", "invalid"])
        invalid[0, 0] = not one_is_valid
        rollout["next", "invalid"] = invalid
        metrics = algorithm.update(rollout)
    assert torch.equal(weights(algorithm), before)
    if not one_is_valid:
        assert metrics["gradient_steps"] == 0.0


@pytest.mark.parametrize("reward", UNINFORMATIVE.values(), ids=UNINFORMATIVE.keys())
def test_groups_of_equal_scores_are_dropped_though_their_outcomes_differ(
    reward: float, tiny_policy: Callable
) -> None:
    algorithm = new("grpo", tiny_policy())
    (rollout,) = rollouts(algorithm, 1)
    outcome = sub_dict(rollout, "next")
    outcome["reward_steps"] = torch.full_like(outcome["reward_steps"], reward)
    outcome["success"] = outcome["done"] & (torch.arange(8) % 2 == 0)[:, None, None]
    before = weights(algorithm)
    metrics = algorithm.update(rollout)
    assert metrics["kept_groups"] == 0.0
    assert metrics["gradient_steps"] == 0.0
    assert torch.equal(weights(algorithm), before)


@pytest.mark.parametrize("name", CRITIC_BASED)
def test_adam_does_not_go_on_with_its_last_steps(name: str, tiny_policy: Callable) -> None:
    algorithm = new(name, tiny_policy())
    first, second = rollouts(algorithm, 2)
    first["next", "reward_steps"] += torch.rand_like(first["next", "reward_steps"])
    algorithm.update(first)
    algorithm.information.std = 0.0  # as if there had been no information
    before = weights(algorithm)
    second["next", "reward_steps"] = torch.zeros_like(second["next", "reward_steps"])
    metrics = algorithm.update(second)
    assert torch.equal(weights(algorithm), before)
    assert metrics["grad_norm"] == 0.0
    assert "ratio_deviation" in metrics
    assert "aggregated" not in metrics  # the decisions of other members of `epo`


@pytest.mark.parametrize("name", CRITIC_BASED)
def test_the_record_of_information_is_resumed(name: str, tiny_policy: Callable) -> None:
    first, second = new(name, tiny_policy()), new(name, tiny_policy())
    (rollout,) = rollouts(first, 1)
    rollout["next", "reward_steps"] += torch.rand_like(rollout["next", "reward_steps"])
    first.update(rollout)
    assert first.information.std > 0
    second.load_training_state(first.training_state())
    assert second.information.std == first.information.std
    old = {**first.extra_state()}
    del old["informative_std"]  # a checkpoint of pitune 0.2
    second.load_extra_state(old)
    assert second.information.std == 0.0


# Pieces


def record(reward: Tensor, end: Tensor) -> RewardRecord:
    found = RewardRecord()
    found._add(*((value, torch.ones_like(value, dtype=torch.bool)) for value in (reward, end)))
    return found


SAME, OTHER = torch.ones(3), torch.tensor([0.5, 1.0])


@pytest.mark.parametrize(
    ("reward", "end", "offset", "informative"),
    [
        (torch.zeros(4), SAME, 0.0, False),
        (torch.zeros(4), OTHER, 0.0, False),
        (torch.zeros(4), OTHER, -1.0, True),
        (torch.zeros(4), SAME, -1.0, False),
        (torch.full((4,), -1.0), SAME, 0.0, False),
        (torch.full((4,), -1.0), OTHER, 0.0, True),
        (torch.full((4,), -1.0), OTHER, 1.0, False),
        (torch.full((4,), 1e6) + torch.tensor([0.0, 0.06, 0.0, 0.0]), SAME, 0.0, False),
        (torch.tensor([0.0, 1e-9]), SAME, 0.0, True),
        (torch.tensor([0.0, 1.0]), SAME, 0.0, True),
        (torch.zeros(0), torch.zeros(0), 0.0, False),
        (torch.full((4,), -1.0), torch.zeros(0), 0.0, False),
    ],
)
def test_rewards_tell_actions_apart_if_they_or_the_lengths_they_count_differ(
    reward: Tensor, end: Tensor, offset: float, informative: bool
) -> None:
    found = record(reward, end)
    assert found.informative(offset=offset) is informative
    copy = RewardRecord()
    copy.load_state(found.state())
    assert copy == found


def played(reward: Tensor, done: bool = False) -> TensorDict:
    """Return a rollout (2, 1) with given rewards of its steps (2, 1, 3)."""
    outcome = {
        "reward_steps": reward,
        "live": torch.ones(2, 1, 3, dtype=torch.bool),
        "invalid": torch.zeros(2, 1, 1, dtype=torch.bool),
        "done": torch.full((2, 1, 1), done),
        "elapsed": torch.tensor([[[0.5]], [[1.0]]]),
    }
    return TensorDict({"next": TensorDict(outcome, [2, 1])}, [2, 1])


@pytest.mark.parametrize("excluded", ["live", "invalid"])
def test_rewards_of_steps_that_do_not_count_are_no_information(excluded: str) -> None:
    """One reward differs, in a step that was not executed or in a broken simulator."""
    reward = torch.zeros(2, 1, 3)
    reward[1, 0, 2] = 1.0
    for counts in (True, False):
        rollout, found = played(reward), RewardRecord()
        rollout["next", excluded][1] = counts if excluded == "live" else not counts
        found.add_rollout(rollout)
        assert found.informative() is counts


@pytest.mark.parametrize("broken", [False, True])
def test_the_end_of_a_broken_episode_is_no_information(broken: bool) -> None:
    rollout, found = played(torch.full((2, 1, 3), -1.0), done=True), RewardRecord()
    rollout["next", "invalid"][0] = broken
    found.add_rollout(rollout)
    assert found.informative() is not broken


def test_a_critic_judges_equal_rewards_while_its_advantages_stay_large() -> None:
    differ, equal = played(torch.rand(2, 1, 3)), played(torch.zeros(2, 1, 3))
    spread = torch.tensor([[-1.0], [1.0]])
    information = Information()
    assert not information.of(equal, spread)  # the critic never learned from a reward
    assert information.of(differ, spread)
    assert information.std == 1.0
    assert information.of(equal, 1.1 * LEAST_SHARE * spread)
    assert not information.of(equal, 0.9 * LEAST_SHARE * spread)
    assert not information.of(differ, torch.zeros(0, 1))


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_advantages_that_differ_by_rounding_become_zero(size: float) -> None:
    rounding = size * 1e-7 * torch.tensor([[1.0], [-1.0], [0.0]])
    assert not standardize(rounding, size=size).any()
    assert standardize(1e4 * rounding, size=size).abs().max() > 0.9


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_scores_that_differ_by_rounding_are_equal(scale: Any, size: float) -> None:
    score = size * torch.tensor([[1.0, 1.0 + 1e-7, 1.0], [0.0, 1.0, 0.5]])
    found = group_relative(score, torch.ones(2, 3, dtype=torch.bool), scale)
    assert not found[0].any()
    assert found[1].any()
