"""`gym/<id>`: registered ids, keyword arguments, and vector environments."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from pitune import envs
from pitune.envs.gym.vector import GymnasiumVector

DISABLED, SAME_STEP, NEXT_STEP = (
    AutoresetMode.DISABLED,
    AutoresetMode.SAME_STEP,
    AutoresetMode.NEXT_STEP,
)


class Clock(gymnasium.Env):
    """State (seed, time), seed -1 without one. Ends at time `seed % 10`, never if that is 0."""

    observation_space: Any = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(0, 4, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, parts: bool = False) -> None:
        self.render_mode, self.parts = render_mode, parts
        self.state = np.zeros(2)
        if parts:
            self.observation_space = spaces.Dict({"hand": self.observation_space})

    def obs(self) -> Any:
        # Gymnasium keeps no copy of the last observation before a reset, so this is one.
        return {"hand": self.state.copy()} if self.parts else self.state.copy()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        self.state[:] = -1 if seed is None else seed, 0
        return self.obs(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.state[1] = np.nan if action[0] == 3 else self.state[1] + 1
        end = bool(self.state[1] == self.state[0] % 10)
        return self.obs(), float(action[0]), end, False, {"success": end}

    def render(self) -> np.ndarray:
        return np.full((2, 3, 3), self.state[1], np.uint8)


class Endless(gymnasium.vector.VectorEnv):
    """A batched simulator with one seed, which resets some environments or, if `deaf`, all."""

    metadata = {"autoreset_mode": DISABLED, "render_fps": 7}  # noqa: RUF012

    def __init__(self, num_envs: int, max_episode_steps: int = 3, deaf: bool = False) -> None:
        self.num_envs, self.deaf = num_envs, deaf
        self.single_observation_space = spaces.Box(-1, 9, (1,), np.float32)
        self.single_action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = spaces.Box(-1, 1, (num_envs, 1), np.float32)
        self.time = np.zeros((num_envs, 1), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        assert seed is None or isinstance(seed, int)
        mask = np.ones(self.num_envs, bool)
        if options is not None and not self.deaf:
            mask = options["reset_mask"]
        self.time[mask] = 0
        return self.time, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, ...]:  # type: ignore[override]
        self.time += 1
        no = np.zeros(self.num_envs, bool)
        return self.time, np.zeros(self.num_envs), no, no, {}  # type: ignore[return-value]


TOYS = {
    "pitune/Clock-v0": {"entry_point": Clock, "max_episode_steps": 30},
    "pitune/Hours-v0": {"entry_point": Clock, "nondeterministic": True},
    "pitune/Endless-v0": {"vector_entry_point": Endless, "max_episode_steps": 3},
}


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    for name, settings in TOYS.items():
        gymnasium.register(name, **settings)  # type: ignore[arg-type]
    yield
    for name in TOYS:
        del gymnasium.registry[name]


def make_gymnasium(
    name: str, num_envs: int, *, max_episode_steps: int | None = None, **kwargs: Any
) -> Any:
    """Return the adapter's environment without the checks around it."""
    config = envs.config_for(
        f"gym/{name}",
        num_envs=num_envs,
        num_workers=0,
        max_episode_steps=max_episode_steps,
        reward="dense",
        options=envs.GymOptions(kwargs=kwargs),
    )
    return envs.make(config).env


def seeds(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def step(env: Any, active: list[int], action: float = 1.0) -> Any:
    mask = torch.isin(torch.arange(env.spec.num_envs), torch.tensor(active))
    return env.step(torch.full((env.spec.num_envs, 1), action), mask)


def vector(mode: AutoresetMode, num_envs: int = 3, kind: Any = SyncVectorEnv) -> GymnasiumVector:
    env = kind([Clock] * num_envs, autoreset_mode=mode)
    return GymnasiumVector(env, id="toy", max_episode_steps=20)


def test_a_registered_environment_runs_under_the_contract() -> None:
    env = make_gymnasium("Pendulum-v1", 2)
    assert (env.spec.id, env.spec.state_dim, env.spec.action_high) == ("gym/Pendulum-v1", 3, (2.0,))
    assert (env.spec.max_episode_steps, env.spec.control_hz) == (200, 20)
    assert env.spec.simulator == f"gymnasium {gymnasium.__version__}"
    assert not env.spec.success_signal
    first = env.reset(seeds(3, 4))["state"]
    assert torch.equal(env.reset(seeds(4, 3))["state"], first.flip(0))
    result = step(env, [0])
    assert result.reward[0] < 0
    assert result.reward[1] == 0
    assert torch.equal(result.obs["state"][1], first.flip(0)[1])


def test_the_time_limit_is_the_registered_or_the_requested_one() -> None:
    assert make_gymnasium("pitune/Clock-v0", 1).spec.max_episode_steps == 30
    env = make_gymnasium("pitune/Clock-v0", 1, max_episode_steps=40)
    env.reset(seeds(0))
    for _ in range(39):
        assert not step(env, [0]).truncated.any()
    assert step(env, [0]).truncated.all()
    with pytest.raises(ValueError, match="pass max_episode_steps"):
        make_gymnasium("pitune/Hours-v0", 1)


def test_a_dict_of_unknown_keys_is_flattened_and_pictures_are_enabled() -> None:
    env = make_gymnasium("pitune/Clock-v0", 1, parts=True)
    assert env.reset(seeds(5))["state"].tolist() == [[5, 0]]
    assert env.render().shape == (1, 2, 3, 3)


def test_nondeterministic_environments_have_a_spec_without_exact_resets() -> None:
    env = make_gymnasium("pitune/Hours-v0", 1, max_episode_steps=5)
    assert not env.spec.deterministic_reset


def test_unusable_ids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"id='Pendulum-v7' .* near it are \['Pendulum-v1'"):
        make_gymnasium("Pendulum-v7", 1)
    with pytest.raises(ValueError, match=r"gym/CartPole-v1: action_space=Discrete\(2\)"):
        make_gymnasium("CartPole-v1", 1)


