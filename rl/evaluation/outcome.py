"""The outcomes of an evaluation: a row for each episode, and the rates that follow from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from pitune.envs import SuccessRule
from pitune.rl.evaluation.statistics import Interval, wilson_interval

MAX_BROKEN_SHARE = 0.05
"""Share of broken episodes above which a rate is printed with a warning."""


@dataclass(frozen=True, kw_only=True)
class EpisodeOutcome:
    """One episode of an evaluation.

    Example:
        >>> EpisodeOutcome(
        ...     index=0, seed=7, task_id=0, success_once=True, success_at_end=False, length=12
        ... ).invalid
        False
    """

    index: int
    """Place in the list of the evaluation's episodes."""
    seed: int | None
    """Seed of the start, or None where a seed does not fix the start."""
    task_id: int
    """Index of the task."""
    success_once: bool | None
    """Solved at any executed step. None in an environment that reports no success."""
    success_at_end: bool | None
    """Solved at the last executed step, or None likewise."""
    length: int
    """Executed environment steps."""
    episode_return: float = 0.0
    """Undiscounted sum of rewards."""
    invalid: bool = False
    """Whether the simulator broke down, so that the outcome does not count."""
    status_done: bool | None = None
    """Whether the policy's status head saw the task done at a decision. None without a head."""
    undecoded: int | None = None
    """Decisions whose FAST tokens were no chunk. None for a policy that acts by its flow."""

    def values(self) -> dict[str, Any]:
        """Return the entries as JSON values. Those of heads that a policy lacks are left out."""
        values = asdict(self)
        heads = ("status_done", "undecoded")
        return {
            key: value for key, value in values.items() if key not in heads or value is not None
        }

    def success(self, rule: SuccessRule) -> bool:
        """Return whether the episode succeeded by a rule. Without a report it did not."""
        return bool(self.success_once if rule == "once" else self.success_at_end)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Outcomes of episodes.

    Example:
        >>> outcome = Evaluation.of(success=[True, False], length=[12, 50])
        >>> print(outcome)
        50.0 % [9.5, 90.5] (1/2)
    """

    rows: tuple[EpisodeOutcome, ...]
    """All episodes that were played, by their place in the list. The same place has the same start
    for every policy and any number of environments."""
    success_rule: SuccessRule | None = "once"
    """Definition of success, or None in an environment that reports none."""

    @classmethod
    def of(
        cls, *, success: Sequence[bool], length: Sequence[int] | None = None, num_broken: int = 0
    ) -> Evaluation:
        """Return outcomes with these successes, and further episodes that broke down.

        For tests and examples.
        """
        steps = [1] * len(success) if length is None else length
        ended = [*zip(success, steps, strict=True), *[(False, 1)] * num_broken]
        rows = [
            EpisodeOutcome(
                index=index,
                seed=index,
                task_id=0,
                success_once=solved,
                success_at_end=solved,
                length=num,
                invalid=index >= len(success),
            )
            for index, (solved, num) in enumerate(ended)
        ]
        return cls(rows=tuple(rows))

    @property
    def counted(self) -> list[EpisodeOutcome]:
        """The episodes that count: all but those in a broken simulator."""
        return [row for row in self.rows if not row.invalid]

    @property
    def success(self) -> list[bool]:
        """Success of each episode that counts. Empty in an environment that reports none."""
        rule = self.success_rule
        return [] if rule is None else [row.success(rule) for row in self.counted]

    @property
    def task_id(self) -> list[int]:
        """Task of each episode that counts."""
        return [row.task_id for row in self.counted]

    @property
    def length(self) -> list[int]:
        """Environment steps of each episode that counts."""
        return [row.length for row in self.counted]

    @property
    def episode_return(self) -> list[float]:
        """Undiscounted return of each episode that counts."""
        return [row.episode_return for row in self.counted]

    @property
    def num_episodes(self) -> int:
        """Number of episodes that count."""
        return len(self.counted)

    @property
    def num_invalid(self) -> int:
        """Number of episodes in a broken simulator, which are in no rate."""
        return len(self.rows) - self.num_episodes

    @property
    def success_rate(self) -> float | None:
        """Share of successes. None without an episode that counts, or without a report."""
        return sum(self.success) / len(self.success) if self.success else None

    @property
    def interval(self) -> Interval | None:
        """Wilson's 95 % interval of the success rate, or None without a rate."""
        return wilson_interval(sum(self.success), len(self.success)) if self.success else None

    @property
    def lower_bound_all(self) -> float | None:
        """Lower end of Wilson's interval over all episodes, with broken ones as failures.

        The measure by which policies are ranked: a policy that breaks its simulator has few
        episodes that count, but not a high rank. None in an environment that reports no success.
        """
        if self.success_rule is None or not self.rows:
            return None
        return wilson_interval(sum(self.success), len(self.rows))[0]

    @property
    def mean_return(self) -> float | None:
        """Mean undiscounted return, or None without an episode that counts."""
        return fmean(self.episode_return) if self.counted else None

    def rate(self, rule: SuccessRule) -> float | None:
        """Return the share of successes by another rule, or None without a rate."""
        if self.success_rule is None or not self.counted:
            return None
        return fmean(row.success(rule) for row in self.counted)

    def status_counts(self) -> dict[str, int] | None:
        """Return how the status head agrees with the simulator, None if one of them is missing.

        The head is a second opinion: no rate is made from it.
        """
        rows = [row for row in self.counted if row.status_done is not None]
        rule = self.success_rule
        if rule is None or not rows:
            return None
        pairs = [(bool(row.status_done), row.success(rule)) for row in rows]
        names = {
            "done_and_success": (True, True),
            "done_without_success": (True, False),
            "success_without_done": (False, True),
            "neither": (False, False),
        }
        return {name: pairs.count(pair) for name, pair in names.items()}

    def _heads(self) -> dict[str, Any]:
        """Return the entries of the summary that only policies with these heads have."""
        status = self.status_counts()
        undecoded = [row.undecoded for row in self.rows if row.undecoded is not None]
        entries: dict[str, Any] = {} if status is None else {"status": status}
        return entries | ({"undecoded": sum(undecoded)} if undecoded else {})

    def by_task(self) -> dict[int, tuple[int, int]]:
        """Return (successes, episodes) of each task, or nothing without a rate."""
        counts: dict[int, tuple[int, int]] = {}
        for task, success in sorted(zip(self.task_id, self.success, strict=False)):
            successes, episodes = counts.get(task, (0, 0))
            counts[task] = (successes + success, episodes + 1)
        return counts

    def warning(self) -> str | None:
        """Return a warning if more than `MAX_BROKEN_SHARE` of the episodes broke down."""
        num, total = self.num_invalid, len(self.rows)
        if num <= MAX_BROKEN_SHARE * total:
            return None
        text = f"{num} of {total} episodes broke down ({num / total:.0%}), and no rate counts them"
        if self.lower_bound_all is not None:
            text += f"; with them as failures success is at least {self.lower_bound_all:.1%}"
        return f"{text}. The log has the causes"

    def summary(self) -> dict[str, Any]:
        """Return the numbers for a report as JSON values, raw counts first.

        A rate that does not exist is None. `rows` holds the episodes.
        """
        low, high = self.interval or (None, None)
        return {
            "successes": sum(self.success),
            "episodes": self.num_episodes,
            "success_rate": self.success_rate,
            "wilson_low": low,
            "wilson_high": high,
            "lower_bound_all": self.lower_bound_all,
            "success_rule": self.success_rule,
            "success_once": self.rate("once"),
            "success_at_end": self.rate("at_end"),
            "mean_length": fmean(self.length) if self.counted else None,
            "mean_return": self.mean_return,
            "invalid": self.num_invalid,
            "by_task": {str(task): counts for task, counts in self.by_task().items()},
            **self._heads(),
            "rows": [row.values() for row in self.rows],
        }

    def __str__(self) -> str:
        return text_of(self.summary())


