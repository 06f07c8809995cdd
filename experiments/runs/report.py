"""Reports of a run: its progress, its memory, the closing table."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pitune import rl
from pitune.envs import EnvSpec
from pitune.experiments.reports.task_table import counts_of, task_table
from pitune.experiments.runs.next_steps import Step, files_of, next_steps
from pitune.experiments.runs.progress import Screen, Task, screen
from pitune.policies import FlowPolicy
from pitune.policies.finetuning.memory import available_bytes, check_memory, parameter_report
from pitune.policies.finetuning.shard import is_sharded
from pitune.rl import ranks
from pitune.rl.algorithm import no_progress
from pitune.rl.cloning.losses import predicted_tokens
from pitune.rl.evaluation.outcome import text_of
from pitune.rl.policy_gradient.prefixes import kept_prefixes, prefix_config

if TYPE_CHECKING:
    from pitune.experiments.runs.train_config import TrainConfig

NAMES = {"deployed": "deployed (ODE)", "exploring": "exploring (as in training)"}
"""Titles of the two evaluations."""
LEAST_SECONDS = 2.0
"""Work inside an update that takes less is not shown [s]."""


class TrainingProgress:
    """Shows success rate, speed and time left of a run.

    Example:
        >>> from pitune import envs
        >>> spec = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2)).spec
        >>> with screen.task("training", total=10) as task:
        ...     TrainingProgress(task, spec).update(1, {"train/success_rate": 0.5}, 800)
        ...     task.done
        1

    Args:
        task: The iterations.
        spec: The environment.
    """

    def __init__(self, task: Task, spec: EnvSpec) -> None:
        self._task, self._spec = task, spec
        self._start, self._success, self._first_steps = time.monotonic(), "", -1

    def update(self, iteration: int, metrics: dict[str, float], num_env_steps: int) -> None:
        """Show an iteration. Evaluations stay on the screen as lines of their own."""
        # evaluation
        if "success_rate" in metrics:
            low, high = metrics["success_rate_low"], metrics["success_rate_high"]
            self._success = f"success {metrics['success_rate']:.0%}"
            screen.note(
                f"iteration {iteration:4d}  {num_env_steps:>10,} steps of {self._spec.id}  "
                f"success {metrics['success_rate']:.1%} [{low:.1%}, {high:.1%}]"
            )

        # speed, without the first iteration
        if self._first_steps < 0:
            self._first_steps, self._start = num_env_steps, time.monotonic()
        rate = (num_env_steps - self._first_steps) / max(1e-9, time.monotonic() - self._start)

        # status of the bar
        parts = [self._success]
        if "train/success_rate" in metrics:
            parts.append(f"exploring {metrics['train/success_rate']:.0%}")
        if rate:
            parts.append(f"{rate:,.0f} steps/s")
        self._task.update(iteration, "  ".join(part for part in parts if part))


@contextmanager
def update_progress(algorithm: rl.Algorithm[Any], display: Screen = screen) -> Iterator[None]:
    """Show the rounds of an algorithm's updates while the context is open.

    Args:
        algorithm: It calls `on_progress` in its updates.
        display: Where to show it.
    """
    start = display.clock()
    with ExitStack() as stack:
        tasks: dict[str, Task] = {}

        def on_progress(work: str, done: int, total: int) -> None:
            nonlocal start
            if work not in tasks and display.clock() - start >= LEAST_SECONDS:
                tasks[work] = stack.enter_context(display.task(work, total, done))
            if work in tasks:
                tasks[work].update(done)
            if done == total:  # the next work begins
                start = display.clock()

        algorithm.on_progress = on_progress
        stack.callback(setattr, algorithm, "on_progress", no_progress)
        yield


def title_of(summary: Mapping[str, Any]) -> str:
    """Return the title of a run's table and curve."""
    return f"{summary['algorithm']} on {summary['env']}, seed {summary['seed']}"


def percent(evaluation: dict[str, Any]) -> str:
    """Return an evaluation's summary as `rate [interval] (successes/episodes; broken)`."""
    rate, low, high = (evaluation[key] for key in ("success_rate", "wilson_low", "wilson_high"))
    if rate is None or math.isnan(rate):
        return text_of(evaluation)
    broken = f"; {evaluation['invalid']} broken" if evaluation.get("invalid") else ""
    counts = f"{evaluation['successes']}/{evaluation['episodes']}"
    return f"{rate:.1%} [{low:.1%}, {high:.1%}] ({counts}{broken})"


