"""Returns, advantages and indicators of recorded episodes, as pure functions on flat tables.

A row is a decision or a demonstrated step. Its time is the number of control steps since the
episode's start. Rows of an episode are neighbors in the order of time.

Letters: N rows.
Source: Physical Intelligence 2025 (π*0.6). Its constants for the cost of a failure are not
published.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pitune.policies.network.options.tokens.conditioning import NEGATIVE, POSITIVE


def normalized_returns(
    time: Tensor, length: Tensor, success: Tensor, scale: Tensor, failure_cost: float
) -> Tensor:
    """Return the return of each row (N,), in [-1, 0].

    Each step costs 1 until the episode ends, and a failed end costs more. The sum is divided by
    the length of the task's longest episode. Returns below -1 count as -1.

    Args:
        time: Steps since the episode's start (N,).
        length: Steps of the episode (N,).
        success: Whether the episode succeeded (N,) bool.
        scale: Steps of the longest episode of the row's task (N,).
        failure_cost: Cost of a failed end [longest episodes].

    Example:
        >>> steps, longest = torch.tensor([0, 3]), torch.tensor([8, 8])
        >>> normalized_returns(steps, torch.tensor([4, 4]), torch.tensor([True, False]), longest, 1)
        tensor([-0.5000, -1.0000])
    """
    # in units of the task's longest episode
    cost = (length - time) / scale + failure_cost * (~success).float()
    return -cost.clamp(max=1.0)


def steps_ahead(time: Tensor, episode: Tensor, num_steps: int | None) -> Tensor:
    """Return the first row of the same episode that is `num_steps` later (N,), or -1 without one.

    Args:
        time: Steps since the episode's start (N,).
        episode: Number of the episode (N,), in ascending order.
        num_steps: Steps, None for the end of the episode.
    """
    num = len(time)
    if num_steps is None or not num:
        return torch.full((num,), -1)
    # one axis on which episodes do not overlap
    span = int(time.max()) + num_steps + 1
    place = episode * span + time
    # the row at or after that time, if it belongs to the same episode
    ahead = torch.searchsorted(place, place + num_steps)
    inside = ahead < num
    same = episode[ahead.clamp(max=num - 1)] == episode
    return torch.where(inside & same, ahead, -1)


def advantages(
    value: Tensor, returns: Tensor, time: Tensor, ahead: Tensor, scale: Tensor
) -> Tensor:
    """Return the advantage of each row (N,) over the value of its observation.

    It is the cost of the steps up to the row ahead and the value there, or the return of the rest
    of the episode where no row is ahead, minus the row's own value.

    Args:
        value: Value of each row (N,).
        returns: Of `normalized_returns` (N,).
        time: Steps since the episode's start (N,).
        ahead: Of `steps_ahead` (N,).
        scale: Steps of the longest episode of the row's task (N,).
    """
    later = ahead.clamp(min=0)
    looked = -(time[later] - time) / scale + value[later]
    return torch.where(ahead >= 0, looked, returns) - value


def threshold(advantage: Tensor, share: float) -> float:
    """Return the value such that advantages of at least it are about a share of all (N,).

    Equal advantages are on one side. Of the two cuts around a tie it is the nearer one to the
    share, and there is at least one row above it.

    Example:
        >>> threshold(torch.tensor([1.0, 2.0, 2.0, 2.0, 3.0]), share=0.4)
        3.0
    """
    values, counts = advantage.unique(return_counts=True)  # ascending
    above = counts.flip(0).cumsum(0).flip(0) / len(advantage)  # share of rows from each value on
    # from the greatest value on, so that of two cuts as near as each other the smaller share counts
    return float(values.flip(0)[(above - share).abs().flip(0).argmin()])


def indicators(advantage: Tensor, task: Tensor, forced: Tensor, share: float) -> Tensor:
    """Return whether each row is positive (N,) int64: 1, or 0.

    The best `share` of each task's rows is positive. Forced rows are positive, and the thresholds
    do not depend on them.

    Args:
        advantage: (N,).
        task: Index of each row's task (N,).
        forced: Rows that are positive in any case (N,) bool, such as human corrections.
        share: Share of positive rows [-].
    """
    label = torch.full_like(task, NEGATIVE)
    for number in task.unique().tolist():
        # each task has its own threshold, so that a hard one has positive rows too
        own = (task == number) & ~forced
        if own.any():
            label[own & (advantage >= threshold(advantage[own], share))] = POSITIVE
    return torch.where(forced, POSITIVE, label)


def return_bin(returns: Tensor, num_bins: int) -> Tensor:
    """Return the bin (N,) int64 of returns in [-1, 0], the last one for the greatest.

    Example:
        >>> return_bin(torch.tensor([-1.0, -0.4, 0.0]), 3)
        tensor([0, 1, 2])
    """
    return ((returns + 1) * (num_bins - 1)).round().long()


def longest_of_task(length: Tensor, task: Tensor) -> Tensor:
    """Return the length of the longest episode of each row's task (N,)."""
    longest = torch.zeros(int(task.max()) + 1 if len(task) else 0, dtype=length.dtype)
    return longest.scatter_reduce(0, task, length, "amax")[task]
