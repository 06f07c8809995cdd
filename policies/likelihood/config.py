"""Which likelihood a flow policy has: one word in a config, and the networks of learned noise.

Letters: N rows, M scored steps (K, or 1), K flow steps, H action horizon, A action dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pitune.policies.flow.path import FlowOutput, TimeGrid, sample_flow_time

KernelName = Literal["flow_sde", "flow_noise", "velocity_gaussian", "flow_matching", "ode"]
STEP_KERNELS = ("flow_sde", "flow_noise", "velocity_gaussian")
"""Those that make flow steps random; the others know only the whole action."""
DrawTimes = Literal["training", "grid", "uniform"]
LossSpace = Literal["velocity", "noise"]
Steps = Literal["one", "all"]
Reduction = Literal["sum", "mean"]
Ratio = Literal["joint", "step"]
_WORDS: dict[str, tuple[str, ...]] = {
    "kernel": get_args(KernelName),
    "stochastic_steps": get_args(Steps),
    "reduction": get_args(Reduction),
    "ratio": get_args(Ratio),
    "draw_times": get_args(DrawTimes),
    "loss_space": get_args(LossSpace),
}


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """Which noise makes the flow's steps random, and what is summed into a log-probability."""

    kernel: KernelName = "flow_sde"
    """Flow-SDE keeps the ODE's marginals; Flow-Noise learns the size of a bounded noise;
    velocity_gaussian is F5R-TTS's head, a Gaussian velocity; flow_matching puts the flow-matching
    loss in the likelihood's place (FPO); ode is exact, has no gradient, and is for reports."""
    stochastic_steps: Steps = "all"
    """Every step is random, or one per sample, drawn anew each time."""
    noise_level: float = 0.5
    """Flow-SDE's noise; see `FlowSDE` [-]."""
    noise_std_min: float = 0.08
    """Flow-Noise: least standard deviation [normalized action]."""
    noise_std_max: float = 0.16
    """Flow-Noise: greatest standard deviation; equal to the least for a constant noise."""
    head_std: float = 0.1
    """velocity_gaussian: a flow step's standard deviation before training [normalized action]."""
    num_draws: int = 8
    """flow_matching: draws of noise and flow time per decision, kept from acting to learning."""
    draw_times: DrawTimes = "training"
    """flow_matching: flow times as in cloning, on the sampler's grid, or uniform."""
    loss_space: LossSpace = "velocity"
    """flow_matching: measure the error of the velocity, or of the noise that it implies."""
    loss_clamp: float = math.inf
    """flow_matching: a draw's loss counts as at most this, so that no single one rules a ratio."""
    action_noise: float = 0.0
    """flow_matching: standard deviation of noise on the chunk while exploring; the flow's own
    spread, which is all that there is without it, may be too little to learn from [normalized
    action]."""
    num_probes: int = 0
    """ode: probes of Hutchinson's divergence; 0 is the full one, H * A backward passes."""
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
        if self.kernel not in STEP_KERNELS and self.stochastic_steps == "one":
            raise ValueError(
                f"stochastic_steps='one' means nothing with kernel={self.kernel!r}, which has no "
                f"random steps; take 'all', or a kernel of {', '.join(STEP_KERNELS)}"
            )
        if self.head_std <= 0:
            raise ValueError(f"head_std={self.head_std} must be above 0")
        if self.num_draws < 1 or self.num_probes < 0:
            raise ValueError(
                f"num_draws={self.num_draws} must be at least 1 and num_probes={self.num_probes} "
                "at least 0"
            )
        if self.action_noise < 0:
            raise ValueError(f"action_noise={self.action_noise} must be at least 0")
        if self.action_noise and self.kernel != "flow_matching":
            raise ValueError(
                f"action_noise={self.action_noise} means nothing with kernel={self.kernel!r}, "
                "whose density would not know of it; set its own noise instead"
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


def draw_flow_times(shape: tuple[int, int], law: DrawTimes, grid: TimeGrid) -> Tensor:
    """Return flow times (N, M) at which a flow-matching loss is measured.

    Sources: openpi's training law; FPO draws on the sampler's grid, FPO++ uniformly.
    """
    num = math.prod(shape)
    if law == "training":
        return sample_flow_time(num).reshape(shape)
    if law == "grid":
        return grid.times()[torch.randint(grid.flow_steps, shape)]
    return 0.005 + 0.99 * torch.rand(shape)
