"""Learned noise: the standard deviation of a flow step from the action expert's features.

Letters: N rows, M scored flow steps, H action horizon, A model action dim, D width of the expert.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pitune.policies.flow.path import FlowOutput


class NoiseNetwork(nn.Module):
    """Standard deviation of Flow-Noise from the expert's features, inside fixed bounds.

    It starts at the geometric mean of the bounds. Source: πRL, with bounds on the log-variance.

    Args:
        width: D, of the features.
        action_dim: A.
        std_min: Lower bound [normalized action].
        std_max: Upper bound [normalized action].

    Example:
        >>> head = NoiseNetwork(8, 2, std_min=0.1, std_max=0.4)
        >>> output = FlowOutput(torch.zeros(3, 1, 4, 2), torch.zeros(3, 1, 4, 8))
        >>> round(head(output, torch.zeros(3, 1))[0, 0, 0, 0].item(), 3)
        0.2
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
    """Standard deviation of a Gaussian velocity from the expert's features, without bounds.

    It starts constant, which preserves a pretrained policy. Source: F5R-TTS (Sun et al. 2025).
    Their released objective is a density times the advantage. Here the score is the log-probability
    as for every kernel. The standard deviation of a position is `dt` times that of the velocity.

    Args:
        width: D, of the features.
        action_dim: A.
        std: Initial standard deviation of a flow step [normalized action].
        dt: Length of a flow step [flow time].

    Example:
        >>> head = VelocityHead(8, 2, std=0.1, dt=0.25)
        >>> output = FlowOutput(torch.zeros(3, 1, 4, 2), torch.zeros(3, 1, 4, 8))
        >>> round(head(output, torch.zeros(3, 1))[0, 0, 0, 0].item(), 3)
        0.1
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
