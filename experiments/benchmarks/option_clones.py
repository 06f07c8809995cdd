"""The clones of `pitune bench network_options`: their numbers, their file and their table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pitune.experiments.runs.run import provenance
from pitune.rl.evaluation.statistics import wilson_interval


@dataclass(frozen=True)
class Clone:
    """One clone.

    Example:
        >>> Clone("plain", 0, 1500, 1.0, 90_000, 0.3, 0.2, 150, 200, 60.0).successes
        150
    """

    option: str
    seed: int
    steps: int
    cost: float
    """Cost of a step over that of the plain network [FLOP]."""
    parameters: int
    train_loss: float
    """Mean flow-matching loss of the last tenth of the steps."""
    held_out_loss: float
    """Velocity's squared error on held-out demonstrations."""
    successes: int
    episodes: int
    seconds: float


def read_clones(file: Path, settings: Mapping[str, Any]) -> list[Clone]:
    """Return the clones of a file, none if it does not exist.

    Raises:
        ValueError: they have other settings.
    """
    if not file.is_file():
        return []
    written = json.loads(file.read_text())
    if written["config"] != settings:
        raise ValueError(f"{file} has other settings; pass another --out, or the same settings")
    return [Clone(**row) for row in written["clones"]]


def write_clones(file: Path, settings: Mapping[str, Any], clones: Sequence[Clone]) -> None:
    """Write clones and the settings that they depend on."""
    written = {
        "config": settings,
        "provenance": provenance(),
        "clones": [asdict(clone) for clone in clones],
    }
    file.write_text(json.dumps(written, indent=1, default=str))


def table(clones: Sequence[Clone]) -> Table:
    """Return a row for each option: means over the seeds, and the success of each seed."""
    shown = Table(title="Cloning at equal compute")
    columns: dict[str, Callable[[list[Clone]], str]] = {
        "option": lambda rows: rows[0].option,
        "parameters": lambda rows: f"{rows[0].parameters:,}",
        "cost": lambda rows: f"{rows[0].cost:.2f}",
        "steps": lambda rows: f"{rows[0].steps:,}",
        "training loss": lambda rows: f"{mean([c.train_loss for c in rows]):.3f}",
        "held-out loss": lambda rows: " ".join(f"{c.held_out_loss:.3f}" for c in rows),
        "success [%]": lambda rows: " ".join(f"{100 * c.successes / c.episodes:.1f}" for c in rows),
        "all seeds [%]": pooled,
    }
    for name in columns:
        shown.add_column(name)
    # one row per option, in the order of the clones
    for option in dict.fromkeys(clone.option for clone in clones):
        rows = [clone for clone in clones if clone.option == option]
        shown.add_row(*(text(rows) for text in columns.values()))
    return shown


def pooled(clones: list[Clone]) -> str:
    """Return the success of all seeds with its interval."""
    successes, episodes = sum(c.successes for c in clones), sum(c.episodes for c in clones)
    low, high = wilson_interval(successes, episodes)
    return f"{100 * successes / episodes:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)
