"""The flow as an ordinary differential equation: deployed sampler and exact likelihood.

The conventions are those of `pitune.policies.flow.path`.
Letters: B rows, H action horizon, A model action dim.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pitune.policies.flow.path import TimeGrid, VelocityField

Solver = Literal["euler", "midpoint", "heun"]


def integrate(
    field: VelocityField, noise: Tensor, grid: TimeGrid, solver: Solver = "euler"
) -> Tensor:
    """Return the ODE's action (B, H, A) from its noise (B, H, A).

    The pretrained policies were deployed with Euler. Midpoint and Heun need two evaluations a step.

    Raises:
        ValueError: `solver` is unknown.

    Example:
        >>> from pitune.policies.flow.path import FlowOutput
        >>> one = torch.ones(1, 2, 3)  # (B, H, A)
        >>> integrate(lambda x, flow_time: FlowOutput(one[:, None]), one, TimeGrid(4)).unique()
        tensor([0.])
    """
    x = noise.float()[:, None]  # (B, 1, H, A)
    times = grid.times(x.device)
    for k in range(grid.flow_steps):
        t = times[k].expand(x.shape[:2])  # (B, 1)
        velocity = field(x, t).velocity.float()
        if solver == "midpoint":
            # velocity in the middle of the step
            half = x - 0.5 * grid.dt * velocity
            velocity = field(half, t - 0.5 * grid.dt).velocity.float()
        elif solver == "heun":
            # mean velocity of both ends
            end = field(x - grid.dt * velocity, times[k + 1].expand_as(t)).velocity.float()
            velocity = 0.5 * (velocity + end)
        elif solver != "euler":
            raise ValueError(f"unknown solver={solver!r}; valid: euler, midpoint, heun")
        x = x - grid.dt * velocity
    return x[:, 0]


def ode_log_likelihood(
    field: VelocityField, action: Tensor, flow_steps: int = 100, num_probes: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the exact log-likelihood of actions (B,) and their noise (B, H, A).

    Integrates log p(action) = log N(noise; 0, 1) + integral over [0, 1] of div(velocity) dt, from
    the action up to the noise, by Heun's rule. It is meant for tests and reports. It computes in
    double precision if `action` is double.

    Args:
        field: Velocity field of the rows' observations.
        action: (B, H, A).
        flow_steps: Steps of the integration.
        num_probes: 0 for the full divergence, with H * A backward passes per evaluation, for small
            actions. Otherwise the number of random sign vectors of Hutchinson's unbiased estimate,
            the same along the whole path.
    """
    # the backward passes through one evaluation are many, which compiled code does not allow
    with torch.compiler.set_stance("force_eager"):
        return _log_likelihood(field, action, flow_steps, num_probes)


def _log_likelihood(
    field: VelocityField, action: Tensor, flow_steps: int, num_probes: int
) -> tuple[Tensor, Tensor]:
    x = action[:, None]  # (B, 1, H, A)
    # random signs (probes, B, 1, H, A) for Hutchinson's estimate
    probes = None
    if num_probes:
        probes = 2 * torch.randint(2, (num_probes, *x.shape), device=x.device).to(x.dtype) - 1

    # Heun's method from action to noise, which also integrates the divergence
    total = x.new_zeros(len(x))
    dt = 1 / flow_steps
    for k in range(flow_steps):
        velocity, divergence = _divergence(field, x, k * dt, probes)
        end_velocity, end_divergence = _divergence(field, x + dt * velocity, (k + 1) * dt, probes)
        x = x + 0.5 * dt * (velocity + end_velocity)
        total = total + 0.5 * dt * (divergence + end_divergence)

    # log-density of the noise
    noise = x[:, 0]
    prior = -0.5 * (noise.square() + math.log(2 * math.pi)).flatten(1).sum(-1)
    return prior + total, noise


def _divergence(
    field: VelocityField, x: Tensor, flow_time: float, probes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the velocity (B, 1, H, A) and its divergence (B,).

    Without `probes` (num_probes, B, 1, H, A) the divergence is the full one.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        velocity = field(x, x.new_full(x.shape[:2], flow_time)).velocity
        # the exact trace, or the mean of Hutchinson's estimates
        directions = _unit_directions(velocity) if probes is None else probes
        divergence = torch.zeros_like(velocity[:, 0, 0, 0])
        for direction in directions:
            (gradient,) = torch.autograd.grad((velocity * direction).sum(), x, retain_graph=True)
            divergence = divergence + (gradient * direction).flatten(1).sum(1)
        if probes is not None:
            divergence = divergence / len(probes)
    return velocity.detach(), divergence.detach()


def _unit_directions(x: Tensor) -> Tensor:
    """Return one direction per entry of a row (H * A, 1, 1, H, A)."""
    num = x[0].numel()
    return torch.eye(num, dtype=x.dtype, device=x.device).reshape(num, 1, *x.shape[1:])
