"""Flow matching and its likelihoods: mathematics only, nothing of robots or learning.

**Flow time runs from 1 (noise) to 0 (action)**, as in openpi's code and every published checkpoint;
the π0 paper counts the other way. It is stated here, tested, and converted nowhere else:

    x_t = t * noise + (1 - t) * action,      velocity = noise - action,      x <- x - dt * velocity

Letters: B rows, M points of flow time per row, K flow steps, H action horizon, A action dim.
All points are normalized actions; chains and densities are float32.

A *transition kernel* turns one flow step into a Gaussian, and the same function samples and scores
it: a sampler and a scorer that disagree is this field's commonest defect.
Sources: Black et al. 2024 (π0); Liu et al. 2025 (Flow-GRPO, Flow-SDE); Chen et al. 2025 (πRL);
Zhang et al. 2025 (ReinFlow, learned noise).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class FlowOutput(NamedTuple):
    """What the network says at some points of flow time."""

    velocity: Tensor
    """(B, M, H, A)."""
    hidden: Tensor | None = None
    """Features of the action tokens (B, M, H, D), for a learned noise; None if there are none."""


VelocityField = Callable[[Tensor, Tensor], FlowOutput]
"""`(x (B, M, H, A), flow_time (B, M)) -> FlowOutput`, for a fixed observation per row."""


def interpolate(action: Tensor, noise: Tensor, flow_time: Tensor) -> Tensor:
    """Return the point x_t between noise (t = 1) and action (t = 0); `flow_time` broadcasts."""
    return flow_time * noise + (1 - flow_time) * action


def target_velocity(action: Tensor, noise: Tensor) -> Tensor:
    """Return the velocity that the network regresses, noise - action."""
    return noise - action


def predicted_action(x: Tensor, velocity: Tensor, flow_time: Tensor) -> Tensor:
    """Return the end of the straight line through x_t at flow time 0."""
    return x - flow_time * velocity


def predicted_noise(x: Tensor, velocity: Tensor, flow_time: Tensor) -> Tensor:
    """Return the end of the straight line through x_t at flow time 1."""
    return x + (1 - flow_time) * velocity


def score(x: Tensor, velocity: Tensor, flow_time: Tensor) -> Tensor:
    """Return the gradient of log p_t(x); infinite at flow time 0, where there is no noise."""
    return -predicted_noise(x, velocity, flow_time) / flow_time


def sample_flow_time(num: int, device: torch.device | None = None) -> Tensor:
    """Return training times (num,): 0.999 * Beta(1.5, 1) + 0.001, with more mass near the noise.

    Beta(1.5, 1) has the distribution function t^1.5, so it is a power of a uniform variable.
    Source: openpi, `Pi0.compute_loss`.
    """
    return torch.rand(num, device=device).pow(2 / 3) * 0.999 + 0.001


@dataclass(frozen=True)
class TimeGrid:
    """The flow times that K steps visit: 1, 1 - 1/K, ..., 0. One grid samples and scores."""

    flow_steps: int
    """K."""
    accumulated: bool = False
    """Whether each time is the last one minus 1 / K, in float32, as in openpi; a time's rounding
    reaches the network through its shortest period (2e-5 in a chunk)."""

    def __post_init__(self) -> None:
        if self.flow_steps < 1:
            raise ValueError(f"flow_steps={self.flow_steps} must be at least 1")

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


class Transition(NamedTuple):
    """One flow step as a Gaussian. A standard deviation of 0 means that the entry is not random."""

    mean: Tensor
    """(B, M, H, A)."""
    std: Tensor
    """Broadcasts to `mean`."""


class Kernel(Protocol):
    """`(x, output, step, grid) -> Transition`; `step` (B, M) int64 counts from the noise end."""

    def __call__(
        self, x: Tensor, output: FlowOutput, step: Tensor, grid: TimeGrid
    ) -> Transition: ...


def ode_step(x: Tensor, output: FlowOutput, step: Tensor, grid: TimeGrid) -> Transition:
    """The deterministic kernel: one Euler step, standard deviation 0."""
    return Transition(x - grid.dt * output.velocity, x.new_zeros(()))


@dataclass(frozen=True)
class FlowSDE:
    """Euler-Maruyama step of the SDE that has the same marginals as the ODE, whatever its noise.

    The diffusion is g(t) = noise_level * sqrt(t / (1 - t)); at t = 1, where that is infinite, the
    denominator is that of the next time. `mask` (H, A), 1 where there is noise, keeps the noise
    out of entries that are not executed; the marginals stay those of the ODE, because the drift
    is masked with it. Source: Flow-GRPO eq. 9, in πRL's weight form.
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
        t, next_t = times[step][..., None, None], times[step + 1][..., None, None]
        latest = times[1] if grid.flow_steps > 1 else times.new_tensor(0.0)
        g = self.noise_level * (t / (1 - torch.minimum(t, latest))).sqrt()
        if self.mask is not None:
            g = g * self.mask
        action = predicted_action(x, output.velocity, t)
        noise = predicted_noise(x, output.velocity, t)
        noise_weight = next_t - g.square() * grid.dt / (2 * t)
        return Transition((1 - next_t) * action + noise_weight * noise, g * math.sqrt(grid.dt))


@dataclass(frozen=True)
class FlowNoise:
    """Euler step plus noise of a learned, bounded standard deviation.

    Unlike Flow-SDE this changes the marginals, so the policy is deployed without it, and its size
    is tied to the number of flow steps that it was trained with. Source: πRL, ReinFlow.
    """

    std: Callable[[FlowOutput, Tensor], Tensor]
    """`(output, flow_time (B, M)) -> (B, M, H, A)`, the standard deviation [normalized action]."""
    mask: Tensor | None = None

    def __call__(self, x: Tensor, output: FlowOutput, step: Tensor, grid: TimeGrid) -> Transition:
        std = self.std(output, grid.times(x.device)[step])
        if self.mask is not None:
            std = std * self.mask
        return Transition(x - grid.dt * output.velocity, std)


def kl_divergence(transition: Transition, reference: Transition) -> Tensor:
    """Return the divergence of each entry from a reference's step [nats] (B, M, H, A).

    0 where the entry is not random: there the two steps are points, not densities.
    """
    std, other = (t.std.expand_as(t.mean) for t in (transition, reference))
    random = std > 0
    std, other = (torch.where(random, s, torch.ones_like(s)) for s in (std, other))
    offset = transition.mean - reference.mean
    divergence = (other / std).log() + (std.square() + offset.square()) / (2 * other.square()) - 0.5
    return torch.where(random, divergence, torch.zeros_like(divergence))


def log_prob(transition: Transition, x_next: Tensor) -> Tensor:
    """Return the log-density of each entry (B, M, H, A); 0 where the entry is not random.

    Source: the normal density; the entries without noise are deterministic given x and carry none.
    """
    std = transition.std.expand_as(transition.mean)
    random = std > 0
    safe = torch.where(random, std, torch.ones_like(std))
    z = (x_next - transition.mean) / safe
    density = -0.5 * z.square() - safe.log() - 0.5 * math.log(2 * math.pi)
    return torch.where(random, density, torch.zeros_like(density))
