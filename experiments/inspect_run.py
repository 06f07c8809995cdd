"""Inspect a run: its settings, progress, success and health, and the commands to run next.

    pitune inspect runs/quickstart/mujoco-PickCube/seed_0/ppo

It works while the run trains, and on runs that were interrupted or damaged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from pitune import envs
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.health.metric import Verdict, entry, judge
from pitune.experiments.health.monitor import drop_sentence, success_dropped
from pitune.experiments.health.outcome import reasons
from pitune.experiments.health.table import METRICS
from pitune.experiments.recipes import preset
from pitune.experiments.runs.folder.lock import holder
from pitune.experiments.runs.folder.same_config import differences
from pitune.experiments.runs.next_steps import files_of, next_steps
from pitune.experiments.runs.record import RunRecord, read_record
from pitune.experiments.runs.report import percent, print_steps
from pitune.experiments.runs.train_config import TrainConfig
from pitune.ranges import Settings

VERDICTS = {True: "healthy", False: "OUTSIDE", None: ""}


@dataclass(frozen=True, kw_only=True)
class InspectConfig(Settings):
    """Print the settings, progress, success and health of a run.

    Example:
        >>> InspectConfig(run=Path("runs/latest")).run.name
        'latest'
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""


def inspect(folder: Path, console: Console) -> list[Verdict]:
    """Print a run and return the verdicts on its metrics.

    Raises:
        FileNotFoundError: the folder holds nothing of a run.
    """
    record = read_record(folder)
    verdicts = verdicts_of(record)

    # state of the run
    sections = [
        ("", [_title(record), _state(record)]),
        ("Success", _success(record)),
        ("Outcome", _outcome(record)),
        ("Settings other than the defaults", _settings(record)),
        ("Problems", record.problems),
    ]
    for heading, lines in sections:
        _print_section(console, heading, lines)
    console.print()

    # health and advice
    console.print(_health_table(verdicts))
    advice = [v.sentence(record.config) for v in verdicts if v.healthy is False]
    if record.rows and success_dropped(record.before, _last_evaluation(record)):
        advice.insert(0, drop_sentence(record.before, _last_evaluation(record)))
    _print_section(console, "Advice", advice)
    _print_section(console, "Checkpoints", _checkpoints(record))

    # next commands, which need a readable config
    try:
        steps = next_steps(folder) if record.config else []
    except (ValueError, KeyError) as error:
        steps = []
        _print_section(console, "Next", [f"no commands: {error}"])
    print_steps(console, files_of(folder), steps)
    return verdicts


def verdicts_of(record: RunRecord) -> list[Verdict]:
    """Return the verdict on each column of metrics.csv, those outside of their range first."""
    algorithm = str(record.config.get("algorithm_name", "")).partition(":")[0]
    columns = dict.fromkeys(key for row in record.rows for key in row if key != "iteration")
    verdicts = [
        judge(column, record.rows, entry(column, algorithm, METRICS), record.config)
        for column in columns
    ]
    return sorted(verdicts, key=lambda verdict: verdict.healthy is not False)


def _print_section(console: Console, heading: str, lines: Sequence[str]) -> None:
    if heading and lines:
        console.print(f"\n{heading}:", highlight=False)
    for line in lines:
        indented = f"  {line}" if heading else line
        console.print(indented, markup=False, highlight=False, soft_wrap=True)


def _title(record: RunRecord) -> str:
    config = record.config
    name = config.get("algorithm_name", "unknown algorithm")
    env = config.get("env", {}).get("id", "unknown environment")
    commit = record.provenance.get("commit", "unknown")
    seed = config.get("seed", "unknown")
    return f"{name} on {env}, seed {seed}, commit {commit}: {record.folder}"


def _state(record: RunRecord) -> str:
    """Return how far the run is."""
    iteration = record.rows[-1]["iteration"] if record.rows else 0
    steps = record.rows[-1].get("env_steps", 0.0) if record.rows else 0.0
    total = record.limits.get("num_iterations")
    of_total = f" of {total}" if total else ""
    state = f"iteration {iteration}{of_total}, {steps:,.0f} environment steps"
    if record.summary is not None:
        return f"finished: {state}, {record.summary['train_seconds'] / 60:.1f} min"

    # time since the last change
    files = [file for file in (record.folder / "metrics.csv", record.folder / "config.json")]
    written = max((file.stat().st_mtime for file in files if file.is_file()), default=math.nan)
    minutes = (time.time() - written) / 60
    running = f"; in use by {holder(record.folder)}" if holder(record.folder) else ""
    return f"not finished: {state}; last written {minutes:.0f} min ago{running}"


def _last_evaluation(record: RunRecord) -> dict[str, Any]:
    """Return the latest row with an evaluation, or an empty one."""
    evaluated = [row for row in record.rows if "success_rate_high" in row]
    return evaluated[-1] if evaluated else {}


def _success(record: RunRecord) -> list[str]:
    """Return the success rates, with their 95 % intervals."""
    lines = []
    if record.before:
        lines.append(f"before training, test starts: {percent(record.before)}")
    row = _last_evaluation(record)
    if row:
        lines.append(
            f"iteration {row['iteration']}, validation starts: {row['success_rate']:.1%} "
            f"[{row['success_rate_low']:.1%}, {row['success_rate_high']:.1%}]"
        )
    if record.summary is not None:
        lines.append(f"after training, test starts: {percent(record.summary['after']['deployed'])}")
    return lines or ["not evaluated yet"]


def _outcome(record: RunRecord) -> list[str]:
    """Return the reasons why a run has learned nothing so far, if that is so."""
    latest = list(record.checkpoints.values())[-1:]
    changed = latest[0].get("changed", True) if latest else True
    return reasons(record.rows, record.config, changed) if record.rows and latest else []


def _settings(record: RunRecord) -> list[str]:
    """Return the settings that differ from the defaults, as `name: default -> value`."""
    if not record.config:
        return ["unknown"]
    try:
        default = preset(record.config["algorithm_name"])
        env = envs.config_for(record.config["env"]["id"])
    except (ValueError, KeyError) as error:
        return [f"unknown: {error}"]
    identity = TrainConfig(algorithm=default, env=env).identity()
    identity["env"]["id"] = envs.EnvConfig().id
    return sorted(differences(identity, record.config))


def _health_table(verdicts: Sequence[Verdict]) -> Table:
    table = Table(title="Health", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("healthy")
    table.add_column("verdict")
    for verdict in verdicts:
        healthy = "not in the health table" if verdict.metric is None else verdict.metric.healthy
        style = "bold red" if verdict.healthy is False else None
        table.add_row(
            verdict.column, f"{verdict.value:.4g}", healthy, VERDICTS[verdict.healthy], style=style
        )
    return table


def _checkpoints(record: RunRecord) -> list[str]:
    lines = []
    for name, progress in record.checkpoints.items():
        rate = progress.get("success_rate")
        known = "no success rate" if rate is None else f"success {rate:.1%} when it was saved"
        known = known if progress else "damaged"
        lines.append(f"{record.folder / name}: {known}")
    return lines or ["none yet; the first is written after the evaluation before training"]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(InspectConfig, arguments(argv), prog=program("inspect"), description=__doc__)
        inspect(config.run, Console())


if __name__ == "__main__":
    main()
