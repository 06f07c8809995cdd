"""What policy gradients on ratios share: pure functions of log-ratios and advantages.

A *ratio* belongs to one scored flow step, to one decision or to one draw of the flow-matching loss;
these functions do not care which. Letters: B minibatch, M ratios per decision.
Sources: Schulman et al. 2017 (PPO); Ye et al. 2020 (dual clip); Xie et al. 2024 (SPO).
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
        log_ratio: Of the policy to the one that acted (B, M).
        advantage: Broadcasts to `log_ratio`.
        clip_low: How far a ratio may fall below its center [-].
        clip_high: How far it may rise above [-].
        dual_clip: Where the advantage is negative the objective is at least this many times it, so
            that a ratio that ran away cannot dominate the batch; above 1, infinite for none.
        center: Logarithm of the ratio around which is clipped (B, M); 0 unless another policy
            than the present one's predecessor acted.
    """
    low, high = torch.tensor(-clip_low).log1p(), torch.tensor(clip_high).log1p()
    if center is None:
        clipped = log_ratio.clamp(low.to(log_ratio), high.to(log_ratio))
    else:
        clipped = torch.minimum(torch.maximum(log_ratio, center + low), center + high)
    gains = torch.stack([log_ratio.exp() * advantage, clipped.exp() * advantage], -1)
    gain = gains.min(dim=-1).values
    if math.isinf(dual_clip):
        return gain
    return torch.where(advantage < 0, torch.maximum(gain, dual_clip * advantage), gain)


def asymmetric_surrogate(
    log_ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """Return FPO++'s objective (B, M): clipped for good decisions, a parabola for bad ones.

    Clipping gives a bad decision's ratio no gradient once it has fallen below 1 - clip_low, so
    nothing calls it back; the parabola ratio * A - |A| (ratio - 1)^2 / (2 clip_low) does, and its
    best ratio is 1 - clip_low. At a ratio of 1 both have the same value and gradient.
    """
    ratio = log_ratio.exp()
    parabola = ratio * advantage - advantage.abs() * (ratio - 1).square() / (2 * clip_low)
    clipped = clipped_surrogate(log_ratio, advantage, clip_low, clip_high)
    return torch.where(advantage < 0, parabola, clipped)


def implied_clip(
    clip_low: float, clip_high: float, reduction: str, num_entries: int, num_steps: int
) -> str:
    """Return in words what a clip means: it is meaningless without what the ratio multiplies.

    Args:
        clip_low: How far a ratio may fall below 1 [-].
        clip_high: How far it may rise above [-].
        reduction: "sum" or "mean" over a step's entries.
        num_entries: Executed entries of a chunk.
        num_steps: Flow steps in one ratio.
    """
    low, high = 1 - clip_low, 1 + clip_high
    total = num_entries * num_steps
    entry = num_steps if reduction == "mean" else total
    whole = num_entries if reduction == "mean" else 1
    what = "product" if reduction == "sum" else "geometric mean over entries"
    return (
        f"ratio: {what}, {num_entries} entries x {num_steps} flow steps, clipped to "
        f"[{low:.3g}, {high:.3g}]; that is [{low ** (1 / entry):.4g}, {high ** (1 / entry):.4g}] "
        f"per entry and [{low**whole:.3g}, {high**whole:.3g}] for the likelihood of all {total}"
    )


def ratio_metrics(log_ratio: Tensor, clip_low: float, clip_high: float) -> dict[str, float]:
    """Return how far a batch of ratios is from 1.

    `approx_kl` is the k3 estimate, the mean of (ratio - 1 - log ratio), which is never negative.
    """
    log_ratio = log_ratio.detach()
    ratio = log_ratio.exp()
    low, high = torch.tensor(-clip_low).log1p(), torch.tensor(clip_high).log1p()
    clipped = log_ratio.clamp(low.to(log_ratio), high.to(log_ratio)) != log_ratio
    return {
        "approx_kl": float(ratio.mean() - 1 + (-log_ratio).mean()),
        "clip_fraction": float(clipped.float().mean()),
        "ratio_deviation": float((ratio - 1).abs().max()),
    }


def value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float) -> Tensor:
    """Return the squared error of values (B, 1), averaged; clipped as PPO's if `clip` is finite.

    Args:
        value: Of the critic in training.
        old_value: Of the same critic on the same inputs, before the update, in the same units:
            values of another estimator would be clipped towards another quantity.
        target: What they should be.
        clip: How far a value may leave the old one before its gradient ends.
    """
    loss = (value - target).square()
    if not math.isinf(clip):
        near = old_value + (value - old_value).clamp(-clip, clip)
        loss = torch.maximum(loss, (near - target).square())
    return loss.mean()


def trajectory_log_ratio(log_ratio: Tensor, episode: Tensor) -> Tensor:
    """Return the log-ratio of each decision's whole episode (B, 1): the mean over its decisions.

    A product over a trajectory has a variance that grows with its length; GSPO's geometric mean
    does not. The ratios (B, M) of a decision are averaged too.

    Args:
        log_ratio: (B, M); all decisions of an episode are among the rows.
        episode: Which episode each row belongs to (B,) int64.
    """
    _, index, length = episode.unique(return_inverse=True, return_counts=True)
    total = log_ratio.new_zeros(len(length)).index_add(0, index, log_ratio.mean(1))
    return (total / length)[index][:, None]
