"""Objectives of policy gradients, as pure functions of log-ratios and advantages.

A *ratio* (B, M) belongs to one scored flow step, to one decision (a joint ratio) or to one draw of
the flow-matching loss. These functions treat all of them alike.
Letters: B minibatch rows, M scored flow steps (or other ratios of a decision).
Sources: Schulman et al. 2017 (PPO), Ye et al. 2020 (dual clip), Xie et al. 2024 (SPO).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def clipped_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float = math.inf,
    center: Tensor | None = None,
) -> Tensor:
    """Return the objective of each ratio (B, M), to be maximized.

    Args:
        log_ratio: Log-ratios (B, M) of the current policy to the one that acted.
        advantage: Advantages, broadcast to `log_ratio`.
        clip_low: Range of a ratio below its center [-].
        clip_high: Range of a ratio above its center [-].
        dual_clip: Lower bound of the objective for a negative advantage, in multiples of the
            advantage, so that no large ratio dominates the batch. Above 1, infinite for none.
        center: Log-ratios (B, M) at the center of the clip, for decisions of another policy than
            the current one's predecessor. The default is 0.
    """
    # range of the ratio
    low, high = _log_range(log_ratio, clip_low, clip_high)
    if center is None:
        clipped = log_ratio.clamp(low, high)
    else:
        clipped = torch.minimum(torch.maximum(log_ratio, center + low), center + high)

    # the smaller objective
    gains = torch.stack([log_ratio.exp() * advantage, clipped.exp() * advantage], -1)  # (B, M, 2)
    gain = gains.min(dim=-1).values
    if math.isinf(dual_clip):
        return gain
    return torch.where(advantage < 0, torch.maximum(gain, dual_clip * advantage), gain)


def asymmetric_surrogate(
    log_ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """Return FPO++'s objective (B, M): clipped for good decisions, a parabola for bad ones.

    Clipping gives a bad decision no gradient when its ratio is below 1 - clip_low, so the ratio may
    fall further. The parabola ratio * advantage - |advantage| (ratio - 1)^2 / (2 clip_low) pulls it
    back to its maximum at 1 - clip_low. Both have the same value and gradient at a ratio of 1.

    Args:
        log_ratio: Log-ratios (B, M).
        advantage: Advantages, broadcast to `log_ratio`.
        clip_low: Range of a ratio below 1 [-].
        clip_high: Range of a ratio above 1 [-].
    """
    ratio = log_ratio.exp()
    parabola = ratio * advantage - advantage.abs() * (ratio - 1).square() / (2 * clip_low)
    clipped = clipped_surrogate(log_ratio, advantage, clip_low, clip_high)
    return torch.where(advantage < 0, parabola, clipped)


def implied_clip(
    clip_low: float, clip_high: float, reduction: str, num_entries: int, num_steps: int
) -> str:
    """Return a description of a clip, which depends on the number of factors in a ratio.

    Args:
        clip_low: Range of a ratio below 1 [-].
        clip_high: Range of a ratio above 1 [-].
        reduction: "sum" or "mean" over a step's entries.
        num_entries: Executed entries of a chunk.
        num_steps: Flow steps in one ratio.
    """
    low, high = 1 - clip_low, 1 + clip_high
    total = num_entries * num_steps
    num_factors = num_steps if reduction == "mean" else total
    power = num_entries if reduction == "mean" else 1
    name = "product" if reduction == "sum" else "geometric mean over entries"
    return (
        f"ratio: {name}, {num_entries} entries x {num_steps} flow steps, clipped to "
        f"[{low:.3g}, {high:.3g}]; that is [{low ** (1 / num_factors):.4g}, "
        f"{high ** (1 / num_factors):.4g}] "
        f"per entry and [{low**power:.3g}, {high**power:.3g}] for the likelihood of all {total}"
    )


def ratio_metrics(log_ratio: Tensor, clip_low: float, clip_high: float) -> dict[str, Tensor]:
    """Return metrics of the deviation of ratios (B, M) from 1, as tensors ().

    `approx_kl` is the k3 estimate, the mean of (ratio - 1 - log ratio), which is never negative.
    """
    log_ratio = log_ratio.detach()
    ratio = log_ratio.exp()
    low, high = _log_range(log_ratio, clip_low, clip_high)
    clipped = log_ratio.clamp(low, high) != log_ratio
    return {
        "approx_kl": ratio.mean() - 1 + (-log_ratio).mean(),
        "clip_fraction": clipped.float().mean(),
        "ratio_deviation": (ratio - 1).abs().max(),
    }


def _log_range(log_ratio: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """Return the logarithms of 1 - clip_low and 1 + clip_high, made on the log-ratios' device."""
    low, high = (
        torch.full((), bound, device=log_ratio.device).log1p().to(log_ratio.dtype)
        for bound in (-clip_low, clip_high)
    )
    return low, high


def value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float) -> Tensor:
    """Return the mean squared error of values (B, 1), with PPO's clip if `clip` is finite.

    Args:
        value: Values of the trained critic.
        old_value: Values of the same critic before the update, in the same units. Those of another
            estimator would clip towards another quantity.
        target: Value targets.
        clip: Range of a value around the old one. Outside of it there is no gradient.
    """
    loss = (value - target).square()
    if not math.isinf(clip):
        near = old_value + (value - old_value).clamp(-clip, clip)
        loss = torch.maximum(loss, (near - target).square())
    return loss.mean()


def trajectory_log_ratio(log_ratio: Tensor, episode: Tensor) -> Tensor:
    """Return the mean log-ratio (B, 1) over the decisions of each row's episode.

    The variance of a product over a trajectory grows with its length, but that of GSPO's geometric
    mean does not. The mean is also over the log-ratios of a decision.

    Args:
        log_ratio: Log-ratios (B, M) of all decisions of the episodes.
        episode: Episode of each row (B,) int64.
    """
    _, index, length = episode.unique(return_inverse=True, return_counts=True)
    total = log_ratio.new_zeros(len(length)).index_add(0, index, log_ratio.mean(1))
    return (total / length)[index][:, None]  # (episodes,) -> (B, 1)