def test_an_id_that_is_only_a_vector_environment_is_made_as_one() -> None:
    env = make_gymnasium("pitune/Endless-v0", 2)
    assert isinstance(env, GymnasiumVector)
    assert (env.spec.max_episode_steps, env.spec.control_hz) == (3, 7)
    assert not env.spec.deterministic_reset
    env.reset(seeds(1, 2))
    step(env, [0, 1])
    assert env.reset(seeds(3), seeds(1))["state"].tolist() == [[1], [0]]
    step(env, [0, 1])
    # The time limit is ours: what the simulator does not end goes on unseen.
    assert step(env, [0, 1]).truncated.tolist() == [True, False]
    result = step(env, [1])
    assert result.truncated.tolist() == [False, True]
    assert result.obs["state"].tolist() == [[3], [3]]


def test_a_vector_environment_that_resets_too_many_raises() -> None:
    env = GymnasiumVector(Endless(2, deaf=True), id="toy", max_episode_steps=9)
    env.reset(seeds(1, 2))
    step(env, [0, 1])
    with pytest.raises(RuntimeError, match=r"toy: a reset of environments \[1\] changed others"):
        env.reset(seeds(3), seeds(1))


@pytest.mark.parametrize("mode", [DISABLED, SAME_STEP])
def test_frames_are_right_over_ends_that_are_staggered_and_together(mode: AutoresetMode) -> None:
    env = vector(mode)
    assert env.reset(seeds(102, 4, 14))["state"].tolist() == [[102, 0], [4, 0], [14, 0]]
    assert step(env, [0, 1, 2]).obs["state"].tolist() == [[102, 1], [4, 1], [14, 1]]
    result = step(env, [0, 1, 2])
    assert result.obs["state"].tolist() == [[102, 2], [4, 2], [14, 2]]
    assert result.terminated.tolist() == [True, False, False]
    assert result.info["success"].tolist() == [True, False, False]
    result = step(env, [1, 2])  # the results of the first are discarded
    assert result.obs["state"].tolist() == [[102, 2], [4, 3], [14, 3]]
    assert result.reward.tolist() == [0, 1, 1]
    result = step(env, [1, 2])
    assert result.obs["state"].tolist() == [[102, 2], [4, 4], [14, 4]]
    assert result.terminated.tolist() == [False, True, True]
    assert env.reset(seeds(7, 8), seeds(2, 0))["state"].tolist() == [[8, 0], [4, 4], [7, 0]]
    result = step(env, [0, 2])
    assert result.obs["state"].tolist() == [[8, 1], [4, 4], [7, 1]]
    assert env.spec.deterministic_reset


def test_the_first_reset_may_be_partial() -> None:
    env = vector(DISABLED)
    assert env.reset(seeds(5, 6), seeds(0, 2))["state"].tolist()[0] == [5, 0]
    assert step(env, [0, 2]).obs["state"].tolist()[2] == [6, 1]


def test_an_observation_that_is_not_finite_invalidates_its_episode() -> None:
    env = vector(DISABLED, 2)
    env.reset(seeds(0, 0))
    action = torch.tensor([[3.0], [1.0]])
    result = env.step(action, torch.tensor([True, True]))
    assert result.info["invalid"].tolist() == [True, False]
    assert result.truncated.tolist() == [True, False]
    assert result.obs["state"].tolist() == [[0, 0], [0, 1]]
    step(env, [1])
    assert env.reset(seeds(5), seeds(0))["state"].tolist() == [[5, 0], [0, 2]]


def test_returned_tensors_are_never_written_again() -> None:
    env = make_gymnasium("pitune/Endless-v0", 1)  # it reuses one buffer
    first = env.reset(seeds(1))
    second = step(env, [0])
    step(env, [0])
    assert first["state"].tolist() == [[0]]
    assert second.obs["state"].tolist() == [[1]]


def test_a_running_environment_cannot_be_held_still() -> None:
    env = vector(DISABLED)
    env.reset(seeds(0, 0, 0))
    with pytest.raises(ValueError, match=r"active environments \[0\] must be \[0, 1, 2\]"):
        step(env, [0])