def closing_table(summary: dict[str, Any], console: Console | None = None) -> None:
    """Print success before and after, the times, the files to look at, and the next commands.

    Args:
        summary: Of the run, with its own commands in `next` if the caller has any.
        console: Where to print, standard output by default.
    """
    console = console or Console()
    # success
    caption = (
        "95 % Wilson intervals on the test starts, which training never saw. The curve and "
        "--stop-at use the validation starts."
    )
    table = Table(title=title_of(summary), caption=caption)
    for column in ("policy", "before, test starts", "after, test starts"):
        table.add_column(column)
    for key, name in NAMES.items():
        table.add_row(name, percent(summary["before"][key]), percent(summary["after"][key]))
    console.print(table)
    deployed = {when: summary[when]["deployed"] for when in ("before", "after")}
    names = deployed["after"].get("task_names", ())  # absent from pitune 0.3 and before
    by_task = task_table(names, {when: counts_of(s) for when, s in deployed.items()})
    if by_task is not None:
        console.print(by_task.rich())
    sentence = paired_sentence(summary["before"]["deployed"], summary["after"]["deployed"])
    if sentence is not None:
        console.print(sentence, highlight=False)

    # time of each phase
    spent = sum(summary["seconds"].values())
    shares = ", ".join(
        f"{name} {seconds:.0f} s ({seconds / max(spent, 1e-9):.0%})"
        for name, seconds in summary["seconds"].items()
    )
    console.print(
        f"{summary['env_steps']:,} environment steps in {summary['iterations']} iterations, "
        f"{summary['train_seconds']:.0f} s. Time: {shares}"
    )

    # end of the run, and whether it has learned
    if summary.get("ended_by"):  # absent from runs of pitune 0.2 and before
        console.print(f"Ended because {summary['ended_by']}.", highlight=False)
    latest = Path(summary["checkpoint"]).name
    console.print(f"After: the policy in {latest}.", highlight=False)
    for reason in summary.get("learned_nothing", []):
        console.print(reason, style="bold red", highlight=False)

    # files and next commands
    folder = Path(summary["checkpoint"]).parent
    print_steps(console, files_of(folder), summary.get("next") or next_steps(folder))


def paired_sentence(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Return the exact comparison of two summaries on their shared starts, None without such."""
    try:
        test = rl.paired_test(before, after)
    except ValueError:
        return None
    broken = f", {test.left_out} left out as broken" if test.left_out else ""
    return (
        f"deployed, on the {test.pairs} starts of both: solved by the new policy alone "
        f"{test.wins}, by the old one alone {test.losses}, exact p = {test.p_value:.2g}{broken}"
    )


def print_steps(console: Console, files: list[Step], commands: list[Step]) -> None:
    """Print the files to look at and the commands to run next, one a line, as they are typed."""
    for heading, steps in (("Look at", files), ("Next", commands)):
        if steps:
            console.print(f"\n{heading}:", highlight=False)
        for purpose, text in steps:
            console.print(f"  {purpose}:", markup=False, highlight=False)
            console.print(f"    {text}", markup=False, highlight=False, soft_wrap=True)


def report_memory(policy: FlowPolicy, config: TrainConfig) -> None:
    """Print the trainable parameters and the memory estimate, and fail if it cannot fit."""
    minibatch = ranks.share(config.algorithm.policy_minibatch)
    num_decisions = config.env.num_envs * config.num_chunks
    kept = kept_prefixes(policy, num_decisions, prefix_config(config.algorithm), minibatch)
    predicted = predicted_tokens(policy, config.algorithm)
    report = parameter_report(policy, minibatch, kept.device_bytes, kept.host_bytes, predicted)
    if policy.network.vlm is not None:
        screen.print(report.table())
    num_ranks = ranks.world() if is_sharded(policy) else 1
    device = policy.device
    other = report.host_prefix_bytes if device.type == "cpu" else 0  # the same memory
    check_memory(report, available_bytes(device), other, num_ranks)
