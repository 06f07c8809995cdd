"""Chains from noise to action: sampled step by step, scored in one pass, by the same kernel.

Conventions and letters are those of `pitune.policies.flow.path`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pitune.policies.flow.path import (
    FlowOutput,
    Kernel,
    TimeGrid,
    Transition,
    VelocityField,
    log_prob,
    ode_step,
)


class ChainScore(NamedTuple):
    """What scoring a chain computes, at its M scored steps."""

    log_prob: Tensor
    """Log-density of each random entry (B, M, H, A)."""
    transition: Transition
    """The Gaussians."""
    velocity: Tensor
    """The network's velocity (B, M, H, A)."""


def sample_chain(
    field: VelocityField,
    noise: Tensor,
    grid: TimeGrid,
    kernel: Kernel = ode_step,
    stochastic_step: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the chain from noise to action (B, K + 1, H, A), float32, and its log-density.

    The density is that of each random entry (B, M, H, A): M = K, or 1 with `stochastic_step`.

    Args:
        field: Velocity field of the rows' observations.
        noise: Starting points (B, H, A). An argument, never drawn here: steering, paired
            evaluation and reproducible tests need it.
        grid: The flow times.
        kernel: How a step becomes random.
        stochastic_step: The only step that is random, one per row (B,); every step by default.
    """
    x = noise.float()[:, None]  # (B, 1, H, A)
    chain, entries = [x], []
    for k in range(grid.flow_steps):
        step = torch.full(x.shape[:2], k, dtype=torch.int64, device=x.device)
        output = _float32(field(x, grid.times(x.device)[step]))
        transition = kernel(x, output, step, grid)
        if stochastic_step is not None:
            here = (stochastic_step == k)[:, None, None, None]
            transition = Transition(
                torch.where(here, transition.mean, ode_step(x, output, step, grid).mean),
                torch.where(here, transition.std, torch.zeros_like(transition.std)),
            )
        x = transition.mean + transition.std * torch.randn_like(transition.mean)
        chain.append(x)
        entries.append(log_prob(transition, x))
    scored = torch.cat(entries, dim=1)
    if stochastic_step is not None:  # the other steps are deterministic and score 0
        scored = scored.sum(1, keepdim=True)
    return torch.cat(chain, dim=1), scored


def score_chain(
    field: VelocityField,
    chain: Tensor,
    grid: TimeGrid,
    kernel: Kernel,
    stochastic_step: Tensor | None = None,
) -> ChainScore:
    """Return the log-density of every random entry of a chain, and what it was computed from.

    All M scored steps are one batched call of the field: M = K, or 1 with `stochastic_step`.

    Raises:
        ValueError: the kernel has no noise (its density would be infinite), or the chain does not
            have the grid's K + 1 points.
    """
    num_steps = grid.flow_steps
    if chain.ndim != 4 or chain.shape[1] != num_steps + 1:
        raise ValueError(
            f"chain of shape {tuple(chain.shape)} must be (B, {num_steps + 1}, H, A): "
            f"flow_steps={num_steps} plus one points"
        )
    if kernel is ode_step:
        raise ValueError("the ODE has no transition density; score with FlowSDE or FlowNoise")
    batch = torch.arange(len(chain), device=chain.device)[:, None]
    if stochastic_step is None:
        step = torch.arange(num_steps, device=chain.device).expand(len(chain), -1)
    else:
        step = stochastic_step[:, None]
    x, x_next = chain[batch, step], chain[batch, step + 1]  # (B, M, H, A)
    output = _float32(field(x, grid.times(chain.device)[step]))
    transition = kernel(x, output, step, grid)
    return ChainScore(log_prob(transition, x_next), transition, output.velocity)


def _float32(output: FlowOutput) -> FlowOutput:
    """A bfloat16 network's velocity in float32: densities are never computed in less."""
    return output._replace(velocity=output.velocity.float())
