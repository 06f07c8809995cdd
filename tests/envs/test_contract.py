"""The contract of `vector_env`, for every kind of environment, through `CheckedEnv`.

Letters: E envs, S state dim, A action dim.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from adapters import ENVIRONMENTS, LIMIT, NUM_ENVS
from torch import Tensor
from torchrl.envs.utils import check_env_specs

from pitune.envs import CheckedEnv, ChunkEnv, EpisodeSeeds, Starts, StepResult
from pitune.envs.mock.reach import Reach

ALL = torch.ones(NUM_ENVS, dtype=torch.bool)
SEEDS = torch.tensor([5, 5, 9])


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def shared_env(request: pytest.FixtureRequest) -> Iterator[CheckedEnv]:
    env = request.param()
    yield env
    env.close()


@pytest.fixture
def env(shared_env: CheckedEnv) -> CheckedEnv:
    """Return an environment whose episodes have the seeds 5, 5 and 9."""
    shared_env.reset(SEEDS)
    return shared_env


def bounds(env: CheckedEnv) -> tuple[Tensor, Tensor]:
    return env.low.expand(NUM_ENVS, -1), env.high.expand(NUM_ENVS, -1)


def middle_action(env: CheckedEnv) -> Tensor:
    """Return the middle of the action bounds (E, A)."""
    low, high = bounds(env)
    return (low + high) / 2


def deep_copy(value: Any) -> Any:
    """Return a deep copy of an observation or a result."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: deep_copy(item) for key, item in value.items()}
    return tuple(deep_copy(item) for item in value)


def assert_same(first: Any, second: Any, rows: Any = slice(None)) -> None:
    if isinstance(first, Tensor):
        assert torch.equal(first[rows], second[rows])
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key], rows)
    else:
        for left, right in zip(first, second, strict=True):
            assert_same(left, right, rows)


def comparable(env: CheckedEnv, state: Tensor) -> Tensor:
    """Return the part of states (E, S) that depends on the seed; Script begins with its row."""
    return state[:, 1:] if env.spec.id == "mock/Script" else state


# Results


def test_the_spec_is_complete(env: CheckedEnv) -> None:
    spec = env.spec
    assert spec.num_envs == NUM_ENVS
    assert spec.max_episode_steps == LIMIT
    assert len(spec.action_low) == len(spec.action_high) == spec.action_dim
    assert all(low < high for low, high in zip(spec.action_low, spec.action_high, strict=True))
    assert spec.control_hz > 0
    assert spec.tasks  # an instruction may be empty
    assert all(isinstance(task, str) for task in spec.tasks)
    assert spec.simulator
    prefix, _, name = spec.id.partition("/")
    assert prefix in {"mock", "mujoco", "gym", "maniskill", "metaworld", "libero"}
    assert name


def test_observations_and_results_agree_with_the_spec(env: CheckedEnv) -> None:
    spec = env.spec
    result = env.step(middle_action(env), ALL)
    for obs in (env.reset(SEEDS), result.obs):
        assert obs.keys() == {"state", "task_id", *(f"image/{name}" for name in spec.cameras)}
        assert obs["state"].shape == (NUM_ENVS, spec.state_dim)
        assert obs["state"].dtype == torch.float32
        assert obs["task_id"].shape == (NUM_ENVS,)
        assert obs["task_id"].dtype == torch.int64
        assert obs["task_id"].min() >= 0
        assert obs["task_id"].max() < len(spec.tasks)
        for name, shape in spec.cameras.items():
            assert obs[f"image/{name}"].shape == (NUM_ENVS, *shape)
            assert obs[f"image/{name}"].dtype == torch.uint8
        assert all(value.device == spec.device for value in obs.values())
    assert isinstance(result, StepResult)
    assert result.reward.shape == (NUM_ENVS,)
    assert result.reward.dtype == torch.float32
    assert {"success", "invalid"} <= result.info.keys()
    for flag in (result.terminated, result.truncated, *result.info.values()):
        assert flag.shape == (NUM_ENVS,)
        assert flag.dtype == torch.bool
        assert flag.device == spec.device


def test_returned_tensors_never_change_later(env: CheckedEnv) -> None:
    kept: list[Any] = [env.reset(SEEDS)]
    kept += [env.step(middle_action(env), ALL) for _ in range(2)]
    kept += [env.reset(torch.tensor([3]), torch.tensor([1]))]
    before = [deep_copy(value) for value in kept]
    env.step(bounds(env)[1], ALL)
    env.reset(SEEDS + 1)
    for value, saved in zip(kept, before, strict=True):
        assert_same(value, saved)


