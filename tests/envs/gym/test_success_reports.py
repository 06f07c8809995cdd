"""`gym/<id>`: success in the guises of user-written environments, through workers and vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from pitune import envs, rl
from pitune.policies import Actor

LENGTH = 6


class Timer(gymnasium.Env):
    """State (time, seed, 0). An episode has six steps, or ends at the third one."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, report: Callable[[int], dict[str, Any]]) -> None:
        self.report, self.time, self.number = report, 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        self.time, self.number = 0, (seed or 0) % 7
        return self.obs(), {}

    def obs(self) -> np.ndarray:
        return np.array([self.time, self.number, 0], np.float32)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, Any]:
        self.time += 1
        return self.obs(), 1.0, False, False, self.report(self.time)


@pytest.fixture
def env_of() -> Iterator[Callable]:
    """Make `gym/Timer-v0` with a given report, as workers, in this process, or as a vector."""

    def make(report: Callable[[int], Any], kind: str = "local", num_envs: int = 2) -> Any:
        gymnasium.registry.pop("Timer-v0", None)
        modes = {"disabled": AutoresetMode.DISABLED, "same_step": AutoresetMode.SAME_STEP}
        if kind in modes:

            def vector(num_envs: int, max_episode_steps: int) -> SyncVectorEnv:
                single = [
                    lambda: gymnasium.wrappers.TimeLimit(Timer(report), max_episode_steps)
                ] * num_envs
                return SyncVectorEnv(single, autoreset_mode=modes[kind])

            gymnasium.register("Timer-v0", vector_entry_point=vector, max_episode_steps=LENGTH)
        else:
            gymnasium.register(
                "Timer-v0", entry_point=lambda: Timer(report), max_episode_steps=LENGTH
            )
        return envs.make(envs.EnvConfig(id="gym/Timer-v0", num_envs=num_envs, num_workers=0))

    yield make
    gymnasium.registry.pop("Timer-v0", None)


kinds = pytest.mark.parametrize("kind", ["local", "disabled", "same_step"])

HONORED = {
    "bool": lambda t: {"success": t == 3},
    "numpy bool": lambda t: {"success": np.bool_(t == 3)},
    "0-d array": lambda t: {"success": np.array(t == 3)},
    "0-d tensor": lambda t: {"success": torch.tensor(t == 3)},
    "int": lambda t: {"success": int(t == 3)},
    "float": lambda t: {"success": float(t == 3)},
    "robotics": lambda t: {"is_success": np.float32(t == 3)},
    "in the episode": lambda t: {"episode": {"success_once": t >= 3}},
    "in the last info": lambda t: {"success": True} if t == LENGTH else {},
    "in the last episode": lambda t: {"episode": {"success_once": True}} if t == LENGTH else {},
    "only at success": lambda t: {"success": True} if t == 3 else {},
}


@kinds
@pytest.mark.parametrize("name", HONORED)
def test_one_boolean_counts_wherever_it_is_reported(
    name: str, kind: str, env_of: Callable, tiny_policy: Callable
) -> None:
    env = env_of(HONORED[name], kind)
    assert env.spec.success_signal
    result = rl.evaluate(env, Actor(tiny_policy(3, 1)), 5)
    assert (result.success_rate, result.num_episodes) == (1.0, 5)
    assert result.length == [LENGTH] * 5
    assert result.rate("at_end") == float("in the" in name)


