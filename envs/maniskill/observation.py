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

from pitune.envs.rendering.cameras import check_cameras
from pitune.envs.vector_env import Observation


class Sensors:
    """The cameras of a ManiSkill simulation, which draw on request and not in every step.

    From then on the simulation's own observations have no pictures.

    Example:
        >>> sensors = Sensors(simulation, "PickCube-v1", ("base_camera",))  # doctest: +SKIP
        >>> sensors.draw()["image/base_camera"].shape  # doctest: +SKIP
        torch.Size([1, 3, 128, 128])

    Args:
        simulation: ManiSkill's environment, without wrappers.
        task: Its name, for the message.
        cameras: Cameras to draw.

    Raises:
        ValueError: a camera is unknown.
    """

    def __init__(self, simulation: Any, task: str, cameras: tuple[str, ...]) -> None:
        self._cameras = cameras
        if cameras:
            draw = simulation._get_obs_sensor_data
            check_cameras(f"maniskill/{task}", cameras, draw())
            self._draw = draw
            # covers the method of the class
            simulation._get_obs_sensor_data = lambda *_, **__: {}

    def draw(self) -> Observation:
        """Return the present pictures, `image/<camera>` (E, C, Y, X) uint8, without a copy."""
        if not self._cameras:
            return {}
        sensors = self._draw()
        # (E, Y, X, C) -> (E, C, Y, X)
        return {
            f"image/{name}": rearrange(sensors[name]["rgb"], "E Y X C -> E C Y X")
            for name in self._cameras
        }


def read_obs(raw: Any) -> Observation:
    """Return ManiSkill's observation under this package's names, without pictures and not copied.

    Args:
        raw: The state (E, s) in the mode `state`. Otherwise a dict of either `state` (mode
            `rgb+state`) or `agent` and `extra` (mode `rgb`).
    """
    state = raw
    if isinstance(raw, Mapping):
        # mode "rgb+state" has a state, and mode "rgb" the parts of one
        joint = {"agent": raw["agent"], "extra": raw["extra"]} if "state" not in raw else {}
        state = flatten_parts(joint) if joint else raw["state"]
    task_id = torch.zeros(len(state), dtype=torch.int64, device=state.device)
    return {"state": state.float(), "task_id": task_id}


def flatten_parts(parts: Mapping[str, Any]) -> Tensor:
    """Return all numbers of a nested dict of (E,) and (E, ...) tensors, side by side (E, s)."""
    columns = [
        # (E,) or (E, ...) -> (E, numbers)
        flatten_parts(part) if isinstance(part, Mapping) else part.reshape(len(part), -1).float()
        for part in parts.values()
        if not isinstance(part, Mapping) or part
    ]
    return torch.cat(columns, dim=-1)


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
