"""Parts of a policy that depend on the decision delay which it acts under.

A decision hands h + R actions to the robot. The robot has executed the first `delay` of them, which
are those of the old chunk, when the chunk arrives. The last R are the remainder for the next
decision, which the robot executes while that one is computed.
Letters: N rows, K flow steps, H action horizon, h executed actions, R steps of a remainder, A model
action dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pitune.policies.flow.path import VelocityField
from pitune.policies.flow.real_time import (
    Remainder,
    guided_field,
    prefixed_field,
    with_prefix,
)
from pitune.policies.network.context import Context
from pitune.policies.policy_config import SamplerConfig
from pitune.policies.preprocessing.model_input import ModelInput


def remainder_steps(sampler: SamplerConfig, horizon: int) -> int:
    """Return R: the longest delay, or all that is left if it guides the next chunk.

    Example:
        >>> from pitune.policies.flow.delay import DelayConfig
        >>> remainder_steps(SamplerConfig(delay=DelayConfig(steps=2)), horizon=8)
        2
    """
    delay, config = sampler.delay, sampler.real_time
    if delay.seam == "real_time" and config is not None and config.method == "guided":
        return horizon - sampler.execution_horizon
    return delay.highest


def remainder_of(rows: Context | ModelInput) -> Remainder | None:
    """Return the remainder of rows, or None without a delay."""
    if rows.remainder is None or rows.delay is None:
        return None
    return Remainder(rows.remainder, rows.delay)


def continued_field(
    field: VelocityField, context: Context, sampler: SamplerConfig
) -> VelocityField:
    """Return the field that continues the old chunk, if there is one and the sampler sets it."""
    remainder, config = remainder_of(context), sampler.real_time
    if remainder is None or config is None or sampler.delay.seam != "real_time":
        return field
    if config.method == "guided":
        return guided_field(field, remainder, config)
    return prefixed_field(field, remainder)


def starting_points(noise: Tensor, context: Context, sampler: SamplerConfig) -> Tensor:
    """Return starting points (N, H, A), with the old chunk's actions where they are a prefix."""
    remainder, config = remainder_of(context), sampler.real_time
    if remainder is None or config is None or sampler.delay.seam != "real_time":
        return noise
    return with_prefix(noise, remainder) if config.method == "trained" else noise


def num_executed(sampler: SamplerConfig) -> int:
    """Return the number of a chunk's first steps that the robot may execute.

    They are its own h, and more of them under the next decision's delay.
    """
    return sampler.execution_horizon + sampler.delay.highest


def executed_steps(
    sampler: SamplerConfig, horizon: int, remainder: Remainder | None, device: torch.device
) -> Tensor:
    """Return whether the robot executes a step, (H,), or (N, H) for rows with a remainder.

    The first steps of a chunk that continues another one are never executed. Its own last ones are
    executed under the next decision's delay.
    """
    is_planned = torch.arange(horizon, device=device) < num_executed(sampler)
    if remainder is None:
        return is_planned
    return is_planned & ~remainder.is_frozen(horizon).to(device)
