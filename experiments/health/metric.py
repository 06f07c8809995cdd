"""An entry of the health table, and the judgement of a run's metric by its entry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import fmean
from typing import Any, NamedTuple


@dataclass(frozen=True, kw_only=True)
class Metric:
    """An entry of the health table.

    Example:
        >>> metric = Metric(
        ...     name="clip_fraction", meaning="share of clipped ratios", healthy="0.1 to 0.3",
        ...     advice="lower the learning rate", high=0.5,
        ... )
        >>> metric.contains(0.2, config={}), metric.contains(0.6, config={})
        (True, False)
    """

    name: str
    """Column of metrics.csv; `*` stands for any text, for example `seconds/*`."""
    algorithms: tuple[str, ...] = ()
    """Registered names that log it, none for every algorithm."""
    meaning: str
    """With the unit, and the setting that it needs if it is not always logged."""
    healthy: str
    """The healthy range in words."""
    advice: str
    """Advice for a value outside of the range."""
    low: float = -math.inf
    """Least healthy value."""
    high: float = math.inf
    """Greatest healthy value."""
    high_setting: str = ""
    """Setting of the algorithm that is the greatest healthy value."""
    start_setting: str = ""
    """Setting of the algorithm: iterations in which the range does not hold yet."""
    window: int = 1
    """Latest rows whose mean is compared with the range."""
    sparse_only: bool = False
    """Whether the range holds for a sparse reward of 0 and 1 only."""
    optional: bool = False
    """Whether only some settings or later iterations log it."""

    @property
    def checked(self) -> bool:
        """Whether the table has numbers for the range, and not only words."""
        return math.isfinite(self.low) or math.isfinite(self.high) or bool(self.high_setting)

    def limits(self, config: Mapping[str, Any]) -> tuple[float, float]:
        """Return the least and the greatest healthy value in a run.

        Args:
            config: Settings of the run, as in config.json.
        """
        if self.sparse_only and not _is_sparse(config):
            return -math.inf, math.inf
        high = self.high
        if self.high_setting:
            high = min(high, float(setting(config, self.high_setting, math.inf)))
        return self.low, high

    def contains(self, value: float, config: Mapping[str, Any]) -> bool:
        """Return whether a value is healthy in a run with these settings."""
        low, high = self.limits(config)
        return low <= value <= high


class Verdict(NamedTuple):
    """A metric of a run, judged.

    Example:
        >>> metric = Metric(
        ...     name="clip_fraction", meaning="share of clipped ratios", healthy="below 0.5",
        ...     advice="Lower the learning rate.", high=0.5,
        ... )
        >>> rows = [{"iteration": 1, "clip_fraction": 0.6}]
        >>> verdict = judge("clip_fraction", rows, metric, config={})
        >>> verdict.value, verdict.healthy
        (0.6, False)
    """

    column: str
    value: float
    """Mean of the latest rows that have it, or nan."""
    metric: Metric | None
    """Its entry, or None."""
    healthy: bool | None
    """None if there is no numeric range, or too few rows yet."""

    def sentence(self, config: Mapping[str, Any]) -> str:
        """Return a warning: value, range, meaning and advice."""
        if self.metric is None:
            return f"{self.column} is {self.value:.3g}"
        low, high = self.metric.limits(config)
        bound = f"above {high:.3g}" if self.value > high else f"below {low:.3g}"
        return (
            f"{self.column} is {self.value:.3g}, {bound} ({self.metric.meaning}). "
            f"Healthy: {self.metric.healthy}. {self.metric.advice}"
        )


def entry(column: str, algorithm: str, table: Sequence[Metric]) -> Metric | None:
    """Return the entry of a column: that of the algorithm, or else one of another algorithm.

    Args:
        column: Of metrics.csv.
        algorithm: Registered name. One from outside the repository may share metrics.
        table: Entries to choose from.
    """
    matches = [metric for metric in table if fnmatchcase(column, metric.name)]
    own = [metric for metric in matches if not metric.algorithms or algorithm in metric.algorithms]
    return next(iter([*own, *matches]), None)


def judge(
    column: str, rows: Sequence[Mapping[str, Any]], metric: Metric | None, config: Mapping[str, Any]
) -> Verdict:
    """Judge a column of a run's rows by its entry in the table."""
    # window of the metric
    start, window = 0.0, 1
    if metric is not None:
        start = float(setting(config, metric.start_setting, 0)) if metric.start_setting else 0.0
        window = metric.window

    # values after the start, as many as the window holds
    values = [float(row[column]) for row in rows if column in row]
    later = [float(row[column]) for row in rows if column in row and row["iteration"] > start]
    later = [value for value in later if not math.isnan(value)][-window:]

    # verdict
    if metric is None or not metric.checked or len(later) < window:
        return Verdict(column, values[-1] if values else math.nan, metric, None)
    value = fmean(later)
    return Verdict(column, value, metric, metric.contains(value, config))


def setting(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return a setting of the algorithm, also from a nested block such as `ppo.update`.

    Args:
        config: Settings of a run, as in config.json.
        name: Of the setting.
        default: Value of an algorithm that lacks it.
    """

    def search(block: Mapping[str, Any]) -> list[Any]:
        nested = [part for part in block.values() if isinstance(part, Mapping)]
        return [block[name]] if name in block else [v for part in nested for v in search(part)]

    return next(iter(search(config.get("algorithm", {}))), default)


def _is_sparse(config: Mapping[str, Any]) -> bool:
    """Return whether the learner's reward is 1 on success and 0 otherwise."""
    if config.get("env", {}).get("reward", "sparse") != "sparse":
        return False
    for block in (config.get("algorithm", {}), config.get("algorithm", {}).get("learner", {})):
        learner = block.get("off_policy", {})
        if learner.get("reward_scale", 1.0) != 1.0 or learner.get("reward_offset", 0.0) != 0.0:
            return False
    return True
