"""Results of arms in a folder: successes with intervals, and pairs on the same starts.

Each record is `seed_<n>/<arm>.json` and holds the evaluations of its arm, its plays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pitune import rl
from pitune.experiments.reports.table import TextTable
from pitune.experiments.runs.config_file import write_whole
from pitune.experiments.runs.folder.same_config import differences
from pitune.experiments.runs.progress import screen
from pitune.rl.evaluation.outcome import EpisodeOutcome
from pitune.rl.evaluation.paired import paired_test

Play = tuple[str, str]
"""An arm and one of its evaluations."""
Results = Mapping[Play, Mapping[int, rl.Evaluation]]
"""Evaluations of each play, by seed in increasing order."""


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings that all results of a folder share, or compare them.

    Args:
        folder: Of the results. It is made if it is missing.
        settings: JSON values.

    Raises:
        ValueError: the folder holds results of other settings.
    """
    file = folder / "settings.json"
    if not file.exists():
        if any(folder.glob("seed_*/*.json")):
            screen.note(
                f"{folder} has results of an older version of pitune, which kept no settings; "
                f"they count as results of {settings}"
            )
        write_whole(file, json.dumps(settings, indent=2) + "\n")
    found = differences(json.loads(file.read_text()), settings)
    if found:
        raise ValueError(
            f"{folder} has results of other settings: {'; '.join(sorted(found))}; pass another "
            "--out, or the same settings"
        )


def read_records(out: Path) -> list[dict[str, Any]]:
    """Return the records in a folder, by seed.

    Raises:
        ValueError: there are none.
    """
    records = [json.loads(file.read_text()) for file in sorted(out.glob("seed_*/*.json"))]
    if not records:
        raise ValueError(f"out={out} has no results; run the command without --table first")
    return sorted(records, key=lambda record: int(record["seed"]))


def results_of(records: list[dict[str, Any]]) -> Results:
    """Return the evaluations of records by their play."""
    results: dict[Play, dict[int, rl.Evaluation]] = {}
    for record in records:
        for name, play in record["plays"].items():
            rows = tuple(EpisodeOutcome(**row) for row in play["rows"])
            evaluation = rl.Evaluation(rows=rows, success_rule=play["success_rule"])
            results.setdefault((record["arm"], name), {})[record["seed"]] = evaluation
    return results


def successes_table(results: Results, plays: Mapping[str, Play]) -> TextTable:
    """Return a row for each play by its title: all seeds together, and each of them."""
    rows = []
    for title, play in plays.items():
        if play in results:
            by_seed = results[play]
            seeds = ", ".join(f"{seed}: {percent(found)}" for seed, found in by_seed.items())
            rows.append((title, str(pooled(by_seed)), seeds))
    return TextTable("", ("arm", "success, 95 % interval", "each seed [%]"), rows)


def pairs_table(results: Results, pairs: Mapping[str, tuple[Play, Play]]) -> TextTable:
    """Return the paired comparisons, on the starts of the seeds that both plays have."""
    rows = []
    for title, (first, second) in pairs.items():
        one, two = results.get(first, {}), results.get(second, {})
        one = {seed: found for seed, found in one.items() if seed in two}
        two = {seed: found for seed, found in two.items() if seed in one}
        if one:
            test = paired_test(pooled(one), pooled(two))
            low, high = (100 * end for end in test.interval)
            difference = f"{100 * test.difference:+.1f} [{low:+.1f}, {high:+.1f}]"
            counts = f"{test.wins}, {test.losses}"
            rows.append((title, difference, counts, str(test.pairs), f"{test.p_value:.1g}"))
    columns = ("paired on the same starts", "difference [points]", "better, worse", "n", "exact p")
    return TextTable("", columns, rows)


def pooled(by_seed: Mapping[int, rl.Evaluation]) -> rl.Evaluation:
    """Return the episodes of all seeds as one list, each with a place of its own."""
    rows = [row for evaluation in by_seed.values() for row in evaluation.rows]
    numbered = tuple(replace(row, index=index) for index, row in enumerate(rows))
    rule = next(iter(by_seed.values())).success_rule
    return rl.Evaluation(rows=numbered, success_rule=rule)


def percent(evaluation: rl.Evaluation) -> str:
    """Return the success rate [%]."""
    rate = evaluation.success_rate
    return "none" if rate is None else f"{100 * rate:.1f}"
