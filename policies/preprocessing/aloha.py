"""ALOHA's joints in the conventions of π0's pretraining data, and back.

Some joints have the opposite sign, and a gripper is an angle in π0 but an opening in ALOHA. openpi
calls this `adapt_to_pi`. The last dimension has 14 numbers: for each arm 6 joints and the gripper.
Source: openpi `policies/aloha_policy.py`, with the constants of the Interbotix code.
"""

from __future__ import annotations

import torch
from torch import Tensor

DIM = 14
_FLIP = (1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0) * 2
_GRIPPERS = (6, 13)
_OPENING = (0.01844, 0.05800)
"""Distance of ALOHA's fingers, closed and open [m]."""
_ANGLE = (0.5476, 1.6296)
"""π0's gripper, closed and open [rad]."""
_JOINT = (-0.6213, 1.4910)
"""ALOHA's gripper joint, closed and open [rad]."""
_ARM, _HORN = 0.036, 0.022
"""Lengths in the linkage between gripper joint and finger [m]."""


def state_to_pi(state: Tensor) -> Tensor:
    """Return ALOHA states (..., 14) in π0's conventions."""
    distance = state * (_OPENING[1] - _OPENING[0]) + _OPENING[0]
    sine = (_HORN**2 + distance**2 - _ARM**2) / (2 * _HORN * distance)
    angle = torch.arcsin(sine.clamp(-1, 1))
    return _with_grippers(state, (angle - _ANGLE[0]) / (_ANGLE[1] - _ANGLE[0]))


def action_to_pi(action: Tensor) -> Tensor:
    """Return ALOHA actions (..., 14) in π0's conventions."""
    return _with_grippers(action, action * (_JOINT[1] - _JOINT[0]) + _JOINT[0] - _ANGLE[0])


def action_from_pi(action: Tensor) -> Tensor:
    """Return π0 actions (..., 14) in ALOHA's conventions."""
    return _with_grippers(action, (action + _ANGLE[0] - _JOINT[0]) / (_JOINT[1] - _JOINT[0]))


def _with_grippers(joints: Tensor, gripper: Tensor) -> Tensor:
    """Return the joints with their signs flipped, and `gripper` in the grippers' dimensions."""
    flipped = joints * joints.new_tensor(_FLIP)
    for index in _GRIPPERS:
        flipped[..., index] = gripper[..., index]
    return flipped
