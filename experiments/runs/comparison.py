"""Finished runs side by side: a table and curves, from their folders: numbers are never typed.

Only the evaluations, environment steps and times are compared, which every algorithm's run has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from pitune.experiments.runs.folder.metrics_file import read_rows
from pitune.experiments.runs.progress import screen
from pitune.experiments.runs.report import percent
from pitune.experiments.runs.results_table import read_run
from pitune.rl.evaluation.paired import paired_test
from pitune.rl.evaluation.statistics import fisher_p_value

LEVEL = 0.8
"""Success rate: the steps until an evaluation first reaches it are reported."""
HEADER = (
    "| environment | algorithm | seed | before | after | p | after, exploring "
    f"| lowest on the way | steps to {LEVEL:.0%} | steps | time |\n"
    "|---|---|--:|---|---|--:|---|--:|--:|--:|--:|"
)


class FinishedRun(NamedTuple):
    """The numbers of a run that a comparison needs.

    Example:
        >>> summary = {"before": {"deployed": {"success_rate": 0.4}}}
        >>> run = FinishedRun("ppo", summary, "abc", [1000.0, 2000.0], [0.7, 0.9])
        >>> run.steps_to_level, run.lowest
        (2000.0, (0.7, 1000.0))
    """

    name: str
    """Registered name of the algorithm, with a chosen likelihood or variant after a colon."""
    summary: dict[str, Any]
    commit: str
    steps: list[float]
    """Environment steps at each evaluation on the validation starts that has a success rate."""
    success: list[float]
    """Success rate of the deployed policy at each of them."""

    @property
    def started_above(self) -> bool:
        """Whether the clone was above `LEVEL` before training, on the test starts."""
        return _success(self, "before", "deployed") >= LEVEL

    @property
    def steps_to_level(self) -> float | None:
        """Environment steps at the first evaluation that reached `LEVEL`, or None.

        They count from a clone below the level only.
        """
        if self.started_above:
            return None
        evaluations = zip(self.steps, self.success, strict=True)
        return next((steps for steps, rate in evaluations if rate >= LEVEL), None)

    @property
    def lowest(self) -> tuple[float, float]:
        """Lowest success rate of the evaluations while training, and its environment steps."""
        evaluations = zip(self.success, self.steps, strict=True)
        return min(evaluations, default=(math.nan, 0.0))


def finished_run(folder: Path, name: str) -> FinishedRun:
    """Read a run's folder.

    Args:
        folder: Of the run.
        name: Registered name of the algorithm, and its variant after a colon.

    Raises:
        FileNotFoundError: the run is not finished.
        ValueError: a file is damaged.
    """
    summary, provenance = read_run(folder)
    rows = read_rows(folder / "metrics.csv")[1]
    if not any(name in row for row in rows for name in ("success_rate", "eval/return")):
        raise ValueError(f"{folder / 'metrics.csv'} has no evaluation; restore it, or run again")
    rows = [row for row in rows if "success_rate" in row]  # none in an environment without success
    return FinishedRun(
        name,
        summary,
        str(provenance["commit"]),
        [row["env_steps"] for row in rows],
        [row["success_rate"] for row in rows],
    )


def comparison_table(runs: Sequence[FinishedRun]) -> str:
    """Return a Markdown table: a line for each run, and one for all seeds of an algorithm."""
    lines = [HEADER]
    for group in _grouped(runs).values():
        lines += [_line(run) for run in group]
        if len(group) > 1:
            lines.append(_line_of_seeds(group))

    # note below the table
    commits = ", ".join(sorted({run.commit for run in runs}))
    note = (
        "Deployed policies with 95 % Wilson intervals on the test starts, which training never "
        "saw; p: exact test of after against before, paired on the shared starts (McNemar), or "
        "Fisher's for runs that share no starts or stored no episodes. Lowest and steps to the "
        f"level: on the validation starts, from clones below the level. Commit {commits}."
    )
    return "\n".join([*lines, "", note])


def summary_table(runs: Sequence[FinishedRun]) -> str:
    """Return a Markdown table with a line for each algorithm, all seeds together.

    The steps to the level are the mean of the seeds, with the lowest and the highest in brackets.
    """
    lines = [
        "| environment | algorithm | seeds | before | after | worst seed "
        f"| steps to {LEVEL:.0%} | environment steps | time |\n"
        "|---|---|--:|--:|--:|--:|--:|--:|--:|"
    ]
    for (env_id, name), group in _grouped(runs).items():
        worst = min(_success(run, "after", "deployed") for run in group)
        lines.append(
            f"| `{env_id}` | `{name}` | {len(group)} | {_mean(group, 'before', 'deployed')} "
            f"| {_mean(group, 'after', 'deployed')} | {_percent(worst)} | {_steps_of_seeds(group)} "
            f"| {_env_steps(group)} | {_minutes(group)} |"
        )
    return "\n".join(lines)


def draw_curves(runs: Sequence[FinishedRun], file: Path) -> None:
    """Draw success over environment steps, a panel for each environment, into a PNG.

    A line is the mean over seeds, and a band reaches from the worst to the best. A seed that ended
    early, because it had solved the task, keeps its last value. If the budgets of the algorithms
    are far apart, the steps are logarithmic from the first evaluation on. A run without a success
    rate has no line, and there is no file if no run has one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # a panel for each environment
    runs = [run for run in runs if run.steps]
    if not runs:
        screen.note(f"no {file.name}: there is no success rate to draw")
        return
    env_ids = sorted({run.summary["env"] for run in runs})
    names = sorted({run.name for run in runs})  # one color for each, in all panels
    figure = Figure(figsize=(6 * len(env_ids), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, env_id in zip(
        figure.subplots(1, len(env_ids), squeeze=False)[0], env_ids, strict=True
    ):
        # a band over the seeds of each algorithm
        for (env, name), group in _grouped(runs).items():
            if env == env_id:
                steps, mean, low, high = seed_band(group)
                color = f"C{names.index(name)}"
                axes.plot(steps, mean, label=f"{name} ({len(group)} seeds)", color=color)
                axes.fill_between(steps, low, high, alpha=0.1, linewidth=0, color=color)
        # cloning takes no environment steps
        stepped = [run for run in runs if run.summary["env"] == env_id and run.steps[-1] > 0]
        ends = [run.steps[-1] for run in stepped]
        if ends and max(ends) > 8 * min(ends):
            axes.set_xscale("symlog", linthresh=min(run.steps[0] for run in stepped))
        axes.set(title=env_id, xlabel="environment steps")
        axes.set(ylabel="success rate, deployed, validation starts")
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize="small")
    figure.savefig(file, dpi=150)


def seed_band(
    group: Sequence[FinishedRun], num: int = 200
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, and the mean, lowest and highest success rate of all seeds at them (num,)."""
    first, last = min(run.steps[0] for run in group), max(run.steps[-1] for run in group)
    steps = np.linspace(first, last, num)
    rates = np.stack([np.interp(steps, run.steps, run.success) for run in group])
    return steps, rates.mean(0), rates.min(0), rates.max(0)


def _grouped(runs: Sequence[FinishedRun]) -> dict[tuple[str, str], list[FinishedRun]]:
    """Return the runs by environment and algorithm, those of one algorithm in order of seed."""
    groups: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda r: (r.summary["env"], r.name, r.summary["seed"])):
        groups.setdefault((run.summary["env"], run.name), []).append(run)
    return groups


def _line(run: FinishedRun) -> str:
    summary = run.summary
    before, after = summary["before"]["deployed"], summary["after"]["deployed"]
    reached, (lowest, where) = run.steps_to_level, run.lowest
    way = f"{_percent(lowest)} at {where:,.0f}" if run.steps else "-"
    return (
        f"| `{summary['env']}` | `{run.name}` | {summary['seed']} | {percent(before)} "
        f"| {percent(after)} | {_p_value(before, after)} "
        f"| {percent(summary['after']['exploring'])} | {way} "
        f"| {_never(run) if reached is None else f'{reached:,.0f}'} | {summary['env_steps']:,} "
        f"| {summary['train_seconds'] / 60:.1f} min |"
    )


def _never(run: FinishedRun) -> str:
    """Return the reason why a run has no steps to the level, or a dash if nothing was measured."""
    if run.started_above:
        return "started above"
    return "never" if run.steps else "-"


def _line_of_seeds(group: Sequence[FinishedRun]) -> str:
    """Return the line with the means over seeds."""
    return (
        f"| `{group[0].summary['env']}` | `{group[0].name}` | mean of {len(group)} "
        f"| {_mean(group, 'before', 'deployed')} | {_mean(group, 'after', 'deployed')} | "
        f"| {_mean(group, 'after', 'exploring')} | | {_steps_of_seeds(group)} "
        f"| {_env_steps(group)} | {_minutes(group)} |"
    )


def _success(run: FinishedRun, when: str, how: str) -> float:
    rate = run.summary[when][how]["success_rate"]
    return math.nan if rate is None else float(rate)


def _percent(rate: float) -> str:
    """Return a rate in percent, or a dash where there is none."""
    return "-" if math.isnan(rate) else f"{rate:.1%}"


def _p_value(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the p-value of two evaluations, or a dash where one of them has no success rate.

    The test is paired on shared starts, if episodes are stored.
    """
    if any(e["success_rate"] is None or math.isnan(e["success_rate"]) for e in (before, after)):
        return "-"
    try:
        p_value = paired_test(before, after).p_value
    except ValueError:
        counts = [(e["successes"], e["episodes"]) for e in (before, after)]
        p_value = fisher_p_value(*counts)
    return f"{p_value:.1g}"


def _mean(group: Sequence[FinishedRun], when: str, how: str) -> str:
    return _percent(fmean(_success(run, when, how) for run in group))


def _env_steps(group: Sequence[FinishedRun]) -> str:
    return f"{fmean(run.summary['env_steps'] for run in group):,.0f}"


def _minutes(group: Sequence[FinishedRun]) -> str:
    return f"{fmean(run.summary['train_seconds'] for run in group) / 60:.1f} min"


def _steps_of_seeds(group: Sequence[FinishedRun]) -> str:
    """Return the mean, lowest and highest steps to the level, or the number of seeds there.

    Seeds whose clones were above it are left out, and counted.
    """
    below = [run for run in group if not run.started_above]
    above = len(group) - len(below)
    note = f" ({above} of {len(group)} started above)" if above and below else ""
    if not below:
        return "started above"
    if not any(run.steps for run in below):
        return "-"
    steps = [s for s in (run.steps_to_level for run in below) if s is not None]
    if len(steps) < len(below):
        return f"{len(steps)} of {len(below)} seeds{note}"
    spread = f" [{min(steps):,.0f}, {max(steps):,.0f}]" if len(steps) > 1 else ""
    return f"{fmean(steps):,.0f}{spread}{note}"
