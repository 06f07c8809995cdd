"""Chains from noise to action, sampled step by step and scored in one pass by the same kernel.

The conventions are those of `pitune.policies.flow.path`.
Letters: B rows, M scored flow steps, K flow steps, H action horizon, A model action dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pitune.policies.flow.kernels import Kernel, Transition, log_prob, ode_step
from pitune.policies.flow.path import FlowOutput, TimeGrid, VelocityField


class ChainScore(NamedTuple):
    """The score of a chain at its M scored steps.

    Example:
        >>> from pitune.policies.flow.kernels import FlowSDE
        >>> grid, kernel = TimeGrid(3), FlowSDE(noise_level=0.5)
        >>> field = lambda x, flow_time: FlowOutput(x)
        >>> chain, log_density = sample_chain(field, torch.randn(2, 1, 1), grid, kernel)
        >>> torch.allclose(score_chain(field, chain, grid, kernel).log_prob, log_density)
        True
    """

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
        noise: Starting points (B, H, A). They are an argument and never drawn here, because
            steering, paired evaluation and reproducible tests choose them.
        grid: The flow times.
        kernel: How a step becomes random.
        stochastic_step: The only random step, one per row (B,). Every step by default.
    """
    x = noise.float()[:, None]  # (B, 1, H, A)
    chain, entries = [x], []
    times = grid.times(x.device)  # (K + 1,)
    for k in range(grid.flow_steps):
        step = torch.full(x.shape[:2], k, dtype=torch.int64, device=x.device)  # (B, 1)
        output = _float32(field(x, times[step]))
        transition = kernel(x, output, step, grid)
        # the ODE's step in rows whose random step is another one
        if stochastic_step is not None:
            is_random = (stochastic_step == k)[:, None, None, None]  # (B, 1, 1, 1)
            transition = Transition(
                torch.where(is_random, transition.mean, ode_step(x, output, step, grid).mean),
                torch.where(is_random, transition.std, torch.zeros_like(transition.std)),
            )
        x = transition.mean + transition.std * torch.randn_like(transition.mean)
        chain.append(x)
        entries.append(log_prob(transition, x))
    log_density = torch.cat(entries, dim=1)  # (B, K, H, A)
    if stochastic_step is not None:  # the other steps are deterministic and have log-density 0
        log_density = log_density.sum(1, keepdim=True)
    return torch.cat(chain, dim=1), log_density


def score_chain(
    field: VelocityField,
    chain: Tensor,
    grid: TimeGrid,
    kernel: Kernel,
    stochastic_step: Tensor | None = None,
) -> ChainScore:
    """Return the log-density of every random entry of a chain, with its transition and velocity.

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
    # scored steps
    rows = torch.arange(len(chain), device=chain.device)[:, None]  # (B, 1)
    if stochastic_step is None:
        step = torch.arange(num_steps, device=chain.device).expand(len(chain), -1)  # (B, K)
    else:
        step = stochastic_step[:, None]  # (B, 1)

    # transitions at the points of the chain
    x, x_next = chain[rows, step], chain[rows, step + 1]  # (B, M, H, A)
    output = _float32(field(x, grid.times(chain.device)[step]))
    transition = kernel(x, output, step, grid)
    return ChainScore(log_prob(transition, x_next), transition, output.velocity)


def _float32(output: FlowOutput) -> FlowOutput:
    """Return the output with a float32 velocity. Densities need at least that precision."""
    return output._replace(velocity=output.velocity.float())
