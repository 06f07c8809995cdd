"""Targets whose velocity and density are known exactly, and kernels to test on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pitune.policies.flow.kernels import FlowNoise, FlowSDE, Kernel, Transition, ode_step
from pitune.policies.flow.path import FlowOutput, TimeGrid, VelocityField

MEAN, STD = 0.6, 0.5
"""Of the Gaussian target."""


def gaussian_variance(t: Tensor) -> Tensor:
    """Return the variance of x_t when actions are N(MEAN, STD^2)."""
    return (1 - t) ** 2 * STD**2 + t**2


def gaussian_field(x: Tensor, flow_time: Tensor) -> FlowOutput:
    """E[noise - action | x_t = x] when actions are N(MEAN, STD^2)."""
    t = flow_time[..., None, None]
    centered = x - (1 - t) * MEAN
    return FlowOutput((t - (1 - t) * STD**2) / gaussian_variance(t) * centered - MEAN)


def mixture_field(weights: Tensor, means: Tensor, stds: Tensor) -> VelocityField:
    """The exact velocity of a mixture of round Gaussians: weights (C,), means (C, D), stds (C,)."""

    def field(x: Tensor, flow_time: Tensor) -> FlowOutput:
        t = flow_time[..., None, None]  # (B, M, 1, 1)
        std = stds[:, None]
        variance = (1 - t) ** 2 * std**2 + t**2  # (B, M, C, 1)
        centered = x.flatten(2)[:, :, None] - (1 - t) * means  # (B, M, C, D)
        distance = centered.square().sum(-1, keepdim=True) / variance
        logits = weights.log()[:, None] - 0.5 * (distance + means.shape[1] * variance.log())
        noise = t / variance * centered
        action = means + (1 - t) * std**2 / variance * centered
        velocity = (logits.softmax(-2) * (noise - action)).sum(-2)
        return FlowOutput(velocity.unflatten(-1, x.shape[2:]))

    return field


def mixture_samples(weights: Tensor, means: Tensor, stds: Tensor, num: int) -> Tensor:
    """Exact samples (num, D)."""
    component = torch.multinomial(weights, num, replacement=True)
    return means[component] + stds[component, None] * torch.randn(num, means.shape[1])


def random_field(horizon: int, action_dim: int) -> VelocityField:
    """A fixed random network that couples all entries, bends, and reads the time; with features."""
    generator = torch.Generator().manual_seed(1)
    width = horizon * action_dim
    inner = torch.randn(width + 1, 16, generator=generator) / math.sqrt(width)
    outer = torch.randn(16, width, generator=generator) / 4
    features = torch.randn(16, horizon * 3, generator=generator)

    def field(x: Tensor, flow_time: Tensor) -> FlowOutput:
        middle = torch.cat([x.flatten(2), flow_time[..., None]], -1).matmul(inner).tanh()
        hidden = (middle @ features).unflatten(-1, (horizon, 3))
        return FlowOutput((middle @ outer).unflatten(-1, (horizon, action_dim)), hidden)

    return field


def learned_std(output: FlowOutput, flow_time: Tensor) -> Tensor:
    """A standard deviation that depends on the features and on the time."""
    assert output.hidden is not None
    size = 0.05 + 0.2 * output.hidden[..., :2].sigmoid()
    return size * (1 + flow_time[..., None, None])


def constant_std(output: FlowOutput, flow_time: Tensor) -> Tensor:
    return torch.full_like(output.velocity, 0.1)


MASK = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
"""Two executed steps of three, one robot dimension of two."""
KERNELS: dict[str, Kernel] = {
    "flow_sde": FlowSDE(0.5),
    "flow_sde_masked": FlowSDE(0.5, MASK),
    "flow_noise_learned": FlowNoise(learned_std),
    "flow_noise_learned_masked": FlowNoise(learned_std, MASK),
    "flow_noise_constant": FlowNoise(constant_std),
    "flow_noise_constant_masked": FlowNoise(constant_std, MASK),
}


def scaled_drift(factor: float, noise_level: float = 0.5, mask: Tensor | None = None) -> Kernel:
    """Flow-SDE with its drift correction multiplied: 1 is right, 0 lacks it, -1 has it reversed."""
    right = FlowSDE(noise_level, mask)

    def kernel(x: Tensor, output: FlowOutput, step: Tensor, grid: TimeGrid) -> Transition:
        mean, std = right(x, output, step, grid)
        straight = ode_step(x, output, step, grid).mean
        return Transition(straight + factor * (mean - straight), std)

    return kernel
