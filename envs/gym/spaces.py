"""What the spaces of a Gymnasium environment mean here, and its observations as arrays.

Letters: n rows (environments), S state dim, A action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

Arrays = dict[str, np.ndarray]
"""An observation of n rows: `state` (n, S) float32, `image/<camera>` (n, C, Y, X) uint8, `task_id`
(n,) int64."""


@dataclass(frozen=True, kw_only=True)
class CopySpec:
    """What one copy says about itself."""

    state_dim: int
    """S."""
    cameras: Mapping[str, tuple[int, int, int]]
    """Camera name -> (C, Y, X)."""
    action_low: tuple[float, ...]
    """(A) [robot units]."""
    action_high: tuple[float, ...]
    """(A) [robot units]."""
    max_episode_steps: int | None
    """Time limit that the copy applies itself; None if it has none."""
    control_hz: float | None
    """Steps per simulated second [Hz]; None if the copy does not say."""
    success_signal: bool
    """Whether `info` holds `success` or `is_success`."""
    expert: bool
    """Whether the copy has an `expert_action` method."""


def empty_obs(state_dim: int, cameras: Mapping[str, tuple[int, int, int]], num_rows: int) -> Arrays:
    """Return an observation of zeros for n rows."""
    images = {f"image/{name}": (num_rows, *shape) for name, shape in cameras.items()}
    return {
        "state": np.zeros((num_rows, state_dim), np.float32),
        **{key: np.zeros(shape, np.uint8) for key, shape in images.items()},
        "task_id": np.zeros(num_rows, np.int64),
    }


def read_spaces(env_id: str, observation: spaces.Space, action: spaces.Space) -> dict[str, Any]:
    """Return the `CopySpec` fields that follow from the spaces of one environment.

    Raises:
        ValueError: the observation or the action space is not one that a policy here can use.
    """
    parts = observation.spaces if isinstance(observation, spaces.Dict) else {"state": observation}
    cameras: dict[str, tuple[int, int, int]] = {}
    for key, part in parts.items():
        if key.startswith("image/") and isinstance(part, spaces.Box) and len(part.shape) == 3:
            height, width, channels = part.shape
            cameras[key.removeprefix("image/")] = (channels, height, width)
            known = part.dtype == np.uint8
        else:
            known = key == "task_id" or (key == "state" and isinstance(part, spaces.Box))
        if not known:
            raise ValueError(
                f"{env_id}: observation {key!r} is {part}, but a Box, or a Dict of `state` (Box) "
                "and `image/<camera>` (uint8 Box Y,X,C) is needed; wrap the environment with "
                "gymnasium.wrappers.FlattenObservation or TransformObservation"
            )
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


def success_of(info: Mapping[str, Any]) -> Any:
    """Return what `info` says about success under either of its two usual names, or None."""
    return info.get("success", info.get("is_success"))


def write_row(obs: Arrays, position: int, raw: Any) -> None:
    """Copy one raw observation into its row: many environments reuse their buffer."""
    parts = raw if isinstance(raw, Mapping) else {"state": raw}
    for key in obs.keys() & parts.keys():
        part = np.asarray(parts[key])
        row = part.transpose(2, 0, 1) if key.startswith("image/") else part
        obs[key][position] = row.reshape(obs[key].shape[1:])
