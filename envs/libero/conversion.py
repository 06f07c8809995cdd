"""π0's conventions for LIBERO, as functions of LIBERO's raw observations.

openpi's checkpoints for LIBERO were trained on states and pictures in this form, and its example
client converts LIBERO's observations to it. The functions here give the same numbers.

Source: openpi `examples/libero/main.py`.
Letters: Y, X image pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

STATE_DIM = 8
"""Position of the gripper (3) [m], its axis-angle (3) [rad], positions of the fingers (2) [m]."""
STATE_KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
"""The parts of LIBERO's observation that the state consists of."""
CAMERAS: Mapping[str, str] = {"image": "agentview", "wrist_image": "robot0_eye_in_hand"}
"""Name of a camera in openpi's pipelines for LIBERO -> LIBERO's name of it."""
SETTLING_ACTION = (0.0,) * 6 + (-1.0,)
"""The arm stays and the gripper opens, while the objects of a new episode fall to rest."""
SETTLING_STEPS = 10
"""Steps with this action before the first observation of an episode."""


def state_of(raw: Mapping[str, Any]) -> np.ndarray:
    """Return the state (8,) float64 of a raw observation.

    Example:
        >>> raw = {
        ...     "robot0_eef_pos": np.array([0.1, 0.2, 0.3]),
        ...     "robot0_eef_quat": np.array([0.0, 0.0, 0.0, 1.0]),
        ...     "robot0_gripper_qpos": np.array([0.04, -0.04]),
        ... }
        >>> state_of(raw).tolist()
        [0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 0.04, -0.04]
    """
    position, quaternion, fingers = (np.asarray(raw[key], np.float64) for key in STATE_KEYS)
    return np.concatenate([position, axis_angle(quaternion), fingers])


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Return the rotation axis (3,) times the angle in [0, 2π] [rad] of a unit quaternion (4,).

    Example:
        >>> axis_angle(np.array([0.0, 0.0, 1.0, 0.0])).round(3).tolist()
        [0.0, 0.0, 3.142]

    Args:
        quaternion: In the order x, y, z, w.
    """
    w = min(1.0, max(-1.0, float(quaternion[3])))
    length = math.sqrt(1.0 - w * w)
    if math.isclose(length, 0.0):  # almost no rotation
        return np.zeros(3)
    return quaternion[:3] * (2.0 * math.acos(w)) / length


def picture_of(raw: np.ndarray) -> np.ndarray:
    """Return a picture (Y, X, 3) of a raw one (Y, X, 3), rotated by 180°.

    OpenGL counts rows from the bottom and LIBERO keeps this order. So the result is upright, with
    left and right exchanged.
    """
    return np.ascontiguousarray(raw[::-1, ::-1])