# Seeds and resets


def test_equal_seeds_are_equal_starts(env: CheckedEnv) -> None:
    if not env.spec.deterministic_reset:
        pytest.skip("a seed does not fix the start here")
    first = env.reset(SEEDS)
    state = comparable(env, first["state"])
    assert torch.equal(state[0], state[1])
    assert not torch.equal(state[0], state[2])
    assert first["task_id"][0] == first["task_id"][1]
    env.step(bounds(env)[1], ALL)
    env.step(bounds(env)[0], ALL)
    assert_same(env.reset(SEEDS), first)
    again = env.reset(SEEDS.flip(0))
    assert torch.equal(comparable(env, again["state"])[0], state[2])


def test_a_reset_of_some_environments_does_not_change_the_others(env: CheckedEnv) -> None:
    before = env.step(middle_action(env), ALL).obs
    others = [0, 2]
    after = env.reset(torch.tensor([11]), torch.tensor([1]))
    assert_same(after, before, others)
    assert not torch.equal(after["state"][1], before["state"][1])
    # The others are one step ahead of the one that was reset.
    for step in range(2, LIMIT + 1):
        result = env.step(middle_action(env), ALL)
        over = result.terminated | result.truncated
        if step == LIMIT:
            assert over[others].all()
            assert not over[1]
        elif over.any():
            return  # solved by accident


def test_environments_may_be_reset_in_any_order(env: CheckedEnv) -> None:
    if not env.spec.deterministic_reset:
        pytest.skip("a seed does not fix the start here")
    whole = env.reset(torch.tensor([21, 22, 23]))
    env.reset(torch.tensor([1, 2, 3]))
    parts = env.reset(torch.tensor([23, 21]), torch.tensor([2, 0]))
    assert_same(parts, whole, [0, 2])


# Steps


def test_rows_that_are_not_active_do_not_change(env: CheckedEnv) -> None:
    before = env.step(middle_action(env), ALL).obs
    action = bounds(env)[1].clone()
    action[1] = torch.nan  # must be ignored
    result = env.step(action, torch.tensor([True, False, True]))
    assert_same(result.obs, before, [1])
    assert result.reward[1] == 0
    for flag in (result.terminated, result.truncated, *result.info.values()):
        assert not flag[1]
    idle = env.step(action, ~ALL)
    assert_same(idle.obs, result.obs)
    assert not idle.reward.any()
    assert not (idle.terminated | idle.truncated).any()


def test_inactive_steps_do_not_count_towards_the_time_limit(env: CheckedEnv) -> None:
    """An environment that was inactive in two steps is truncated two steps later."""
    only_first = torch.tensor([True, False, False])
    for _ in range(2):
        env.step(middle_action(env), only_first)
    ended = torch.zeros(NUM_ENVS, dtype=torch.bool)
    for step in range(3, LIMIT + 3):
        result = env.step(middle_action(env), ~ended)
        if result.terminated.any():
            return  # solved by accident
        assert result.truncated[0] == (step == LIMIT)
        assert result.truncated[2] == (step == LIMIT + 2)
        ended |= result.truncated


def test_the_time_limit_truncates(env: CheckedEnv) -> None:
    active = ALL.clone()
    for step in range(1, LIMIT + 1):
        result = env.step(middle_action(env), active)
        assert not (result.terminated & result.truncated).any()
        assert not (result.info["success"] & ~result.terminated).any()
        expected = active & ~result.terminated if step == LIMIT else torch.zeros_like(active)
        assert torch.equal(result.truncated, expected)
        active = active & ~(result.terminated | result.truncated)
    assert not active.any()
    assert result.truncated.any()
    # There is no auto-reset.
    waiting = env.step(middle_action(env), ~ALL)
    assert_same(waiting.obs, result.obs)


def test_actions_outside_the_bounds_are_clipped_and_counted(env: CheckedEnv) -> None:
    entries, clipped = env.num_entries, env.num_clipped
    low, high = bounds(env)
    at_bound = env.step(high, ALL)
    assert (env.num_entries - entries, env.num_clipped - clipped) == (high.numel(), 0)
    env.reset(SEEDS)
    beyond = high.clone()
    beyond[0] += 5
    only_two = torch.tensor([True, True, False])
    clipped_result = env.step(beyond, only_two)
    if env.spec.deterministic_reset:
        assert_same(clipped_result.obs, at_bound.obs, [0, 1])
    assert env.num_clipped - clipped == env.spec.action_dim
    assert env.num_entries - entries == 5 * env.spec.action_dim
    env.step(low - 1, only_two)
    assert env.num_clipped - clipped == 3 * env.spec.action_dim


