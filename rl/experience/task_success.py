"""The success of each task of a suite, as a few metrics.

Letters: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST_TASKS = 10
"""Tasks that have a metric each. Of more tasks, the worst and the best rate are logged."""


def task_success(prefix: str, task_id: Sequence[int], success: Sequence[bool]) -> dict[str, float]:
    """Return the success rates of the tasks among ended episodes (N), nothing for a single task.

    Example:
        >>> task_success("train", [0, 1, 1], [True, True, False])
        {'train/task_success/0': 1.0, 'train/task_success/1': 0.5}

    Args:
        prefix: First part of the metrics' names.
        task_id: Task of each episode (N).
        success: Whether it succeeded (N).
    """
    outcomes: dict[int, list[bool]] = {}
    for task, solved in zip(task_id, success, strict=True):
        outcomes.setdefault(task, []).append(solved)
    rates = {str(task): sum(outcomes[task]) / len(outcomes[task]) for task in sorted(outcomes)}
    if len(rates) > MOST_TASKS:
        rates = {"worst": min(rates.values()), "best": max(rates.values())}
    if set(outcomes) <= {0}:
        return {}
    return {f"{prefix}/task_success/{name}": rate for name, rate in rates.items()}
