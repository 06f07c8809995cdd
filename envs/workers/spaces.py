"""The description of a sub-environment, its action bounds, and the numbers that it returns.

Letters: E envs, s robot state dim, d robot action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv


@dataclass(frozen=True, kw_only=True)
class SubEnvSpec:
    """The description of one sub-environment.

    Example:
        >>> spec = SubEnvSpec(
        ...     state_dim=3,
        ...     cameras={"top": (3, 64, 64)},
        ...     action_low=(-2.0,),
        ...     action_high=(2.0,),
        ...     max_episode_steps=200,
        ...     control_hz=20.0,
        ...     success_signal=False,
        ...     expert=False,
        ... )
        >>> spec.instructions, spec.seeded_starts
        ((), True)
    """

    state_dim: int
    """s."""
    cameras: Mapping[str, tuple[int, int, int]]
    """Camera name -> (C, Y, X)."""
    action_low: tuple[float, ...]
    """(d) [robot units]."""
    action_high: tuple[float, ...]
    """(d) [robot units]."""
    max_episode_steps: int | None
    """Time limit that the sub-environment applies itself. None if it has none."""
    control_hz: float | None
    """Steps per simulated second [Hz]. None if it is unknown."""
    success_signal: bool
    """Whether `info` reports success, see `pitune.envs.success`."""
    expert: bool
    """Whether there is a method `expert_action`."""
    num_tasks: int = 1
    """Number of values of `task_id` in the observation."""
    instructions: tuple[str, ...] = ()
    """Instructions that the sub-environment gave in several episodes."""
    seeded_starts: bool = True
    """Whether two resets with one seed gave the same observation."""


def read_actions(env_id: str, action: spaces.Space[Any]) -> dict[str, tuple[float, ...]]:
    """Return the bounds of the actions, `action_low` and `action_high`.

    Raises:
        ValueError: a policy cannot use the action space.
    """
    if not isinstance(action, spaces.Box):
        raise ValueError(
            f"{env_id}: action_space={action} is not continuous; only a bounded Box is supported, "
            "choose a continuous variant of the environment"
        )
    if np.dtype(action.dtype).kind != "f":
        raise ValueError(
            f"{env_id}: action_space={action} has integers, to which an action would be cut; make "
            "it a Box of floats, and round inside the environment where that is meant"
        )
    if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        raise ValueError(
            f"{env_id}: action_space={action} has infinite bounds; finite ones are needed: wrap "
            "the environment with gymnasium.wrappers.TransformAction(env, lambda action: action, "
            "gymnasium.spaces.Box(low, high)), with the bounds of the robot"
        )
    return {
        "action_low": tuple(float(bound) for bound in action.low.ravel()),
        "action_high": tuple(float(bound) for bound in action.high.ravel()),
    }


def control_rate(env: gymnasium.Env | GymnasiumVectorEnv) -> float | None:
    """Return the control steps per simulated second [Hz] that an environment states, or None.

    MuJoCo environments state the duration of a step as `dt`, others a frame rate.
    """
    duration = getattr(env.unwrapped, "dt", None)
    if isinstance(duration, Real) and 0 < float(duration) < np.inf:
        return 1 / float(duration)
    rate = (env.metadata or {}).get("render_fps")
    return float(rate) if isinstance(rate, Real) and 0 < float(rate) < np.inf else None


def to_number(value: Any, name: str, env_id: str) -> float:
    """Return a reward or a flag of one environment as a number.

    Example:
        >>> to_number(np.array([0.5]), "reward", "gym/x")
        0.5

    Args:
        value: A number, or an array that holds one.
        name: `reward`, `terminated` or `truncated`, for the message.
        env_id: The environment, for the message.

    Raises:
        ValueError: the value is something else.
    """
    if isinstance(value, float | int | np.floating | np.bool_):  # bool is an int
        return float(value)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        array = np.array(None, dtype=object)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise ValueError(
            f"{env_id}: step() returned {name}={value!r} of type {type(value).__name__}; return "
            "one number"
        )
    return float(array.reshape(())[()])


def batch_action(values: np.ndarray, env: GymnasiumVectorEnv) -> np.ndarray:
    """Return actions (E, d), or one for all (d,), in the shape and dtype of the environment."""
    space, shape = env.action_space, (env.num_envs, values.shape[-1])
    return np.broadcast_to(values, shape).reshape(space.shape or shape).astype(space.dtype)
