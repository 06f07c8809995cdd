"""The straight path between noise and action: interpolant, velocity target, score, time grid.

**Flow time runs from 1 (noise) to 0 (action)**, as in openpi's code and every published checkpoint.
The π0 paper counts the other way. This module states the convention, and no other module converts
it:

    x_t = t * noise + (1 - t) * action,      velocity = noise - action,      x <- x - dt * velocity

Letters: B rows, M scored flow steps (points of flow time), K flow steps, H action horizon, A model
action dim, D width of the features.
All points are normalized actions. Chains and densities are float32.
Source: Black et al. 2024 (π0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

FIRST_FLOW_TIME = 0.001
"""Least flow time in training."""


class FlowOutput(NamedTuple):
    """The network's output at M flow times per row.

    Example:
        >>> x = torch.zeros(2, 3, 4, 5)  # (B, M, H, A)
        >>> FlowOutput(velocity=x).velocity.shape
        torch.Size([2, 3, 4, 5])
    """

    velocity: Tensor
    """(B, M, H, A)."""
    hidden: Tensor | None = None
    """Features of the action tokens (B, M, H, D) for a learned noise. None if there are none."""


MIN_TIME = 1e-3
"""Shortest flow time of training [flow time], see `sample_flow_time`."""

VelocityField = Callable[[Tensor, Tensor], FlowOutput]
"""`(x (B, M, H, A), flow_time (B, M)) -> FlowOutput`, for a fixed observation per row."""


def interpolate(action: Tensor, noise: Tensor, flow_time: Tensor) -> Tensor:
    """Return the point x_t between noise (t = 1) and action (t = 0). `flow_time` broadcasts."""
    return flow_time * noise + (1 - flow_time) * action


def target_velocity(action: Tensor, noise: Tensor) -> Tensor:
    """Return the regression target of the network, noise - action."""
    return noise - action


def predicted_action(x: Tensor, velocity: Tensor, flow_time: Tensor) -> Tensor:
    """Return the end of the straight line through x_t at flow time 0."""
    return x - flow_time * velocity


def velocity_towards(x: Tensor, action: Tensor, flow_time: Tensor) -> Tensor:
    """Return the velocity of the straight line through x_t to an action at flow time 0.

    The inverse of `predicted_action`, exact for the flow times of training and of Euler's steps.
    The line is undefined at flow time 0; below `MIN_TIME` the time is `MIN_TIME`.
    """
    return (x - action) / flow_time.clamp(min=MIN_TIME)


def predicted_noise(x: Tensor, velocity: Tensor, flow_time: Tensor) -> Tensor:
    """Return the end of the straight line through x_t at flow time 1."""
    return x + (1 - flow_time) * velocity


def score(x: Tensor, velocity: Tensor, flow_time: Tensor) -> Tensor:
    """Return the gradient of log p_t(x). It is infinite at flow time 0, where noise is absent."""
    return -predicted_noise(x, velocity, flow_time) / flow_time


def sample_flow_time(num: int, device: torch.device | None = None) -> Tensor:
    """Return training times (num,): 0.999 * Beta(1.5, 1) + 0.001, with more mass near the noise.

    Beta(1.5, 1) has the distribution function t^1.5, so it is a power of a uniform variable.
    Source: openpi, `Pi0.compute_loss`.
    """
    return torch.rand(num, device=device).pow(2 / 3) * 0.999 + FIRST_FLOW_TIME


@dataclass(frozen=True)
class TimeGrid:
    """The flow times of K steps: 1, 1 - 1/K, ..., 0. Sampling and scoring share one grid.

    Raises:
        ValueError: `flow_steps` is below 1.

    Example:
        >>> TimeGrid(4).times().tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """

    flow_steps: int
    """K."""
    accumulated: bool = False
    """Whether each time is the last one minus 1 / K in float32, as in openpi. The network embeds
    time at short periods, so this rounding is visible (2e-5 in a chunk)."""

    def __post_init__(self) -> None:
        if self.flow_steps < 1:
            raise ValueError(
                f"flow_steps={self.flow_steps} must be at least 1; the published policies use 10"
            )

    def times(self, device: torch.device | None = None) -> Tensor:
        """Return the K + 1 times, from 1 to exactly 0 (K + 1,)."""
        if self.accumulated:
            step = torch.full((self.flow_steps,), -1 / self.flow_steps, device=device)
            times = [torch.ones((), device=device)]
            for dt in step[1:]:
                times.append(times[-1] + dt)
            return torch.stack([*times, torch.zeros((), device=device)])
        steps = torch.arange(self.flow_steps + 1, device=device, dtype=torch.float32)
        return 1 - steps / self.flow_steps

    @property
    def dt(self) -> float:
        """Length of a step [flow time]."""
        return 1 / self.flow_steps
