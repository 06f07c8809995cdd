"""What a run shows: a progress bar while it goes on, a closing table, a learning curve."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pitune.envs import EnvSpec


class TrainingBar:
    """A bar with success rate, steps per second and time left; a context manager.

    Args:
        total: Iterations of the whole run.
        done: Iterations that a resumed run has behind it.
    """

    def __init__(self, total: int, done: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("training", total=total, completed=done, status="")
        self._start, self._success, self._first_steps = time.monotonic(), "", -1

    def __enter__(self) -> TrainingBar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(
        self, iteration: int, metrics: dict[str, float], num_env_steps: int, spec: EnvSpec
    ) -> None:
        """Show an iteration; evaluations stay on the screen as lines of their own."""
        if "success_rate" in metrics:
            low, high = metrics["success_rate_low"], metrics["success_rate_high"]
            self._success = f"success {metrics['success_rate']:.0%}"
            self._progress.console.print(
                f"iteration {iteration:4d}  {num_env_steps:>10,} steps of {spec.id}  "
                f"success {metrics['success_rate']:.1%} [{low:.1%}, {high:.1%}]"
            )
        if self._first_steps < 0:
            self._first_steps, self._start = num_env_steps, time.monotonic()
        rate = (num_env_steps - self._first_steps) / max(1e-9, time.monotonic() - self._start)
        status = f"{self._success}  train {metrics.get('train/success_rate', float('nan')):.0%}"
        status += f"  {rate:,.0f} steps/s" if rate else ""
        self._progress.update(self._task, completed=iteration, status=status)


def percent(evaluation: dict[str, Any]) -> str:
    """Return an evaluation's summary as `rate [interval] (successes/episodes)`."""
    low, high = evaluation["wilson_low"], evaluation["wilson_high"]
    return (
        f"{evaluation['success_rate']:.1%} [{low:.1%}, {high:.1%}] "
        f"({evaluation['successes']}/{evaluation['episodes']})"
    )


def closing_table(summary: dict[str, Any], console: Console | None = None) -> None:
    """Print success before and after with 95 % Wilson intervals, and where the time went."""
    console = console or Console()
    title = f"{summary['algorithm']} on {summary['env']}, seed {summary['seed']}"
    table = Table(title=title, caption="95 % Wilson intervals; starts that training never saw")
    for column in ("policy", "before", "after"):
        table.add_column(column)
    names = {"ode": "as deployed (ODE)", "stochastic": "as it explores (stochastic)"}
    for key, name in names.items():
        table.add_row(name, percent(summary["before"][key]), percent(summary["after"][key]))
    console.print(table)
    spent = sum(summary["seconds"].values())
    shares = ", ".join(
        f"{name} {seconds:.0f} s ({seconds / max(spent, 1e-9):.0%})"
        for name, seconds in summary["seconds"].items()
    )
    console.print(
        f"{summary['env_steps']:,} environment steps in {summary['iterations']} iterations, "
        f"{summary['train_seconds']:.0f} s. Time: {shares}"
    )
    console.print(f"fine-tuned policy: {summary['checkpoint']}")


def learning_curve(rows: list[dict[str, Any]], before: dict[str, Any], file: Path) -> None:
    """Draw the success rate over environment steps, with its interval, into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    evaluated = [row for row in rows if "success_rate" in row]
    steps = [0.0] + [row["env_steps"] for row in evaluated]
    rate = [before["success_rate"]] + [row["success_rate"] for row in evaluated]
    low = [before["wilson_low"]] + [row["success_rate_low"] for row in evaluated]
    high = [before["wilson_high"]] + [row["success_rate_high"] for row in evaluated]
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.fill_between(steps, low, high, alpha=0.25, linewidth=0, label="95 % Wilson interval")
    axes.plot(steps, rate, marker="o", markersize=3, label="as deployed (ODE)")
    trained = [row for row in rows if "train/success_rate" in row]
    axes.plot(
        [row["env_steps"] for row in trained],
        [row["train/success_rate"] for row in trained],
        linewidth=0.8,
        color="grey",
        label="training episodes (stochastic)",
    )
    axes.set(xlabel="environment steps", ylabel="success rate", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(file, dpi=150)
