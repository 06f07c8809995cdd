"""Which likelihood a flow policy has: one word in a config, and the networks of learned noise.

Letters: N rows, M scored steps (K, or 1), K flow steps, H action horizon, A action dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from policies.flow import FlowOutput

KernelName = Literal["flow_sde", "flow_noise"]
Steps = Literal["one", "all"]
Reduction = Literal["sum", "mean"]
Ratio = Literal["joint", "step"]
_WORDS: dict[str, tuple[str, ...]] = {
    "kernel": get_args(KernelName),
    "stochastic_steps": get_args(Steps),
    "reduction": get_args(Reduction),
    "ratio": get_args(Ratio),
}


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """Which noise makes the flow's steps random, and what is summed into a log-probability."""

    kernel: KernelName = "flow_sde"
    """Flow-SDE keeps the ODE's marginals; Flow-Noise learns the size of the noise."""
    stochastic_steps: Steps = "all"
    """Every step is random, or one per sample, drawn anew each time."""
    noise_level: float = 0.5
    """Flow-SDE's noise; see `FlowSDE` [-]."""
    noise_std_min: float = 0.08
    """Flow-Noise: least standard deviation [normalised action]."""
    noise_std_max: float = 0.16
    """Flow-Noise: greatest standard deviation; equal to the least for a constant noise."""
    reduction: Reduction = "sum"
    """A sum over a step's entries is its true log-density; a mean tempers the ratio."""
    ratio: Ratio = "step"
    """One ratio per scored step, each clipped by itself, or one per decision (their product)."""

    def __post_init__(self) -> None:
        for name, valid in _WORDS.items():
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"unknown likelihood {name}={getattr(self, name)!r}; valid: {', '.join(valid)}"
                )
        if self.noise_level <= 0:
            raise ValueError(
                f"noise_level={self.noise_level} must be above 0; without noise there is no "
                "likelihood"
            )
        if not 0 < self.noise_std_min <= self.noise_std_max:
            raise ValueError(
                f"noise_std_min={self.noise_std_min} must be above 0 and at most "
                f"noise_std_max={self.noise_std_max}"
            )


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
        """Return the standard deviation (N, M, H, A) [normalised action]."""
        if output.hidden is None:
            raise ValueError("Flow-Noise needs the network's hidden features, but there are none")
        fraction = 0.5 * (torch.tanh(self.net(output.hidden.float())) + 1)
        return (self.log_min + fraction * (self.log_max - self.log_min)).exp()
