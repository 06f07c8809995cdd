"""What openpi's released checkpoints were trained with, but do not say.

openpi keeps the horizon, the normalization, the delta actions, the cameras and the robot's
dimensions in a Python config of its own, not in the checkpoint. These are those settings, by the
config's name.
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
    """The settings around an openpi network that its checkpoint does not hold."""

    family: Family
    action_horizon: int
    """H."""
    execution_horizon: int
    """How many of the H actions openpi's example client executes."""
    state_dim: int
    """The robot's state."""
    action_dim: int
    """The robot's action."""
    cameras: dict[str, str]
    """The network's cameras, each with the observation's camera that fills it."""
    quantiles: bool
    """Whether quantiles normalize; otherwise mean and standard deviation."""
    discrete_state: bool = False
    """Whether the state stands in the prompt (π0.5)."""
    delta_mask: tuple[bool, ...] = ()
    """Which action dimensions are relative to the state."""
    joints: Literal["as_is", "aloha"] = "as_is"
    """Whether ALOHA's joints are turned into π0's conventions."""

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
    # LIBERO's actions are deltas already; this checkpoint was trained with another one on top
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
"""By the name of openpi's config. `pi05_libero` reads no state at all: that is how it was trained.
"""
