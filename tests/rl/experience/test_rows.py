"""`transitions`, `demonstrations`: rows and their next observations, by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tensordict import TensorDictBase

from observations import observed
from pitune import rl
from pitune.envs import CheckedEnv, EpisodeSeeds, StepResult
from pitune.envs.mock.reach import Reach
from pitune.policies import FlowPolicy
from pitune.rl import Demonstrations, collect_demonstrations
from pitune.rl.experience.transitions import encode_next, normalize_chunk, transitions

# Demonstrations


@pytest.mark.parametrize(
    ("num_steps", "following", "durations"),
    [
        (1, [1, 2, 3, 4, 4, 6, 7, 7], [1] * 8),
        (2, [2, 3, 4, 4, 4, 7, 7, 7], [2, 2, 2, 2, 1, 2, 2, 1]),
        (4, [4, 4, 4, 4, 4, 7, 7, 7], [4, 4, 3, 2, 1, 3, 2, 1]),
    ],
)
def test_transitions_of_demonstrations_by_hand(
    num_steps: int, following: list[int], durations: list[int]
) -> None:
    """An episode of five steps and one of three, whose last steps are successes."""
    state = torch.arange(8.0)[:, None]
    table = Demonstrations(
        obs={"state": state}, action=10 * state, episode=torch.tensor([0] * 5 + [1] * 3)
    )
    rows = table.transitions(num_steps)
    assert rows["next", "state"].flatten().tolist() == following
    assert table.step_after(num_steps).tolist() == following
    assert rows["duration"].flatten().tolist() == durations
    left = [5, 4, 3, 2, 1, 3, 2, 1]
    assert rows["terminated"].flatten().tolist() == [num <= num_steps for num in left]
    live = [[j < num for j in range(num_steps)] for num in left]
    assert rows["live"].tolist() == live
    reward = [[float(j == num - 1) for j in range(num_steps)] for num in left]
    assert rows["reward_steps"].tolist() == reward
    assert not rows["truncated"].any()
    assert rows["next", "elapsed"].eq(0).all()


def test_the_experts_actions_are_kept_inside_the_bounds() -> None:
    env = CheckedEnv(Reach(4))
    expert = env.expert()

    class Wild:
        """An expert that is right but for its size."""

        def act(self) -> torch.Tensor:
            return 100 * expert.act()

    env.expert = Wild  # type: ignore[method-assign]
    found = collect_demonstrations(env, 4, seed=0)
    assert (found.action <= env.high).all()
    assert (found.action >= env.low).all()
    assert found.action.abs().max() == env.high.max()


def test_a_success_of_an_episode_that_is_over_is_none() -> None:
    """The first environment fails at once, and reports success while it waits for the others."""

    class Careless(Reach):
        def step(
            self,
            action: torch.Tensor,
            active: torch.Tensor,
            pictures: torch.Tensor | None = None,
        ) -> StepResult:
            result = super().step(action, active, pictures)
            fails = torch.tensor([True, False, False, False])
            success = (result.info["success"] & ~fails) | ~active
            return result._replace(
                terminated=result.terminated | (fails & active),
                info={**result.info, "success": success},
            )

    found = collect_demonstrations(CheckedEnv(Careless(4)), 3, seed=0)
    seeds = EpisodeSeeds(4, 0, "demonstrations").next(torch.arange(4))
    starts = Reach(4).reset(seeds)["state"][1:]
    state = found.obs["state"]
    assert isinstance(state, torch.Tensor)
    first = [int((found.episode == episode).nonzero()[0]) for episode in range(3)]
    assert torch.equal(state[first], starts)


# Rollouts


@pytest.mark.parametrize("group_size", [1, 2])
def test_rollouts_begin_with_the_starts_of_training(group_size: int, tiny_policy: Callable) -> None:
    env = CheckedEnv(Reach(4))
    algorithm = rl.PPO(rl.PPOConfig(), tiny_policy())
    algorithm.needs = rl.Needs(group_size=group_size)
    rollout = rl.Rollouts(env, algorithm, 2, seed=5).collect()
    seeds = EpisodeSeeds(4, 5, "train", group_size).next(torch.arange(4))
    assert torch.equal(rollout["state"][:, 0], Reach(4).reset(seeds)["state"])


def rollout_of(policy: FlowPolicy) -> TensorDictBase:
    """Return two environments of three decisions; the first's episode ends at the second."""
    torch.manual_seed(0)
    done = torch.tensor([[False, True, False], [False, False, False]])[..., None]
    flags = {key: torch.zeros_like(done) for key in ("terminated", "truncated", "invalid")}
    outcome = {
        **flags,
        "done": done,
        "elapsed": torch.rand(2, 3, 1),
        "reward_steps": torch.rand(2, 3, 2),
        "live": torch.ones(2, 3, 2, dtype=torch.bool),
        "duration": torch.full((2, 3, 1), 2),
    }
    rows, after = (observed(policy, torch.rand(6, 4)).reshape(2, 3) for _ in range(2))
    rows["elapsed"], rows["next"] = torch.rand(2, 3, 1), after.update(outcome)
    rows["action"] = torch.rand(2, 3, 2, 2)
    return rows


def test_each_row_has_the_times_of_its_two_observations(tiny_policy: Callable) -> None:
    rollout = rollout_of(tiny_policy())
    rollout["next", "invalid"][0, 2] = True
    rows = transitions(rollout, {"a": rollout["state"]}, {"b": rollout["next", "state"]})
    kept = [0, 1, 3, 4, 5]
    assert torch.equal(rows["elapsed"], rollout["elapsed"].flatten(0, 1)[kept])
    assert torch.equal(rows["next", "elapsed"], rollout["next", "elapsed"].flatten(0, 1)[kept])
    assert torch.equal(rows["a"], rollout["state"].flatten(0, 1)[kept])
    assert torch.equal(rows["next", "b"], rollout["next", "state"].flatten(0, 1)[kept])


def test_encodings_come_from_the_next_decision_or_from_the_last_observation(
    tiny_policy: Callable,
) -> None:
    rollout = rollout_of(tiny_policy())
    before = rollout.clone()
    own = torch.arange(6.0).reshape(2, 3, 1)
    found = encode_next(rollout, own, lambda obs: -obs["state"][:, :1])
    last = -rollout["next", "state"][..., :1]
    expected = torch.stack([own[:, 1], own[:, 2], last[:, 2]], 1)
    expected[0, 1] = last[0, 1]  # the end of an episode
    assert torch.equal(found, expected)
    assert (rollout == before).all()  # the encodings are new, and the ends are as they were
    assert torch.equal(own, torch.arange(6.0).reshape(2, 3, 1))


@pytest.mark.parametrize("mask", [(), (True, False), (True, True)])
def test_a_chunk_is_normalized_as_the_policy_learned_it(
    mask: tuple[bool, ...], tiny_policy: Callable
) -> None:
    """Relative to the state at the decision where the policy's actions are relative."""
    policy = tiny_policy()
    config = replace(policy.preprocessor.config, delta_mask=mask)
    policy = FlowPolicy(policy.network, config, policy.sampler)
    rows = rollout_of(policy)
    origin = rows["state"][..., :2] * torch.tensor([*mask, False, False][:2])
    scaling = policy.preprocessor
    by_hand = (rows["action"] - origin[..., None, :] - scaling.action_offset) / scaling.action_scale
    found = normalize_chunk(policy, rows.flatten())
    assert torch.allclose(found, by_hand.reshape(6, 4), atol=1e-5)
