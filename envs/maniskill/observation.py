"""ManiSkill's observations, translated into this package's form.

Letters: E envs, N rows, s robot state dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from pitune.envs.vector_env import Observation


def read_obs(raw: Any, cameras: tuple[str, ...]) -> Observation:
    """Return ManiSkill's observation under this package's names, without a copy.

    Args:
        raw: The state (E, s) in the mode `state`. Otherwise a dict of `sensor_data` and either
            `state` (mode `rgb+state`) or `agent` and `extra` (mode `rgb`).
        cameras: Cameras to read.
    """
    if not isinstance(raw, Mapping):
        state, pictures = raw, {}
    else:
        # mode "rgb+state" has a state, and mode "rgb" the parts of one
        joint = {"agent": raw["agent"], "extra": raw["extra"]} if "state" not in raw else {}
        state = flatten_parts(joint) if joint else raw["state"]
        pictures = raw["sensor_data"]
    # (E, Y, X, C) -> (E, C, Y, X)
    images = {
        f"image/{name}": rearrange(pictures[name]["rgb"], "E Y X C -> E C Y X") for name in cameras
    }
    task_id = torch.zeros(len(state), dtype=torch.int64, device=state.device)
    return {"state": state.float(), **images, "task_id": task_id}


def flatten_parts(parts: Mapping[str, Any]) -> Tensor:
    """Return all numbers of a nested dict of (E,) and (E, ...) tensors, side by side (E, s)."""
    columns = [
        # (E,) or (E, ...) -> (E, numbers)
        flatten_parts(part) if isinstance(part, Mapping) else part.reshape(len(part), -1).float()
        for part in parts.values()
        if not isinstance(part, Mapping) or part
    ]
    return torch.cat(columns, dim=-1)


def check_cameras(task: str, cameras: tuple[str, ...], raw: Any) -> None:
    """Check that an observation has pictures of all cameras.

    Raises:
        ValueError: it does not.
    """
    known = sorted(raw["sensor_data"]) if isinstance(raw, Mapping) else []
    unknown = sorted(set(cameras) - set(known))
    if unknown:
        raise ValueError(f"cameras={unknown} do not exist in maniskill/{task}; it has {known}")


def picture_shape(pictures: Tensor) -> tuple[int, int, int]:
    """Return (C, Y, X) of pictures (E, C, Y, X)."""
    _, channels, height, width = pictures.shape
    return channels, height, width


@contextlib.contextmanager
def mask_contacts(scene: Any, rows: Tensor, num_envs: int) -> Iterator[None]:
    """Make the contact impulses of some environments zero while the context is open.

    Args:
        scene: ManiSkill's scene.
        rows: These environments (N,) int64.
        num_envs: E.
    """
    get_impulses = scene.get_pairwise_contact_impulses

    def get_masked_impulses(*bodies: Any) -> Tensor:
        impulses: Tensor = get_impulses(*bodies).clone()
        # Bodies that exist in some environments only come without their environments' numbers.
        if len(impulses) == num_envs:
            impulses[rows] = 0
        return impulses

    scene.get_pairwise_contact_impulses = get_masked_impulses
    try:
        yield
    finally:
        # Uncovers the method of the class again.
        del scene.get_pairwise_contact_impulses
