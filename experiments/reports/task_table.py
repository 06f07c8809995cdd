"""Success by task: a row for each task, and the mean over tasks, for one or several evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pitune.envs import EnvSpec
from pitune.experiments.reports.table import TextTable
from pitune.rl.evaluation.statistics import mean_over_tasks, wilson_interval

Counts = Mapping[int, tuple[int, int]]
"""Task -> successes and episodes."""
CAPTION = (
    "95 % intervals: Wilson's for a task, a bootstrap over tasks and their episodes for the mean."
)


def names_of(spec: EnvSpec) -> tuple[str, ...]:
    """Return the name of each task: the environment's, or else its instruction."""
    return spec.task_names or spec.tasks


def counts_of(summary: Mapping[str, Any]) -> dict[int, tuple[int, int]]:
    """Return the successes and episodes of each task from the summary of an evaluation.

    Example:
        >>> counts_of({"by_task": {"0": [3, 4], "1": [1, 4]}})
        {0: (3, 4), 1: (1, 4)}
    """
    stored = summary.get("by_task") or {}
    return {int(task): (int(pair[0]), int(pair[1])) for task, pair in stored.items()}


def task_table(names: Sequence[str], evaluations: Mapping[str, Counts]) -> TextTable | None:
    """Return the table of success by task, or None where fewer than two tasks have successes.

    Example:
        >>> table = task_table(("push", "reach"), {"success": {0: (5, 10), 1: (9, 10)}})
        >>> table.rows[0]
        ('push', '50.0% [23.7%, 76.3%] (5/10)')

    Args:
        names: Names of the tasks.
        evaluations: Title of a column -> its counts.
    """
    tasks = sorted({task for counts in evaluations.values() for task in counts})
    if len(tasks) < 2:
        return None
    rows = [
        (_name(names, task), *(_cell(counts.get(task)) for counts in evaluations.values()))
        for task in tasks
    ]
    rows.append(
        (f"mean of {len(tasks)} tasks", *(_mean(counts, tasks) for counts in evaluations.values()))
    )
    return TextTable("success by task", ("task", *evaluations), rows, CAPTION)


def _name(names: Sequence[str], task: int) -> str:
    return names[task] if task < len(names) else f"task {task}"


def rate_text(successes: int, num: int) -> str:
    """Return a success rate with its interval and its counts.

    Example:
        >>> rate_text(5, 10)
        '50.0% [23.7%, 76.3%] (5/10)'
    """
    low, high = wilson_interval(successes, num)
    return f"{successes / num:.1%} [{low:.1%}, {high:.1%}] ({successes}/{num})"


def _cell(counts: tuple[int, int] | None) -> str:
    return "-" if counts is None else rate_text(*counts)


def _mean(counts: Counts, tasks: Sequence[int]) -> str:
    """Return the mean over tasks, or a dash where one of them has no episode that counts."""
    if any(task not in counts for task in tasks):
        return "-"
    mean, low, high = mean_over_tasks([counts[task] for task in tasks])
    return f"{mean:.1%} [{low:.1%}, {high:.1%}]"
