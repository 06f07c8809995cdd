"""Algorithms side by side on the same clones: a table with intervals, and curves with bands.

    pitune compare --algorithms ppo ppo:flow_noise grpo epo fpo --seeds 0 1 2
    pitune compare --env-ids mujoco/PickCube mujoco/PushCube --algorithms ppo bc

A policy is cloned once for every environment and seed, as in the quickstart, and every algorithm
fine-tunes that clone with the environment's recipe. --out then holds `<environment>/seed_<n>/` with
`pretrained/` and a run for each algorithm, `comparison.md` and `comparison.png`. The same command
again continues a comparison that was interrupted, and longer lists extend it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.quickstart import (
    QuickstartConfig,
    QuickstartEnv,
    run_job,
    settings_of,
    training_config,
)
from pitune.experiments.recipes import Recipe
from pitune.experiments.reports.task_table import counts_of, task_table
from pitune.experiments.runs.comparison import (
    FinishedRun,
    comparison_table,
    draw_curves,
    finished_run,
    summary_table,
)
from pitune.experiments.runs.progress import screen
from pitune.experiments.runs.run import WandbMode
from pitune.experiments.runs.signals import exit_on_signal
from pitune.experiments.train import TrainConfig
from pitune.ranges import PositiveInt, PositiveOrInfinite, Seed, Settings


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Settings):
    """Fine-tune the same clones with several algorithms and compare.

    Example:
        >>> CompareConfig(algorithms=("ppo", "grpo"), seeds=(0, 1)).env_ids
        ('mujoco/PickCube',)
    """

    algorithms: tuple[str, ...] = ("ppo", "ppo:one_step", "ppo:flow_noise", "grpo", "epo", "fpo")
    """Registered names, each with a likelihood or variant after a colon if not the default."""
    env_ids: tuple[str, ...] = ("mujoco/PickCube",)
    """Environments."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds of clone and fine-tuning."""
    out: Path = Path("runs/compare")
    """Folder for the clones, the runs and the comparison."""
    num_iterations: PositiveInt | None = None
    """Iterations of each run, those of the environment's recipe by default."""
    max_minutes: PositiveOrInfinite = float("inf")
    """Longest time for each run [min]."""
    fast: bool = False
    """Few steps, to see that everything runs, in folders of their own."""
    wandb: WandbMode = "off"
    """Weights & Biases: `offline` writes its files into each run's folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("algorithms", "env_ids", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={values} must name at least one, and none twice")


def compare(config: CompareConfig) -> list[FinishedRun]:
    """Run the missing runs, write table and curves, and return all runs."""
    jobs = [
        _job(config, env_id, seed, name)
        for env_id in config.env_ids
        for seed in config.seeds
        for name in config.algorithms
    ]
    for job in jobs:  # reject a wrong name before hours have gone into the other jobs
        _training(config, job)

    # runs, with table and curves after each of them
    runs = []
    for number, job in enumerate(jobs, 1):
        title = f"{job.algorithm} on {job.env.id}, seed {job.seed} ({number} of {len(jobs)})"
        screen.rule(title)
        runs.append(_run(config, job))
        _report(runs, config.out)
    return runs


def _job(config: CompareConfig, env_id: str, seed: int, name: str) -> QuickstartConfig:
    return QuickstartConfig(
        algorithm=name,
        env=QuickstartEnv(id=env_id),
        seed=seed,
        out=config.out,
        fast=config.fast,
        max_minutes=config.max_minutes,
        wandb=config.wandb,
    )


def _training(config: CompareConfig, job: QuickstartConfig) -> tuple[Recipe, TrainConfig]:
    """Return the recipe and the training of a job."""
    settings = settings_of(job)
    if config.num_iterations is not None:
        settings = replace(settings, num_iterations=config.num_iterations)
    return settings, training_config(job, settings)


def _run(config: CompareConfig, job: QuickstartConfig) -> FinishedRun:
    """Do a job, or the rest of it, and return its run.

    Raises:
        ValueError: the folder has a run with other settings.
    """
    settings, training = _training(config, job)
    run_job(job, settings, replace(training, video=False))
    return finished_run(training.out, job.algorithm)


def _report(runs: list[FinishedRun], out: Path) -> None:
    """Write the comparison of the runs so far."""
    tables = [summary_table(runs), comparison_table(runs), *task_tables(runs)]
    (out / "comparison.md").write_text("\n\n".join(tables) + "\n")
    draw_curves(runs, out / "comparison.png")


def task_tables(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a table of success by task for each environment with several tasks, as Markdown.

    Its counts are those of all seeds, before training and after it with each algorithm.
    """
    tables = []
    for env_id in sorted({run.summary["env"] for run in runs}):
        group = [run for run in runs if run.summary["env"] == env_id]
        # counts over all seeds
        columns: dict[str, dict[int, tuple[int, int]]] = {}
        for run in group:
            if run.name == group[0].name:  # all algorithms start from the same clones
                _add_counts(columns.setdefault("before", {}), run.summary["before"])
        for run in group:
            _add_counts(columns.setdefault(f"after {run.name}", {}), run.summary["after"])
        names = group[0].summary["after"]["deployed"].get("task_names", ())
        table = task_table(names, columns)
        if table is not None:
            tables.append(table._replace(title=f"{env_id}, success by task").markdown())
    return tables


def _add_counts(counts: dict[int, tuple[int, int]], evaluations: Mapping[str, Any]) -> None:
    """Add the successes and episodes of each task to those of other seeds."""
    for task, (successes, episodes) in counts_of(evaluations["deployed"]).items():
        known = counts.get(task, (0, 0))
        counts[task] = (known[0] + successes, known[1] + episodes)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message(), exit_on_signal():
        config = parse(CompareConfig, arguments(argv), prog=program("compare"), description=__doc__)
        runs = compare(config)
        Console(soft_wrap=True).print(comparison_table(runs), markup=False, highlight=False)


if __name__ == "__main__":
    main()
