"""Real-time chunking: a new chunk that continues the one which the robot is executing.

While the policy computes, the robot executes the first `delay` actions of the old chunk's
remainder. The new chunk must begin with them and go on smoothly. Both methods change the velocity
field only, so every solver and likelihood takes them.

- **guided** (any checkpoint): each velocity is corrected towards the remainder, with weights that
  fall from 1 in the delay to 0 at the end of the overlap. With t the flow time and
  x0 = x - t * v the predicted chunk:

      v <- v - lambda * J^T (W * (remainder - x0)),   J = d x0 / d x
      lambda = min(max_weight, (t^2 + (1 - t)^2) / (t * (1 - t)))

  "full" computes the Jacobian J by back-propagation, as in the paper. "identity" takes J = 1, as
  lerobot 0.6 does, whose velocity is computed before its input requires a gradient.
- **trained** (a checkpoint cloned with delays): the first actions are clean, with flow time 0 of
  their own, and are not sampled at all.

Letters: N rows, B minibatch rows, M scored flow steps, H action horizon, A model action dim.
Source: Black et al. 2025, "Real-time execution of action chunking flow policies"; lerobot
`policies/rtc`; Black et al. 2025, "Training-time action conditioning" (arXiv 2512.05964).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pitune.policies.flow.path import FlowOutput, VelocityField, predicted_action
from pitune.ranges import PositiveFloat, Settings

Method = Literal["guided", "trained"]
Schedule = Literal["linear", "exp", "ones", "zeros"]
Jacobian = Literal["full", "identity"]


@dataclass(frozen=True, kw_only=True)
class RealTimeConfig(Settings):
    """Settings of real-time chunking, which are stored with the checkpoint.

    Raises:
        ValueError: a setting is unknown or out of range.

    Example:
        >>> RealTimeConfig(method="guided", schedule="exp").max_weight
        5.0
    """

    method: Method = "guided"
    schedule: Schedule = "exp"
    """Fall of the weights between the delay and the end of the overlap (guided). "ones" does not
    fall, "zeros" weighs the delay alone."""
    max_weight: PositiveFloat = 5.0
    """Bound of the guidance: the paper 5, lerobot 10."""
    jacobian: Jacobian = "full"
    """Exact guidance, or lerobot's without back-propagation."""


@dataclass(frozen=True, eq=False)
class Remainder:
    """The part of the last chunk that was not executed when the observation was taken.

    Example:
        >>> Remainder(torch.zeros(2, 6, 3), delay=2).padded(10).shape
        torch.Size([2, 10, 3])
    """

    actions: Tensor
    """(N, rest, A) [normalized action], of which the first belongs to the observation's time."""
    delay: int | Tensor
    """Actions that the robot will have executed when the new chunk arrives [control steps]: one
    number, or one of each row (N,), which is -1 where there is no old chunk."""

    def is_frozen(self, horizon: int) -> Tensor:
        """Return whether the robot will have executed a step, (N, H) or (1, H)."""
        delay = torch.as_tensor(self.delay, device=self.actions.device).reshape(-1, 1)
        step = torch.arange(horizon, device=self.actions.device)
        return step < delay.clamp(max=self.actions.shape[1])

    def weights(self, end: int, horizon: int, schedule: Schedule) -> Tensor:
        """Return the soft mask of each row, (N, H) or (1, H)."""
        delay = torch.as_tensor(self.delay).reshape(-1)
        values, row = delay.unique(return_inverse=True)
        masks = [
            soft_mask(max(0, value), end if value >= 0 else 0, horizon, schedule)
            for value in values.tolist()
        ]
        return torch.stack(masks).to(row.device)[row]

    def padded(self, horizon: int) -> Tensor:
        """Return the actions with zeros behind them, or cut, (N, H, A)."""
        actions = self.actions[:, :horizon]
        missing = horizon - actions.shape[1]
        return torch.nn.functional.pad(actions, (0, 0, 0, missing))


def soft_mask(delay: int, end: int, horizon: int, schedule: Schedule) -> Tensor:
    """Return the weights of a chunk's steps (H,): 1 in the delay, 0 from `end` on.

    Args:
        delay: Steps that are fixed.
        end: End of the overlap with the old chunk. A delay beyond it is cut.
        horizon: H.
        schedule: Fall between the two.

    Example:
        >>> soft_mask(1, 4, 5, "linear")
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000])
    """
    end = min(end, horizon)
    start = min(delay, end)
    weights = torch.zeros(horizon)
    weights[:start] = 1
    if schedule == "ones":
        weights[:end] = 1
    elif schedule != "zeros":
        fall = torch.linspace(1, 0, end - start + 2)[1:-1]
        if schedule == "exp":
            fall = fall * torch.expm1(fall) / (math.e - 1)
        weights[start:end] = fall
    return weights


def guidance_weight(flow_time: Tensor, max_weight: PositiveFloat) -> Tensor:
    """Return lambda (N, M) of flow times (N, M), at most `max_weight`."""
    t = flow_time.double()
    # infinite at both ends, where the bound holds
    weight = (t.square() + (1 - t).square()) / (t * (1 - t)).clamp(min=1e-12)
    return weight.clamp(max=max_weight).to(flow_time.dtype)


