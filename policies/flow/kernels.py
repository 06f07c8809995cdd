"""Transition kernels: one flow step as a Gaussian, with its log-density and KL divergence.

The conventions are those of `pitune.policies.flow.path`.
Letters: B rows, M scored flow steps, K flow steps, H action horizon, A model action dim.

The same kernel samples a step and scores it. A sampler and a scorer that disagree are a common
defect of flow-matching RL, and a shared kernel excludes it.
Sources: Liu et al. 2025 (Flow-GRPO, Flow-SDE); Chen et al. 2025 (πRL); Zhang et al. 2025 (ReinFlow,
learned noise).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pitune.policies.flow.path import FlowOutput, TimeGrid, predicted_action, predicted_noise


class Transition(NamedTuple):
    """One flow step as a Gaussian. An entry with standard deviation 0 is deterministic.

    Example:
        >>> step = Transition(mean=torch.zeros(1, 1, 1, 2), std=torch.tensor([1.0, 0.0]))
        >>> log_prob(step, torch.zeros(1, 1, 1, 2)).flatten().tolist()
        [-0.9189385175704956, 0.0]
    """

    mean: Tensor
    """(B, M, H, A)."""
    std: Tensor
    """Broadcasts to `mean`."""


class Kernel(Protocol):
    """`(x, output, step, grid) -> Transition`; `step` (B, M) int64 counts from the noise end.

    Example:
        >>> kernel: Kernel = ode_step
        >>> x = torch.ones(1, 1, 1, 1)
        >>> kernel(x, FlowOutput(x), torch.tensor([[0]]), TimeGrid(2)).mean.item()
        0.5
    """

    def __call__(
        self, x: Tensor, output: FlowOutput, step: Tensor, grid: TimeGrid
    ) -> Transition: ...


def ode_step(x: Tensor, output: FlowOutput, step: Tensor, grid: TimeGrid) -> Transition:
    """The deterministic kernel: one Euler step with standard deviation 0."""
    return Transition(x - grid.dt * output.velocity, x.new_zeros(()))


@dataclass  # not frozen, because torch 2.12 does not trace the making of a frozen one
class FlowSDE:
    """Euler-Maruyama step of the SDE with the same marginals as the ODE, at any noise level.

    The diffusion is g(t) = noise_level * sqrt(t / (1 - t)). It is infinite at t = 1, so there the
    denominator is that of the next time. `mask` is 1 where there is noise, see `mask_at`. It masks
    the drift too, so the marginals stay those of the ODE.
    Source: Flow-GRPO eq. 9, in πRL's weight form.

    Raises:
        ValueError: `noise_level` is not above 0.

    Example:
        >>> x = torch.zeros(1, 1, 1, 1)
        >>> step = torch.tensor([[1]])  # the second of two steps, at flow time 0.5
        >>> FlowSDE(noise_level=0.5)(x, FlowOutput(x), step, TimeGrid(2)).std.item()
        0.3535533845424652
    """

    noise_level: float
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.noise_level <= 0:
            raise ValueError(
                f"noise_level={self.noise_level} must be above 0; without noise there is no "
                "likelihood, use ode_step"
            )

    def __call__(self, x: Tensor, output: FlowOutput, step: Tensor, grid: TimeGrid) -> Transition:
        times = grid.times(x.device)
        # (B, M) -> (B, M, 1, 1)
        t, next_t = times[step][..., None, None], times[step + 1][..., None, None]
        # g is infinite at t = 1, so there the denominator is that of the next time
        latest = times[1] if grid.flow_steps > 1 else times.new_tensor(0.0)
        g = self.noise_level * (t / (1 - torch.minimum(t, latest))).sqrt()
        if self.mask is not None:
            g = g * mask_at(self.mask, step)  # (B, M, H, A)

        # mean as a weighted sum of action and noise, and standard deviation
        action = predicted_action(x, output.velocity, t)
        noise = predicted_noise(x, output.velocity, t)
        noise_weight = next_t - g.square() * grid.dt / (2 * t)
        return Transition((1 - next_t) * action + noise_weight * noise, g * math.sqrt(grid.dt))


@dataclass  # not frozen, see `FlowSDE`
class FlowNoise:
    """Euler step plus noise of a learned, bounded standard deviation.

    Unlike Flow-SDE it changes the marginals, so the deployed policy omits the noise. The size of
    the noise fits only the number of flow steps that it was trained with. Source: πRL, ReinFlow.

    Example:
        >>> x = torch.zeros(1, 1, 2, 3)
        >>> noise = FlowNoise(std=lambda output, flow_time: torch.full_like(output.velocity, 0.1))
        >>> noise(x, FlowOutput(x), torch.tensor([[0]]), TimeGrid(4)).std.shape
        torch.Size([1, 1, 2, 3])
    """

    std: Callable[[FlowOutput, Tensor], Tensor]
    """`(output, flow_time (B, M)) -> (B, M, H, A)`, the standard deviation [normalized action]."""
    mask: Tensor | None = None
    """1 where there is noise, see `mask_at`. Everywhere by default."""

    def __call__(self, x: Tensor, output: FlowOutput, step: Tensor, grid: TimeGrid) -> Transition:
        std = self.std(output, grid.times(x.device)[step])
        if self.mask is not None:
            std = std * mask_at(self.mask, step)
        return Transition(x - grid.dt * output.velocity, std)


def mask_at(mask: Tensor, step: Tensor) -> Tensor:
    """Return the mask of noise at flow steps (B, M), which broadcasts to (B, M, H, A).

    Args:
        mask: (H, A) for all steps, or (K, H, A). Those of single rows are (B, 1, H, A), or
            (B, K, H, A).
        step: Steps (B, M) int64, counted from the noise end.
    """
    if mask.ndim == 2:
        return mask
    mask = mask.to(step.device)
    if mask.ndim == 3:
        return mask[step]
    if mask.shape[1] == 1:
        return mask
    row = torch.arange(len(mask), device=step.device)[:, None]  # (B, 1)
    return mask[row, step]


def kl_divergence(transition: Transition, reference: Transition) -> Tensor:
    """Return the divergence of each entry from a reference's step [nats] (B, M, H, A).

    It is 0 where the entry is deterministic, because a single point has no density.
    """
    std, other = (t.std.expand_as(t.mean) for t in (transition, reference))
    random = std > 0
    std, other = (torch.where(random, s, torch.ones_like(s)) for s in (std, other))
    offset = transition.mean - reference.mean
    divergence = (other / std).log() + (std.square() + offset.square()) / (2 * other.square()) - 0.5
    return torch.where(random, divergence, torch.zeros_like(divergence))


def log_prob(transition: Transition, x_next: Tensor) -> Tensor:
    """Return the log-density of each entry (B, M, H, A). It is 0 where the entry is deterministic.

    Source: the normal density. An entry without noise is a function of x and has no density.
    """
    std = transition.std.expand_as(transition.mean)
    random = std > 0
    safe = torch.where(random, std, torch.ones_like(std))
    z = (x_next - transition.mean) / safe
    density = -0.5 * z.square() - safe.log() - 0.5 * math.log(2 * math.pi)
    return torch.where(random, density, torch.zeros_like(density))
