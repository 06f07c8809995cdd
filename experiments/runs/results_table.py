"""The results table of the README, from the folders of finished runs: numbers are never typed.

python -m experiments.runs.results_table runs/*/ppo runs/*/filtered_bc
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.runs.config_file import read_config
from pitune.experiments.runs.folder.checkpoints import with_current_names
from pitune.experiments.runs.report import percent
from pitune.ranges import Settings

HEADER = (
    "| environment | algorithm | seed | before | after | after, exploring "
    "| environment steps | time |\n|---|---|--:|---|---|---|--:|--:|"
)


@dataclass(frozen=True, kw_only=True)
class TableConfig(Settings):
    """Print finished runs as a Markdown table.

    Example:
        >>> len(TableConfig(runs=(Path("runs/a"), Path("runs/b"))).runs)
        2
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders with a summary.json."""


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the summary of a run, with the present names, and its provenance.

    Raises:
        FileNotFoundError: the run is not finished.
        ValueError: a file is damaged.
    """
    for name in ("summary.json", "config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}; is it a finished run?")
    provenance = read_config(folder / "config.json")["provenance"]
    try:
        summary = json.loads((folder / "summary.json").read_text())
        for when in ("before", "after"):
            summary[when] = with_current_names(summary[when])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'summary.json'} is damaged ({error!r}); remove it, and run the training "
            "with --resume to write it again"
        ) from error
    return summary, provenance


def table(folders: tuple[Path, ...]) -> str:
    """Return the Markdown table, and below it the commits and machines of the runs."""
    runs = [read_run(folder) for folder in folders]
    runs.sort(key=lambda run: (run[0]["env"], run[0]["algorithm"], run[0]["seed"]))
    rows = [
        f"| `{s['env']}` | `{s['algorithm']}` | {s['seed']} | {percent(s['before']['deployed'])} "
        f"| {percent(s['after']['deployed'])} | {percent(s['after']['exploring'])} "
        f"| {s['env_steps']:,} | {s['train_seconds'] / 60:.1f} min |"
        for s, _ in runs
    ]
    commits = sorted({str(provenance["commit"]) for _, provenance in runs})
    machines = sorted({str(provenance["machine"]) for _, provenance in runs})
    return "\n".join([HEADER, *rows, "", f"Commit {', '.join(commits)}; {', '.join(machines)}."])


def main() -> None:
    """Command line entry."""
    with exit_with_message():
        config = tyro.cli(TableConfig, description=__doc__)
        Console(soft_wrap=True).print(table(config.runs), markup=False, highlight=False)


if __name__ == "__main__":
    main()