def guided_field(
    field: VelocityField, remainder: Remainder, config: RealTimeConfig, overlap: int | None = None
) -> VelocityField:
    """Return the field that is corrected towards the remainder.

    With weights of 0 the field is unchanged, bit for bit. The correction has no gradient with
    respect to the parameters, so the ratio of a likelihood stays 1 before the first update, and its
    gradient leaves out the dependence through the correction.

    Args:
        field: Velocity field of the rows' observations.
        remainder: Normalized actions of the old chunk.
        config: Schedule, bound and Jacobian.
        overlap: End of the weights, the remainder's length by default.
    """
    length = remainder.actions.shape[1]
    end = length if overlap is None else min(overlap, length)

    def guided(x: Tensor, flow_time: Tensor) -> FlowOutput:
        horizon = x.shape[2]
        weights = remainder.weights(end, horizon, config.schedule)
        if not weights.any():
            return field(x, flow_time)
        weights = weights[:, None, :, None].to(x)  # (N or 1, 1, H, 1)
        target = remainder.padded(horizon)[:, None].to(x)  # (N, 1, H, A)
        output = field(x, flow_time)
        correction = _correction(field, output.velocity, x, flow_time, target, weights, config)
        weight = guidance_weight(flow_time, config.max_weight)[..., None, None]  # (N, M, 1, 1)
        return output._replace(velocity=output.velocity - weight * correction)

    return guided


def _correction(
    field: VelocityField,
    velocity: Tensor,
    x: Tensor,
    flow_time: Tensor,
    target: Tensor,
    weights: Tensor,
    config: RealTimeConfig,
) -> Tensor:
    """Return J^T (W * (target - x0)), (N, M, H, A), without a gradient."""
    t = flow_time[..., None, None]
    if config.jacobian == "identity":
        return (weights * (target - predicted_action(x, velocity, t))).detach()
    with torch.enable_grad():
        point = x.detach().requires_grad_(True)
        predicted = predicted_action(point, field(point, flow_time).velocity, t)
        error = (weights * (target - predicted)).detach()
        (gradient,) = torch.autograd.grad(predicted, point, error)
    return gradient.detach()


def prefixed_field(field: VelocityField, remainder: Remainder) -> VelocityField:
    """Return the field of a policy that was cloned with clean prefixes.

    The first `delay` actions of every point are the remainder's, with flow time 0 of their own.
    Their velocity is 0, so a chain that starts `with_prefix` keeps them exactly.
    """

    def prefixed(x: Tensor, flow_time: Tensor) -> FlowOutput:
        is_prefix = remainder.is_frozen(x.shape[2])[:, None].to(x.device)  # (N or 1, 1, H)
        if not is_prefix.any():
            return field(x, flow_time)
        clean = remainder.padded(x.shape[2])[:, None].to(x)
        x = torch.where(is_prefix[..., None], clean, x)
        times = torch.where(is_prefix, 0.0, flow_time[..., None])
        output = field(x, times)  # flow times (N, M, H)
        velocity = torch.where(is_prefix[..., None], 0.0, output.velocity)
        return output._replace(velocity=velocity)

    return prefixed


def with_prefix(chunk: Tensor, remainder: Remainder) -> Tensor:
    """Return chunks or noise (N, H, A) whose first `delay` actions are the remainder's."""
    is_frozen = remainder.is_frozen(chunk.shape[1])[..., None].to(chunk.device)
    old = remainder.padded(chunk.shape[1])[..., : chunk.shape[2]]
    return torch.where(is_frozen, old.to(chunk), chunk)


def clean_prefix(flow_time: Tensor, delay: Tensor, horizon: int) -> dict[str, Tensor]:
    """Return `flow_time` and `step_weight` (B, H) of chunks that begin with clean actions.

    The first `delay` steps have flow time 0, so they are the demonstrated actions, and weight 0.
    The weights of the others are equal, with a mean of 1 over the minibatch and all its steps, so
    the loss is a mean over the entries that are learned.
    Source: Black et al. 2025 (arXiv 2512.05964); lerobot.

    Args:
        flow_time: Drawn flow times (B,).
        delay: Length of each clean beginning (B,) int64 [control steps].
        horizon: H.

    Example:
        >>> drawn = clean_prefix(torch.tensor([0.5]), torch.tensor([1]), 3)
        >>> drawn["flow_time"].tolist(), drawn["step_weight"].tolist()
        ([[0.0, 0.5, 0.5]], [[0.0, 1.5, 1.5]])
    """
    is_learned = torch.arange(horizon, device=delay.device) >= delay[:, None]  # (B, H)
    weight = is_learned.float()
    return {"flow_time": flow_time[:, None] * is_learned, "step_weight": weight / weight.mean()}


def check_delay(delay: int, execution_horizon: int, action_horizon: int) -> None:
    """Check that a chunk arrives before the old one ends.

    Raises:
        ValueError: not `0 <= delay <= execution_horizon <= H - delay`.
    """
    if not 0 <= delay <= execution_horizon <= action_horizon - delay:
        raise ValueError(
            f"delay={delay} needs delay <= execution_horizon={execution_horizon} <= "
            f"action_horizon - delay={action_horizon - delay}; execute at least as many actions as "
            "the delay, and predict the delay beyond them"
        )
