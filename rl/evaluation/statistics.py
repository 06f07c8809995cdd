"""Statistics of success: intervals, aggregates over runs, and comparisons of policies.

Sources: Agarwal et al. 2021 (rliable) for the aggregates over runs, Newcombe 1998 (method 10) for
the interval of a paired difference. SciPy computes the other intervals. Functions import it when
they are called, because its import takes a second.
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


def mean_over_tasks(
    counts: Sequence[tuple[int, int]],
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return the mean success rate over tasks, and its bootstrap interval (mean, low, high).

    Both levels are resampled: tasks with replacement, and in each of them its episodes. So the
    interval is about tasks like these, and is wide with few of them. Every task weighs the same,
    whatever its number of episodes. Drawing n outcomes with replacement from n outcomes is a
    binomial draw, so counts suffice. `stratified_bootstrap` resamples runs alone, within fixed
    tasks, and its statistic is the interquartile mean.

    Example:
        >>> mean, low, high = mean_over_tasks([(10, 10), (0, 10)])
        >>> mean, low, high
        (0.5, 0.0, 1.0)

    Args:
        counts: Successes and episodes of each task.
        confidence: Of the interval.
        num_resamples: Resamples.
        seed: Of the resampling, so that equal counts give equal intervals.

    Raises:
        ValueError: there is no task, or a task has no episode.
    """
    if not counts or any(episodes < 1 for _, episodes in counts):
        raise ValueError(
            f"counts={list(counts)} must have an episode for each of one or more tasks"
        )
    # rates of the tasks
    successes, episodes = np.asarray(counts, dtype=np.int64).T  # (tasks,) each
    rates = successes / episodes
    # both levels of the resampling
    generator = np.random.default_rng(seed)
    tasks = generator.integers(len(rates), size=(num_resamples, len(rates)))
    drawn = generator.binomial(episodes[tasks], rates[tasks]) / episodes[tasks]
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn.mean(axis=1), [tail, 1 - tail])
    return float(rates.mean()), float(low), float(high)


def paired_difference_interval(
    both: int, only_first: int, only_second: int, neither: int, confidence: float = 0.95
) -> Interval:
    """Return the interval of the second policy's success rate minus the first one's, on pairs.

    It is Newcombe's method 10: Wilson's intervals of both rates, joined with the correlation of the
    pairs. It keeps within [-1, 1] and needs no minimum of pairs that differ. (nan, nan) without
    pairs.

    Args:
        both: Starts that both policies solve.
        only_first: Starts that only the first one solves.
        only_second: Starts that only the second one solves.
        neither: Starts that none of them solves.
        confidence: Of the interval.
    """
    num = both + only_first + only_second + neither
    if num == 0:
        return math.nan, math.nan
    # rates and their own intervals
    firsts, seconds = both + only_first, both + only_second
    p1, p2 = firsts / num, seconds / num
    low1, high1 = wilson_interval(firsts, num, confidence)
    low2, high2 = wilson_interval(seconds, num, confidence)

    # correlation of the pairs, with Newcombe's correction towards 0 where it is positive
    product = float(both * neither - only_first * only_second)
    product = max(product - num / 2, 0) if product > 0 else product
    margins = firsts * (num - firsts) * seconds * (num - seconds)
    phi = product / math.sqrt(margins) if margins else 0.0

    # distances to the ends of both intervals
    down = _joined(p2 - low2, high1 - p1, phi)
    up = _joined(high2 - p2, p1 - low1, phi)
    return p2 - p1 - down, p2 - p1 + up


def _joined(first: float, second: float, phi: float) -> float:
    """Return the length of the sum of two correlated distances."""
    return math.sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))


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
