"""One row of metrics from those of all ranks."""

from __future__ import annotations

from statistics import fmean

from pitune.rl import ranks

TOTALS = (
    "aggregated",
    "cloned_chunks",
    "env_steps",
    "env_steps_per_second",
    "groups",
    "replay_size",
)
"""Metrics that count something of a rank. The row has their sum."""
GREATEST = ("group_start_spread", "log_prob_gap_max", "ratio_deviation", "seconds/")
"""Metrics, or the beginning of their names, that are a greatest value or the time of a rank."""


def merged(parts: list[dict[str, float]]) -> dict[str, float]:
    """Return the metrics of all ranks: sums of counts, greatest values, and means of the others.

    A metric that some ranks lack is that of the others.

    Example:
        >>> merged([{"loss": 1.0, "replay_size": 8.0}, {"loss": 3.0, "replay_size": 8.0}])
        {'loss': 2.0, 'replay_size': 16.0}
    """
    row: dict[str, float] = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part[key] for part in parts if key in part]
        if key in TOTALS:
            row[key] = sum(values)
        elif key.startswith(GREATEST):
            row[key] = max(values)
        else:  # a value of all ranks stays the same to the last bit
            row[key] = values[0] if len(set(values)) == 1 else fmean(values)
    return row


def of_all_ranks(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics of an iteration, the same on every rank."""
    return metrics if ranks.world() == 1 else merged(ranks.gathered(metrics))