def test_equal_actions_from_equal_starts_are_equal_episodes(env: CheckedEnv) -> None:
    if not env.spec.deterministic_reset:
        pytest.skip("a seed does not fix the start here")
    low, high = bounds(env)
    generator = torch.Generator().manual_seed(0)
    actions = [low + (high - low) * torch.rand(1, 1, generator=generator) for _ in range(3)]
    first = [env.step(action, ALL) for action in actions]
    env.reset(SEEDS)
    second = [env.step(action, ALL) for action in actions]
    for left, right in zip(first, second, strict=True):
        assert_same(tuple(left), tuple(right))
        state = comparable(env, left.obs["state"])
        assert torch.equal(state[0], state[1])


# Errors


def test_wrong_actions_and_seeds_are_refused(env: CheckedEnv) -> None:
    dim = env.spec.action_dim
    for shape in ((NUM_ENVS, dim + 1), (NUM_ENVS - 1, dim), (dim,), (NUM_ENVS, 1, dim)):
        with pytest.raises(ValueError, match=r"action of shape .* must be \(3, .*\) for .*: 3 env"):
            env.step(torch.zeros(shape), ALL)
    action = middle_action(env).clone()
    action[2, 0] = torch.inf
    message = rf"action is not finite in environments \[2\] of {re.escape(env.spec.id)}"
    with pytest.raises(ValueError, match=message):
        env.step(action, ALL)
    env.step(action, torch.tensor([True, True, False]))
    with pytest.raises(ValueError, match=r"seed of shape \(2,\) must be \(3,\): one seed per env"):
        env.reset(SEEDS[:2])
    with pytest.raises(ValueError, match=r"seed of shape \(3,\) must be \(2,\): one seed per env"):
        env.reset(SEEDS, torch.tensor([0, 1]))


class Broken(Reach):
    """Reach with a number that is not finite in environment 1."""

    def __init__(self, wrong: str, where: str) -> None:
        super().__init__(NUM_ENVS)
        self.wrong, self.where = wrong, where

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Any:
        obs = super().reset(seed, env_idx)
        if self.where == "reset":
            obs[self.wrong][1] = torch.nan
        return obs

    def step(self, action: Tensor, active: Tensor, pictures: Tensor | None = None) -> Any:
        result = super().step(action, active, pictures)
        values = {"reward": result.reward, **result.obs}
        values[self.wrong][1] = torch.inf
        return result


@pytest.mark.parametrize("wrong", ["state", "reward"])
def test_results_that_are_not_finite_raise(wrong: str) -> None:
    env = CheckedEnv(Broken(wrong, "step"))
    env.reset(SEEDS)
    message = rf"{wrong} is not finite in environments \[1\] of mock/Reach"
    with pytest.raises(ValueError, match=message):
        env.step(torch.zeros(NUM_ENVS, 2), ALL)


def test_a_start_that_is_not_finite_raises() -> None:
    message = r"state is not finite in environments \[1\] of mock/Reach after reset"
    with pytest.raises(ValueError, match=message):
        CheckedEnv(Broken("state", "reset")).reset(SEEDS)


# Pictures, experts, TorchRL


def test_render_returns_pictures_or_names_the_cause(env: CheckedEnv) -> None:
    if env.spec.id == "mock/Script":
        with pytest.raises(RuntimeError, match="has no pictures; use mock/Reach"):
            env.render()
        return
    try:
        pictures = env.render()
    except RuntimeError as error:
        pytest.skip(f"this machine cannot render: {error}")
    assert pictures.dtype == torch.uint8
    assert pictures.ndim == 4
    assert (pictures.shape[0], pictures.shape[3]) == (NUM_ENVS, 3)
    assert pictures.float().std() > 0


def test_the_expert_acts_or_there_is_none(env: CheckedEnv) -> None:
    if env.spec.id in ("mock/Script", "gym/Pendulum-v1", "libero/goal/7"):
        with pytest.raises(ValueError, match="expert"):
            env.expert()
        return
    action = env.expert().act()
    assert action.shape == (NUM_ENVS, env.spec.action_dim)
    assert torch.isfinite(action).all()
    env.step(action, ALL)


def test_torchrl_accepts_the_specs(env: CheckedEnv) -> None:
    seeds = EpisodeSeeds(NUM_ENVS, 0, "train", starts=Starts.of(env.spec))
    check_env_specs(ChunkEnv(env, 2, seeds))
