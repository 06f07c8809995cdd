"""Statistics of success: intervals, aggregates over runs, and comparisons of policies.

Source: Agarwal et al. 2021 (rliable) for the aggregates. SciPy computes the intervals.
Functions import it when they are called, because its import takes a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]


def wilson_interval(successes: int, num: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's interval of a success rate, for plots. It is (nan, nan) without episodes."""
    from scipy.stats import binomtest

    if num == 0:
        return math.nan, math.nan
    interval = binomtest(successes, num).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def clopper_pearson_interval(successes: int, num: int, confidence: float = 0.95) -> Interval:
    """Return the exact interval of a success rate, for guarantees. It is never too narrow."""
    from scipy.stats import binomtest

    if num == 0:
        return math.nan, math.nan
    interval = binomtest(successes, num).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def interquartile_mean(scores: Sequence[float]) -> float:
    """Return the mean of the middle half of scores."""
    from scipy.stats import trim_mean

    return float(trim_mean(np.asarray(scores, dtype=float).ravel(), 0.25))


def stratified_bootstrap(
    scores: np.ndarray, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the percentile interval of the interquartile mean of scores (runs, tasks).

    Runs are resampled within each task, so the tasks' weights stay fixed.
    """
    from scipy.stats import bootstrap, trim_mean

    # scores of each task (runs,), which are resampled on their own
    columns = [np.asarray(scores, dtype=float)[:, task] for task in range(scores.shape[1])]

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)

    interval = bootstrap(
        columns,
        statistic,
        n_resamples=num_resamples,
        confidence_level=confidence,
        method="percentile",
        random_state=seed,
        vectorized=True,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def fisher_p_value(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Return the exact two-sided p-value that two success rates differ.

    For different starts. On shared starts, `mcnemar_p_value` is more powerful.

    Args:
        first: Successes and episodes of one policy.
        second: Successes and episodes of the other policy.
    """
    from scipy.stats import fisher_exact

    table = [[successes, episodes - successes] for successes, episodes in (first, second)]
    return float(fisher_exact(table).pvalue)


def mcnemar_p_value(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Return the exact two-sided p-value that two policies differ, on the same starts.

    Raises:
        ValueError: the policies have different numbers of episodes.
    """
    from scipy.stats import binomtest

    _check_paired(first, second)
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    discordant = sum(a != b for a, b in zip(first, second, strict=True))
    return 1.0 if discordant == 0 else float(binomtest(only_first, discordant).pvalue)


def paired_e_value(first: Sequence[bool], second: Sequence[bool], bet: float = 0.5) -> list[float]:
    """Return the running evidence that `second` succeeds more often than `first`, pair by pair.

    It is a martingale if both are equal. Stopping when it exceeds 1 / alpha keeps the error below
    alpha for any number of looks, which a test of fixed size does not.

    Args:
        first: Successes on shared starts.
        second: Successes of the other policy on the same starts.
        bet: Share of the stake on each discordant pair, in (0, 1).

    Raises:
        ValueError: the policies have different numbers of episodes.
    """
    _check_paired(first, second)
    evidence, running = 1.0, []
    for a, b in zip(first, second, strict=True):
        if a != b:
            evidence *= 1 + bet * (1 if b else -1)
        running.append(evidence)
    return running


def _check_paired(first: Sequence[bool], second: Sequence[bool]) -> None:
    """Raise ValueError if two policies have different numbers of episodes."""
    if len(first) != len(second):
        raise ValueError(
            f"the first policy has {len(first)} episodes, the second {len(second)}; a paired test "
            "needs the same starts for both"
        )