def text_of(summary: dict[str, Any]) -> str:
    """Return an evaluation's summary, of any version, as one line.

    Example:
        >>> text_of(Evaluation.of(success=[True] * 49 + [False], num_broken=3).summary())
        '98.0 % [89.5, 99.6] (49/50; 3 broken)'
    """
    num = summary["episodes"]
    broken = f"; {summary['invalid']} broken" if summary.get("invalid") else ""
    rate, low, high = (summary[key] for key in ("success_rate", "wilson_low", "wilson_high"))
    if summary.get("success_rule", "once") is None:
        mean = summary["mean_return"]
        value = "none" if mean is None else f"{mean:.4g}"
        return f"no success in info: return only, mean {value} ({num} episodes{broken})"
    if rate is None or math.isnan(rate):  # nan in files of older versions
        return f"no success rate (0/0{broken})"
    return (
        f"{100 * rate:.1f} % [{100 * low:.1f}, {100 * high:.1f}] "
        f"({summary['successes']}/{num}{broken}){_heads_text(summary)}"
    )


def _heads_text(summary: dict[str, Any]) -> str:
    """Return the counts of a status head and of undecoded FAST tokens, if there are any."""
    text = ""
    if (status := summary.get("status")) is not None:
        text += (
            f"; status head: done in {status['done_and_success']} successes and "
            f"{status['done_without_success']} failures, not done in "
            f"{status['success_without_done']} successes and {status['neither']} failures"
        )
    if summary.get("undecoded"):
        text += f"; {summary['undecoded']} decisions had FAST tokens that were no chunk"
    return text
