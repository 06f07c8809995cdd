"""Warnings of a run while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pitune.experiments.health.metric import entry, judge
from pitune.experiments.health.table import METRICS

MOST_ROWS = 64
"""Rows of a resumed run that are judged together. Every window is shorter."""


class HealthMonitor:
    """Warns of unhealthy metrics, once per metric and run.

    Example:
        >>> monitor = HealthMonitor("ppo", {"algorithm": {"target_kl": 0.2}}, before={})
        >>> row = {"iteration": 1, "ratio_deviation": 0.5}
        >>> [text[:22] for text in monitor.warnings([row])], monitor.warnings([row, row])
        (['ratio_deviation is 0.5'], [])

    Args:
        algorithm: Registered name.
        config: Settings of the run, as in config.json.
        before: Evaluation of the deployed policy before training, as in summary.json.
        rows: Of the run before it was resumed, whose warnings are not repeated.
    """

    def __init__(
        self,
        algorithm: str,
        config: Mapping[str, Any],
        before: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._algorithm = algorithm
        self._config, self._before = config, before
        self._warned: set[str] = set()
        # warnings that a resumed run has printed already
        for num in range(1, len(rows) + 1):
            self.warnings(rows[max(0, num - MOST_ROWS) : num])

    def warnings(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return the new warnings after the last of the rows."""
        return list(self._new_warnings(rows))

    def _new_warnings(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        if not rows:
            return
        # metrics that left their healthy range
        for column in rows[-1]:
            metric = entry(column, self._algorithm, METRICS)
            if metric is None or not metric.checked or metric.name in self._warned:
                continue
            verdict = judge(column, rows[-metric.window :], metric, self._config)
            if verdict.healthy is False:
                self._warned.add(metric.name)
                yield verdict.sentence(self._config)
        # success below its value before training
        if "success_rate" not in self._warned and success_dropped(self._before, rows[-1]):
            self._warned.add("success_rate")
            yield drop_sentence(self._before, rows[-1])


def success_dropped(before: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Return whether an evaluation is below the one before training beyond chance.

    That is so where their 95 % intervals do not overlap, which is stricter than a test at 5 %.

    Args:
        before: Evaluation of the deployed policy before training, as in summary.json.
        row: Of metrics.csv. Without an evaluation nothing has dropped.
    """
    if "success_rate_high" not in row or before.get("wilson_low") is None:
        return False
    return bool(row["success_rate_high"] < before["wilson_low"])


def drop_sentence(before: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Return the warning of a drop in success."""
    return (
        f"success dropped to {row['success_rate']:.1%} [{row['success_rate_low']:.1%}, "
        f"{row['success_rate_high']:.1%}], from {before['success_rate']:.1%} before training; "
        "see docs/troubleshooting.md"
    )
