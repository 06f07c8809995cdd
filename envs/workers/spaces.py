"""The spaces and the observations of Gymnasium environments, translated into this package's form.

Letters: E envs, N rows, s robot state dim, d robot action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange
from gymnasium import spaces
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv

Arrays = dict[str, np.ndarray]
"""An observation of N rows: `state` (N, s) float32, `image/<camera>` (N, C, Y, X) uint8, `task_id`
(N,) int64."""


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
        >>> empty_obs(spec.state_dim, spec.cameras, num_rows=2)["image/top"].shape  # (N, C, Y, X)
        (2, 3, 64, 64)
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


def empty_obs(state_dim: int, cameras: Mapping[str, tuple[int, int, int]], num_rows: int) -> Arrays:
    """Return an observation of zeros for N rows."""
    images = {f"image/{name}": (num_rows, *shape) for name, shape in cameras.items()}
    return {
        "state": np.zeros((num_rows, state_dim), np.float32),
        **{key: np.zeros(shape, np.uint8) for key, shape in images.items()},
        "task_id": np.zeros(num_rows, np.int64),
    }


def read_spaces(
    env_id: str, observation: spaces.Space[Any], action: spaces.Space[Any]
) -> dict[str, Any]:
    """Return the `SubEnvSpec` fields that follow from the spaces of one environment.

    Raises:
        ValueError: a policy cannot use the observation space or the action space.
    """
    parts = observation.spaces if isinstance(observation, spaces.Dict) else {"state": observation}
    cameras: dict[str, tuple[int, int, int]] = {}
    for key, part in parts.items():
        if key.startswith("image/") and isinstance(part, spaces.Box) and len(part.shape) == 3:
            # Gymnasium has (Y, X, C), an observation has (C, Y, X)
            height, width, channels = part.shape
            cameras[key.removeprefix("image/")] = (channels, height, width)
            is_usable = part.dtype == np.uint8
        else:
            is_usable = key == "task_id" or (key == "state" and isinstance(part, spaces.Box))
        if not is_usable:
            raise ValueError(
                f"{env_id}: observation {key!r} is {part}, but a Box, or a Dict of `state` (Box) "
                "and `image/<camera>` (uint8 Box Y,X,C) is needed; wrap the environment with "
                "gymnasium.wrappers.FlattenObservation or TransformObservation"
            )

    # actions
    if not isinstance(action, spaces.Box):
        raise ValueError(
            f"{env_id}: action_space={action} is not continuous; only a bounded Box is supported, "
            "choose a continuous variant of the environment"
        )
    if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        raise ValueError(
            f"{env_id}: action_space={action} has infinite bounds; finite ones are needed, "
            "wrap the environment with gymnasium.wrappers.RescaleAction(env, -1.0, 1.0)"
        )
    return {
        "state_dim": int(np.prod(parts["state"].shape or (1,))) if "state" in parts else 0,
        "cameras": cameras,
        "action_low": tuple(float(bound) for bound in action.low.ravel()),
        "action_high": tuple(float(bound) for bound in action.high.ravel()),
    }


def write_row(obs: Arrays, position: int, raw: Any) -> None:
    """Copy one raw observation into its row, because many environments reuse their buffer."""
    parts = raw if isinstance(raw, Mapping) else {"state": raw}
    for key in obs.keys() & parts.keys():
        part = np.asarray(parts[key])
        row = rearrange(part, "Y X C -> C Y X") if key.startswith("image/") else part
        obs[key][position] = row.reshape(obs[key].shape[1:])


def copy_batch(raw: Any, target: Arrays) -> Arrays:
    """Return copies of a vector environment's observation, in the shapes and dtypes of `target`."""
    parts = raw if isinstance(raw, Mapping) else {"state": raw}
    batch: Arrays = {}
    for key in target.keys() & parts.keys():
        value = np.asarray(parts[key])
        value = rearrange(value, "E Y X C -> E C Y X") if key.startswith("image/") else value
        batch[key] = np.array(value, dtype=target[key].dtype).reshape(target[key].shape)
    return batch


def batch_action(values: np.ndarray, env: GymnasiumVectorEnv) -> np.ndarray:
    """Return actions (E, d), or one for all (d,), in the shape and dtype of the environment."""
    space, shape = env.action_space, (env.num_envs, values.shape[-1])
    return np.broadcast_to(values, shape).reshape(space.shape or shape).astype(space.dtype)
