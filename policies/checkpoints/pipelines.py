"""Training settings of openpi's released checkpoints, which the checkpoints do not hold.

openpi keeps the horizon, the normalization, the delta actions, the cameras and the robot's
dimensions in its own Python configs. The settings here have the names of those configs.
Source: openpi `training/config.py`, `policies/{libero,droid,aloha}_policy.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pitune.policies.network.config import Family

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
"""openpi's cameras, in the order of the prefix."""

Robot = Literal["libero", "droid", "aloha"]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The settings around an openpi network that its checkpoint does not hold.

    Example:
        >>> own = replace(PIPELINES["pi05_libero"], state_dim=7, cameras={"base_0_rgb": "front"})
        >>> own.max_tokens
        200
    """

    family: Family
    action_horizon: int
    """H."""
    execution_horizon: int
    """h, number of actions that openpi's example client executes."""
    state_dim: int
    """Width of the robot's state."""
    action_dim: int
    """Width of the robot's action."""
    cameras: dict[str, str]
    """The observation's camera for each camera of the network."""
    quantiles: bool
    """Whether quantiles normalize. Otherwise mean and standard deviation do."""
    discrete_state: bool = False
    """Whether the prompt contains the state (π0.5)."""
    delta_mask: tuple[bool, ...] = ()
    """True for action dimensions that are relative to the state."""
    joints: Literal["as_is", "aloha"] = "as_is"
    """Whether ALOHA's joints are converted to π0's conventions."""

    @property
    def max_tokens(self) -> int:
        """Length of the prompt."""
        return 48 if self.family == "pi0" else 200


_SIX_OF_SEVEN = (True,) * 6 + (False,)

_LIBERO = Pipeline(
    family="pi0",
    action_horizon=50,
    execution_horizon=5,
    state_dim=8,
    action_dim=7,
    cameras={"base_0_rgb": "image", "left_wrist_0_rgb": "wrist_image"},
    quantiles=False,
    # LIBERO's actions are deltas already, and this checkpoint was trained with deltas of them
    delta_mask=_SIX_OF_SEVEN,
)
_DROID = Pipeline(
    family="pi0",
    action_horizon=10,
    execution_horizon=8,
    state_dim=8,
    action_dim=8,
    cameras={"base_0_rgb": "exterior_image_1_left", "left_wrist_0_rgb": "wrist_image_left"},
    quantiles=False,
)
_ALOHA = Pipeline(
    family="pi0",
    action_horizon=50,
    execution_horizon=25,
    state_dim=14,
    action_dim=14,
    cameras={
        "base_0_rgb": "cam_high",
        "left_wrist_0_rgb": "cam_left_wrist",
        "right_wrist_0_rgb": "cam_right_wrist",
    },
    quantiles=False,
    delta_mask=_SIX_OF_SEVEN * 2,
    joints="aloha",
)

PIPELINES: dict[str, Pipeline] = {
    "pi0_libero": _LIBERO,
    "pi05_libero": replace(
        _LIBERO, family="pi05", action_horizon=10, quantiles=True, delta_mask=()
    ),
    "pi0_droid": _DROID,
    "pi05_droid": replace(
        _DROID, family="pi05", action_horizon=15, quantiles=True, discrete_state=True
    ),
    "pi0_aloha": _ALOHA,
    "pi05_aloha": replace(_ALOHA, family="pi05", quantiles=True, discrete_state=True),
}
"""Pipelines by the name of openpi's config. `pi05_libero` was trained without the state."""
