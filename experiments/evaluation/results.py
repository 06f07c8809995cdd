"""The results of an evaluation as JSON values: totals, seeds, tasks, rows, and comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from pitune import rl
from pitune.envs import EnvSpec
from pitune.experiments.reports.task_table import names_of
from pitune.rl.evaluation.statistics import fisher_p_value, mean_over_tasks, wilson_interval

Summary = dict[str, Any]


def pooled(evaluations: Mapping[int, rl.Evaluation]) -> rl.Evaluation:
    """Return the episodes of all seeds as one evaluation."""
    rules = {evaluation.success_rule for evaluation in evaluations.values()}
    rule = next((rule for rule in rules if rule is not None), None)
    rows = tuple(row for evaluation in evaluations.values() for row in evaluation.rows)
    return rl.Evaluation(rows=rows, success_rule=rule)


def summary_of(evaluations: Mapping[int, rl.Evaluation], spec: EnvSpec) -> Summary:
    """Return the result of one policy: its total, each seed, each task and the rows.

    Args:
        evaluations: By their seeds.
        spec: The environment.
    """
    total = pooled(evaluations)
    # rows with the names of their tasks
    names = names_of(spec)
    rows = [
        {
            "evaluation_seed": seed,
            **row,
            "task": names[row["task_id"]],
            **_start(row, spec),
        }
        for seed, evaluation in evaluations.items()
        for row in evaluation.summary()["rows"]
    ]
    # each seed, without its rows
    seeds = {}
    for seed, evaluation in evaluations.items():
        seeds[str(seed)] = {k: v for k, v in evaluation.summary().items() if k != "rows"}
    return {
        **total.summary(),
        "warning": total.warning(),
        "mean_over_tasks": _mean(total),
        "tasks": [_task(total, task_id, spec) for task_id in sorted(tasks_of(total))],
        "seeds": seeds,
        "rows": rows,
    }


def tasks_of(evaluation: rl.Evaluation) -> set[int]:
    """Return the tasks of an evaluation's episodes."""
    return {row.task_id for row in evaluation.rows}


def _start(row: Mapping[str, Any], spec: EnvSpec) -> dict[str, int]:
    """Return the fixed start of a row, where its environment has such."""
    if spec.num_starts is None or row["seed"] is None:
        return {}
    return {"start": (row["seed"] // len(spec.tasks)) % spec.num_starts}


def _task(evaluation: rl.Evaluation, task_id: int, spec: EnvSpec) -> Summary:
    """Return the row of a task."""
    rows = [row for row in evaluation.rows if row.task_id == task_id]
    part = rl.Evaluation(rows=tuple(rows), success_rule=evaluation.success_rule)
    low, high = part.interval or (None, None)
    return {
        "task_id": task_id,
        "task": names_of(spec)[task_id],
        "instruction": spec.tasks[task_id],
        "successes": sum(part.success),
        "episodes": part.num_episodes,
        "success_rate": part.success_rate,
        "wilson_low": low,
        "wilson_high": high,
        "invalid": part.num_invalid,
        "mean_length": fmean(part.length) if part.counted else None,
        "mean_return": part.mean_return,
    }


def _mean(evaluation: rl.Evaluation) -> Summary | None:
    """Return the mean success rate over tasks, None with one task or where one has no rate."""
    counts = evaluation.by_task()
    if len(counts) < 2 or counts.keys() != tasks_of(evaluation):
        return None
    mean, low, high = mean_over_tasks(list(counts.values()))
    return {"success_rate": mean, "low": low, "high": high, "tasks": len(counts)}


def comparison_of(first: Summary, second: Summary, paired: bool) -> Summary:
    """Return the comparison of two results: in total and for each task.

    Args:
        first: Result of the checkpoint.
        second: Result of the other one.
        paired: Whether both have played the same starts.
    """
    rule = first["success_rule"]
    if rule is None or second["success_rule"] is None:
        return {"paired": paired, "total": None, "tasks": []}
    if not paired:
        return {"paired": False, "total": _unpaired(first, second), "tasks": []}
    tasks = []
    for task in first["tasks"]:
        parts = [_rows_of(summary, task["task_id"]) for summary in (first, second)]
        tasks.append({"task": task["task"], **_paired(*parts)})
    return {"paired": True, "total": _paired(first, second), "tasks": tasks}


def _rows_of(summary: Summary, task_id: int) -> Summary:
    rows = [row for row in summary["rows"] if row["task_id"] == task_id]
    return {"success_rule": summary["success_rule"], "rows": rows}


def _paired(first: Mapping[str, Any], second: Mapping[str, Any]) -> Summary:
    test = rl.paired_test(first, second)
    low, high = test.interval if test.pairs else (None, None)
    return {
        "pairs": test.pairs,
        "left_out": test.left_out,
        "solved_by_both": test.both,
        "solved_by_checkpoint_alone": test.losses,
        "solved_by_compare_alone": test.wins,
        "difference": test.difference if test.pairs else None,
        "difference_low": low,
        "difference_high": high,
        "p_value": test.p_value,
    }


def _unpaired(first: Summary, second: Summary) -> Summary:
    """Return the comparison of two rates on different starts."""
    counts = [(summary["successes"], summary["episodes"]) for summary in (first, second)]
    if not all(num for _, num in counts):
        return {"p_value": None, "difference": None}
    (k1, n1), (k2, n2) = counts
    p1, p2 = k1 / n1, k2 / n2
    (low1, high1), (low2, high2) = wilson_interval(k1, n1), wilson_interval(k2, n2)
    # Newcombe's interval of independent rates
    down = ((p2 - low2) ** 2 + (high1 - p1) ** 2) ** 0.5
    up = ((high2 - p2) ** 2 + (p1 - low1) ** 2) ** 0.5
    return {
        "difference": p2 - p1,
        "difference_low": p2 - p1 - down,
        "difference_high": p2 - p1 + up,
        "p_value": fisher_p_value(*counts),
    }