@kinds
def test_an_environment_without_success_has_a_return_only(
    kind: str, env_of: Callable, tiny_policy: Callable
) -> None:
    env = env_of(lambda t: {"task_success": t == 3}, kind)
    assert not env.spec.success_signal
    result = rl.evaluate(env, Actor(tiny_policy(3, 1)), 4)
    assert result.success_rate is None
    assert str(result) == "no success in info: return only, mean 6 (4 episodes)"
    # rollouts have no rate either, and algorithms that need one refuse
    algorithm = rl.PPO(rl.PPOConfig(), tiny_policy(3, 1))
    metrics = rl.rollout_metrics(rl.Rollouts(env, algorithm, 3, seed=0).collect())
    assert metrics["train/episodes"] == 2
    assert "train/success_rate" not in metrics
    for config in (rl.GRPOConfig(group_size=2), rl.FilteredBCConfig(), rl.EPOConfig(num_members=2)):
        refusing = rl.make(config, tiny_policy(3, 1))
        with pytest.raises(ValueError, match="needs a success signal, gym/Timer-v0 has none; rep"):
            rl.Rollouts(env, refusing, 3, seed=0)
    with pytest.raises(ValueError, match="gym/Timer-v0 reports no success, which selects the epi"):
        rl.collect_demonstrations(env, 2, seed=0)


REFUSED: dict[str, Callable[[int], dict[str, Any]]] = {
    "list": lambda t: {"success": [t == 3]},
    "tuple": lambda t: {"success": (t == 3,)},
    "dict": lambda t: {"success": {"task": t == 3}},
    "string": lambda t: {"success": str(t == 3)},
    "none": lambda t: {"success": None},
    "nan": lambda t: {"success": float("nan")},
    "minus": lambda t: {"success": 1 if t == 3 else -1},
    "progress": lambda t: {"is_success": 1.0 if t == 3 else 0.3},
    "array": lambda t: {"success": np.array([t == 3])},
    "two": lambda t: {"success": np.array([t == 3, True])},
    "tensor": lambda t: {"success": torch.tensor([t == 3])},
}


@kinds
@pytest.mark.parametrize("name", REFUSED)
def test_other_values_are_refused_when_the_environment_is_made(
    name: str, kind: str, env_of: Callable
) -> None:
    with pytest.raises(ValueError, match=r"gym/Timer-v0: info\['(is_)?success.* success flag"):
        env_of(REFUSED[name], kind)


@kinds
@pytest.mark.parametrize("value", [0.5, 2, float("nan"), [True]], ids=repr)
def test_a_value_that_turns_wrong_later_is_no_breakdown(
    value: Any, kind: str, env_of: Callable, tiny_policy: Callable
) -> None:
    if kind != "local" and isinstance(value, list):
        pytest.skip("Gymnasium cannot batch it")
    env = env_of(lambda t: {"success": value if t == 4 else 0.0}, kind)
    with pytest.raises(ValueError, match=r"gym/Timer-v0: info\['success.* is not a success flag"):
        rl.evaluate(env, Actor(tiny_policy(3, 1)), 4)


def test_the_message_survives_a_worker_process() -> None:
    gymnasium.register("Late-v0", entry_point=Late, max_episode_steps=LENGTH)
    env = envs.make(envs.EnvConfig(id="gym/Late-v0", num_envs=2, num_workers=1))
    try:
        env.reset(torch.arange(2))
        active, action = torch.ones(2, dtype=torch.bool), torch.zeros(2, 1)
        assert not env.step(action, active).info["success"].any()
        with pytest.raises(ValueError, match=r"info\['success'\]=0.5 of type float is not a succ"):
            env.step(action, active)
    finally:
        env.close()
        gymnasium.registry.pop("Late-v0")


class Late(Timer):
    """Reports a share at the second step."""

    def __init__(self) -> None:
        super().__init__(lambda t: {"success": 0.5 if t == 2 else 0})


@pytest.mark.parametrize("num_episodes", [1, 3, 9])
def test_a_vector_environment_that_was_used_before_plays_few_episodes(
    num_episodes: int, env_of: Callable, tiny_policy: Callable
) -> None:
    """Its running episodes cannot be held still, so they are given up."""
    env = env_of(HONORED["bool"], "disabled", num_envs=4)
    env.reset(torch.arange(4))
    env.step(torch.zeros(4, 1), torch.ones(4, dtype=torch.bool))
    result = rl.evaluate(env, Actor(tiny_policy(3, 1)), num_episodes)
    assert (result.num_episodes, result.success_rate) == (num_episodes, 1.0)
