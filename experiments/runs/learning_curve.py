"""The learning curve of a run, with a line or points of their own for each set of starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pitune.experiments.runs.progress import screen
from pitune.experiments.runs.report import title_of

Rows = Sequence[Mapping[str, Any]]


class Points(NamedTuple):
    """Success rates on one set of starts.

    Example:
        >>> rows = [{"iteration": 1, "env_steps": 80.0, "train/success_rate": 0.5}]
        >>> exploring_points(rows).rates
        [0.5]
    """

    label: str
    steps: list[float]
    rates: list[float]
    low: list[float]
    """Lower ends of the 95 % intervals, none for the episodes of training."""
    high: list[float]


def learning_curve(rows: Rows, summary: Mapping[str, Any], file: Path) -> None:
    """Draw the success rate over environment steps, with its intervals, into a PNG.

    The validation episodes are a line. Before and after are points beside it and not on it, because
    they are on the test starts.

    Args:
        rows: Of metrics.csv.
        summary: Of the run.
        file: To write, whole or not at all.
    """
    line, ends = validation_points(rows), test_points(rows, summary)
    if not line.rates and not ends.rates:
        screen.note(f"no {file.name}: there is no success rate to draw")
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()

    # deployed policy on the validation starts, and the exploring one
    axes.fill_between(line.steps, line.low, line.high, alpha=0.25, linewidth=0)
    axes.plot(line.steps, line.rates, marker="o", markersize=3, label=line.label)
    explored = exploring_points(rows)
    axes.plot(explored.steps, explored.rates, linewidth=0.8, color="grey", label=explored.label)

    # deployed policy on the test starts
    below = [rate - low for rate, low in zip(ends.rates, ends.low, strict=True)]
    above = [high - rate for rate, high in zip(ends.rates, ends.high, strict=True)]
    axes.errorbar(
        ends.steps, ends.rates, (below, above), fmt="D", color="C1", capsize=3, label=ends.label
    )

    # frame
    axes.set(title=title_of(summary), xlabel=axis_of(rows).replace("_", " "))
    axes.set(ylabel="success rate (bars: 95 % Wilson)", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    temporary = file.with_name(f"tmp_{file.name}")
    figure.savefig(temporary, dpi=150)
    temporary.rename(file)


def axis_of(rows: Rows) -> str:
    """Return the column of the horizontal axis: cloning takes no environment steps."""
    return "env_steps" if any(row.get("env_steps", 0.0) for row in rows) else "iteration"


def validation_points(rows: Rows) -> Points:
    """Return the evaluations of the deployed policy while it trained."""
    evaluated = [row for row in rows if "success_rate" in row]
    return Points(
        "deployed (ODE), validation starts",
        [row[axis_of(rows)] for row in evaluated],
        [row["success_rate"] for row in evaluated],
        [row["success_rate_low"] for row in evaluated],
        [row["success_rate_high"] for row in evaluated],
    )


def exploring_points(rows: Rows) -> Points:
    """Return the success rates of the episodes that training learned from."""
    trained = [row for row in rows if "train/success_rate" in row]
    steps = [row[axis_of(rows)] for row in trained]
    rates = [row["train/success_rate"] for row in trained]
    return Points("exploring, training episodes", steps, rates, [], [])


def test_points(rows: Rows, summary: Mapping[str, Any]) -> Points:
    """Return the evaluations of the deployed policy before and after training."""
    last = max((row[axis_of(rows)] for row in rows), default=0.0)
    ends = [(0.0, summary["before"]["deployed"]), (last, summary["after"]["deployed"])]
    known = [(step, end) for step, end in ends if end["success_rate"] is not None]
    return Points(
        "deployed (ODE), test starts, before and after",
        [step for step, _ in known],
        *([end[key] for _, end in known] for key in ("success_rate", "wilson_low", "wilson_high")),
    )
