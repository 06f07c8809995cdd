"""The quantity that the network predicts and the space of its loss.

The published network predicts the velocity v. With `output="action"` its last layer predicts the
clean action a instead, and

    v = (x_t - a) / t,      so     |v - target|^2 = |a - target action|^2 / t^2

on the straight path. All else (samplers, likelihoods, guidance) takes the velocity as before. With
`loss="action"` the flow-matching loss of either output is the error of the implied action: the
velocity's times t^2. It is bounded where the conversion amplifies errors, near the action.
Letters: B rows, M scored flow steps, H action horizon, A model action dim.
Source: Li & He 2025 (prediction of the clean sample).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pitune.policies.flow.path import velocity_towards
from pitune.policies.network.options.option import OptionConfig


@dataclass(frozen=True, kw_only=True)
class PredictionConfig(OptionConfig):
    """The network's output and the loss.

    Example:
        >>> PredictionConfig(output="action").pretrained_fault()
        "output='action' gives the last layer another meaning"
    """

    output: Literal["velocity", "action"] = "velocity"
    """Quantity that the last layer predicts: the velocity as published, or the clean action, for a
    new network."""
    loss: Literal["velocity", "action"] = "velocity"
    """Error in the flow-matching loss: that of the velocity as published, or that of the implied
    action, which is the former times t^2."""

    def pretrained_fault(self) -> str | None:
        if self.output == "action":
            return "output='action' gives the last layer another meaning"
        return None

    def velocity(self, output: Tensor, x: Tensor, flow_time: Tensor) -> Tensor:
        """Return the velocity (B, M, H, A) of the last layer's output (B, M, H, A).

        Args:
            output: The predicted velocity or action.
            x: Noisy action chunks (B, M, H, A).
            flow_time: (B, M), or (B, M, H) for flow times of single action tokens.
        """
        if self.output == "velocity":
            return output
        time = flow_time if flow_time.ndim == 3 else flow_time[..., None]  # (B, M, H or 1)
        return velocity_towards(x, output, time[..., None])

    def weighted(self, loss: Tensor, flow_time: Tensor) -> Tensor:
        """Return the velocity's squared errors (B, M, H, A) in the space of the loss.

        Args:
            loss: Squared errors of the velocity.
            flow_time: Broadcasts to them.
        """
        return loss if self.loss == "velocity" else loss * flow_time.square()
