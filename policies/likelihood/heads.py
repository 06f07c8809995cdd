"""Learned noise: the standard deviation of a flow step from the action expert's features.

Letters: N rows, M scored steps (K, or 1), H action horizon, A action dim, D width of the expert.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pitune.policies.flow.path import FlowOutput


class NoiseNetwork(nn.Module):
    """Standard deviation of Flow-Noise from the expert's features, inside fixed bounds.

    Starts in the (geometric) middle of its bounds. Source: πRL; the bounds are on the log-variance.
    """

    def __init__(self, width: int, action_dim: int, std_min: float, std_max: float) -> None:
        super().__init__()
        self.log_min, self.log_max = math.log(std_min), math.log(std_max)
        head = nn.Linear(64, action_dim)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        layers = [nn.Linear(width, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh()]
        self.net = nn.Sequential(*layers, head)

    def forward(self, output: FlowOutput, flow_time: Tensor) -> Tensor:
        """Return the standard deviation (N, M, H, A) [normalized action]."""
        if output.hidden is None:
            raise ValueError("Flow-Noise needs the network's hidden features, but there are none")
        fraction = 0.5 * (torch.tanh(self.net(output.hidden.float())) + 1)
        return (self.log_min + fraction * (self.log_max - self.log_min)).exp()


class VelocityHead(nn.Module):
    """Standard deviation of a Gaussian velocity from the expert's features; without bounds.

    It starts constant, so that a pretrained policy is not destroyed by it. Source: F5R-TTS (Sun et
    al. 2025), whose released objective is a density times the advantage; here it is scored as any
    other kernel, by its log-probability. In terms of positions it is `dt` times as wide.

    Args:
        width: D, of the features.
        action_dim: A.
        std: Of a flow step at the start [normalized action].
        dt: Length of a flow step [flow time].
    """

    def __init__(self, width: int, action_dim: int, std: float, dt: float) -> None:
        super().__init__()
        self.dt = dt
        self.head = nn.Linear(width, action_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, math.log(std / dt))

    def forward(self, output: FlowOutput, flow_time: Tensor) -> Tensor:
        """Return a flow step's standard deviation (N, M, H, A) [normalized action]."""
        if output.hidden is None:
            raise ValueError(
                "the velocity head needs the network's hidden features: there are none"
            )
        return self.dt * self.head(output.hidden.float()).exp()
