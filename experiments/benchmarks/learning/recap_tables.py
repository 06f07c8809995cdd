"""The tables of recorded attempts, from the records in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pitune.experiments.benchmarks.learning.results import (
    Play,
    Results,
    pairs_table,
    pooled,
    read_records,
    results_of,
    successes_table,
)
from pitune.experiments.reports.table import TextTable

DEPLOYED = "s = 0"
"""Guidance of a deployed policy: the positive indicator alone."""
ROWS: dict[str, Play] = {
    "`bc`": ("bc", DEPLOYED),
    "`bc` on successes (filtered)": ("filtered", DEPLOYED),
    "`recap:offline`": ("recap", DEPLOYED),
    "the same with guidance, s = 1": ("recap", "s = 1"),
    "the same, acting with the negative indicator": ("recap", "negative"),
    "`recap:inverted`": ("inverted", DEPLOYED),
    "`recap:shuffled`": ("shuffled", DEPLOYED),
}
PAIRS: dict[str, tuple[Play, Play]] = {
    "`recap` against `bc`": (("bc", DEPLOYED), ("recap", DEPLOYED)),
    "`recap` against filtered": (("filtered", DEPLOYED), ("recap", DEPLOYED)),
    "`recap` with s = 1 against s = 0": (("recap", DEPLOYED), ("recap", "s = 1")),
    "inverted against `bc`": (("bc", DEPLOYED), ("inverted", DEPLOYED)),
    "shuffled against `bc`": (("bc", DEPLOYED), ("shuffled", DEPLOYED)),
}


def tables(out: Path) -> str:
    """Return the results in a folder as Markdown: success, pairs, scales, and the attempts.

    Raises:
        ValueError: the folder has no results.
    """
    records = read_records(out)
    results = results_of(records)
    shown = [
        successes_table(results, ROWS),
        pairs_table(results, PAIRS),
        _scales(results),
        _attempts(records),
    ]
    return "\n\n".join(table.markdown() for table in shown)


def _scales(results: Results) -> TextTable:
    """Return the success of `recap` with each guidance, over all seeds."""
    rows = [
        (name, str(pooled(by_seed))) for (arm, name), by_seed in results.items() if arm == "recap"
    ]
    return TextTable("", ("guidance of `recap`", "success, 95 % interval"), rows)


def _attempts(records: Sequence[Mapping[str, Any]]) -> TextTable:
    """Return the attempts of each seed, and the labels and the value that RECAP gave them."""
    metrics = ("solved_share", "positive_solved", "explained_variance")
    rows = [
        (
            str(record["seed"]),
            f"{record['solved_attempts']} of {record['attempts']}",
            f"{record['steps']:,}",
            *(f"{record['metrics'][name]:.3f}" for name in metrics),
        )
        for record in records
        if record["arm"] == "recap"
    ]
    columns = ("seed", "successful attempts", "steps", *(f"`{name}`" for name in metrics))
    return TextTable("", columns, rows)
