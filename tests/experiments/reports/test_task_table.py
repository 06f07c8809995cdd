"""Success by task, as `evaluate`, `train` and `compare` print it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from pitune import envs
from pitune.experiments.compare import task_tables
from pitune.experiments.reports.table import TextTable
from pitune.experiments.reports.task_table import counts_of, names_of, task_table
from pitune.experiments.runs.comparison import FinishedRun
from pitune.experiments.runs.report import closing_table
from pitune.rl import EpisodeOutcome, Evaluation
from pitune.rl.evaluation.statistics import mean_over_tasks, wilson_interval


def evaluation(*successes: int, num: int = 10) -> dict[str, Any]:
    """Return the summary of an evaluation with these successes of each task."""
    rows = [
        EpisodeOutcome(
            index=task * num + i,
            seed=i,
            task_id=task,
            success_once=i < solved,
            success_at_end=i < solved,
            length=1,
        )
        for task, solved in enumerate(successes)
        for i in range(num)
    ]
    return {**Evaluation(rows=tuple(rows)).summary(), "task_names": ["push", "reach"]}


def test_a_row_has_the_rate_its_interval_and_its_counts() -> None:
    counts = counts_of(evaluation(3, 9))
    table = task_table(("push", "reach"), {"success": counts})
    assert table is not None
    low, high = wilson_interval(3, 10)
    assert table.rows[0] == ("push", f"30.0% [{low:.1%}, {high:.1%}] (3/10)")
    mean, low, high = mean_over_tasks([(3, 10), (9, 10)])
    assert mean == pytest.approx(0.6)
    assert table.rows[2] == ("mean of 2 tasks", f"60.0% [{low:.1%}, {high:.1%}]")


def test_one_task_has_no_table_and_a_missing_one_no_mean() -> None:
    assert task_table(("push",), {"success": {0: (1, 2)}}) is None
    assert task_table((), {"success": {}}) is None
    table = task_table(("push",), {"a": {0: (1, 2), 1: (1, 2)}, "b": {0: (1, 2)}})
    assert table is not None
    assert [row[2] for row in table.rows[1:]] == ["-", "-"]
    assert table.rows[1][0] == "task 1"


def test_tasks_have_the_names_of_the_environment_or_their_words() -> None:
    spec = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2, num_workers=0)).spec
    assert names_of(spec) == spec.tasks
    assert names_of(replace(spec, task_names=("a",))) == ("a",)


def test_markdown_keeps_its_columns() -> None:
    lines = TextTable("title", ("a|b", "c"), [("1", "2")], "below").markdown().split("\n")
    assert lines == ["**title**", "", "| a\\|b | c |", "|---|---|", "| 1 | 2 |", "", "below"]


def summary_of_run(after: tuple[int, int], seed: int = 0) -> dict[str, Any]:
    pair = {"before": evaluation(1, 2), "after": evaluation(*after)}
    return {
        "algorithm": "ppo",
        "env": "mock/[Reach,TwoGoals]",
        "seed": seed,
        **{when: {"deployed": s, "exploring": s} for when, s in pair.items()},
        "seconds": {"update": 1.0},
        "env_steps": 10,
        "iterations": 1,
        "train_seconds": 1.0,
        "checkpoint": "nowhere/checkpoint_000001",
        "next": [("x", "y")],
    }


def test_a_run_prints_its_tasks_before_and_after() -> None:
    console = Console(record=True, width=200)
    closing_table(summary_of_run((8, 9)), console)
    text = console.export_text()
    assert "success by task" in text
    assert "10.0%" in text
    assert "(8/10)" in text
    assert "mean of 2 tasks" in text


def test_a_comparison_adds_the_counts_of_its_seeds() -> None:
    runs = [
        FinishedRun(name, summary_of_run(after, seed), "x", [], [])
        for name, after in (("ppo", (8, 9)), ("bc", (3, 4)))
        for seed in (0, 1)
    ]
    (table,) = task_tables(runs)
    lines = table.split("\n")
    assert lines[2] == "| task | before | after ppo | after bc |"
    cells = [cell.strip() for cell in lines[4].split("|")]
    assert cells[1] == "push"
    assert [cell.rpartition("(")[2] for cell in cells[2:5]] == ["2/20)", "16/20)", "6/20)"]