def test_processes_of_gymnasium_take_seeds_too() -> None:
    env = vector(DISABLED, 2, kind=functools.partial(AsyncVectorEnv, context="fork"))
    assert env.reset(seeds(5, 1))["state"].tolist() == [[5, 0], [1, 0]]
    assert step(env, [0, 1]).terminated.tolist() == [False, True]
    assert env.reset(seeds(8), seeds(1))["state"].tolist() == [[5, 1], [8, 0]]
    assert env.spec.deterministic_reset
    env.close()
    env.close()


def test_unusable_vector_environments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"NEXT_STEP is not usable.*autoreset_mode=AutoresetMode"):
        vector(NEXT_STEP)
    with pytest.raises(ValueError, match="toy has no time limit of its own"):
        GymnasiumVector(Endless(1), id="toy")
    with pytest.raises(ValueError, match="toy has no expert"):
        vector(DISABLED).expert()
    with pytest.raises(RuntimeError, match="toy returned no pictures"):
        GymnasiumVector(
            SyncVectorEnv([Blank], autoreset_mode=DISABLED), id="toy", max_episode_steps=3
        ).render()


class Blank(Clock):
    """Returns no picture."""

    def render(self) -> None:  # type: ignore[override]
        return None


class Faulty(Clock):
    """Starts with an even seed are not finite, and action 4 exits."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        obs, info = super().reset(seed=seed)
        if seed is not None and seed > 10 and seed % 2 == 0:
            obs[1] = np.nan
        np.random.seed(0)  # noqa: NPY002
        return obs, {"instruction": f"wait until {seed % 3}"} if seed is not None else info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        if action[0] == 4:
            raise SystemExit(0)
        return super().step(action)


def faulty(num_envs: int = 2, **settings: Any) -> GymnasiumVector:
    env = SyncVectorEnv([Faulty] * num_envs, autoreset_mode=DISABLED)
    return GymnasiumVector(env, id="toy", max_episode_steps=20, **settings)


def test_a_start_that_is_not_finite_costs_its_episode() -> None:
    env = faulty()
    env.reset(seeds(15, 12))
    result = step(env, [0, 1])
    assert result.info["invalid"].tolist() == [False, True]
    assert result.truncated.tolist() == [False, True]
    assert env.reset(seeds(17), seeds(1))["state"].tolist() == [[15, 1], [17, 0]]
    assert not step(env, [0, 1]).info["invalid"].any()


def test_failures_of_a_vector_environment_in_a_row_are_limited() -> None:
    env = faulty(max_failures=2)
    env.reset(seeds(15, 12))
    step(env, [0, 1])
    env.reset(seeds(14), seeds(1))
    with pytest.raises(RuntimeError, match=r"toy: environment 1 .* in 2 episodes in a row"):
        step(env, [0, 1])


def test_a_vector_environment_that_exits_raises() -> None:
    env = faulty()
    env.reset(seeds(11, 13))
    with pytest.raises(RuntimeError, match=r"toy: step\(\) of the vector env(.|\n)*SystemExit: 0"):
        step(env, [0, 1], action=4.0)


def test_a_vector_environment_does_not_change_the_trainers_random_numbers() -> None:
    draws = []
    for with_env in (False, True):
        np.random.seed(3)  # noqa: NPY002
        if with_env:
            env = faulty()
            env.reset(seeds(11, 13))
            step(env, [0, 1])
        draws.append(np.random.random())  # noqa: NPY002
    assert draws[0] == draws[1]


def test_a_vector_environment_gives_its_instructions() -> None:
    env = faulty()
    assert env.spec.tasks == ("wait until 0", "wait until 1", "wait until 2")
    assert env.reset(seeds(11, 13))["task_id"].tolist() == [2, 1]
    assert step(env, [0, 1]).obs["task_id"].tolist() == [2, 1]
    chosen = faulty(tasks=("do it",))
    assert chosen.reset(seeds(11, 13))["task_id"].tolist() == [0, 0]


def test_a_sparse_reward_of_a_vector_environment_is_one_on_success() -> None:
    env = SyncVectorEnv([Clock] * 2, autoreset_mode=DISABLED)
    sparse = GymnasiumVector(env, id="toy", max_episode_steps=20, reward="sparse")
    sparse.reset(seeds(1, 5))
    assert step(sparse, [0, 1]).reward.tolist() == [1, 0]
    with pytest.raises(ValueError, match="reward='sparse' of toy is 1 on success"):
        GymnasiumVector(Endless(1), id="toy", max_episode_steps=9, reward="sparse")


def test_a_vector_environment_with_an_unseeded_start_is_recorded() -> None:
    class Unseeded(Clock):
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
            super().reset(seed=seed)
            self.state[1] = np.random.default_rng().uniform()
            return self.obs(), {}

    env = SyncVectorEnv([Unseeded] * 2, autoreset_mode=DISABLED)
    assert not GymnasiumVector(env, id="toy", max_episode_steps=9).spec.deterministic_reset
