"""The tables of recorded attempts, from the records in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pitune import rl
from pitune.experiments.reports.table import TextTable
from pitune.rl.evaluation.outcome import EpisodeOutcome
from pitune.rl.evaluation.paired import paired_test

Play = tuple[str, str]
"""An arm and the guidance that it acts with."""
Results = Mapping[Play, Mapping[int, rl.Evaluation]]
"""Evaluations of each play, by seed in increasing order."""

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
    records = [json.loads(file.read_text()) for file in sorted(out.glob("seed_*/*.json"))]
    if not records:
        raise ValueError(f"out={out} has no results; run the command without --table first")
    records.sort(key=lambda record: int(record["seed"]))
    results: dict[Play, dict[int, rl.Evaluation]] = {}
    for record in records:
        for name, play in record["plays"].items():
            rows = tuple(EpisodeOutcome(**row) for row in play["rows"])
            evaluation = rl.Evaluation(rows=rows, success_rule=play["success_rule"])
            results.setdefault((record["arm"], name), {})[record["seed"]] = evaluation
    shown = [_successes(results), _pairs(results), _scales(results), _attempts(records)]
    return "\n\n".join(table.markdown() for table in shown)


def _successes(results: Results) -> TextTable:
    """Return a row for each arm: all seeds together, and each of them."""
    rows = []
    for title, play in ROWS.items():
        if play in results:
            by_seed = results[play]
            seeds = ", ".join(f"{seed}: {_rate(found)}" for seed, found in by_seed.items())
            rows.append((title, str(_pooled(by_seed)), seeds))
    return TextTable("", ("arm", "success, 95 % interval", "each seed [%]"), rows)


def _pairs(results: Results) -> TextTable:
    """Return the paired comparisons, on the starts of the seeds that both arms have."""
    rows = []
    for title, (first, second) in PAIRS.items():
        one, two = results.get(first, {}), results.get(second, {})
        one = {seed: found for seed, found in one.items() if seed in two}
        two = {seed: found for seed, found in two.items() if seed in one}
        if one:
            test = paired_test(_pooled(one), _pooled(two))
            low, high = (100 * end for end in test.interval)
            difference = f"{100 * test.difference:+.1f} [{low:+.1f}, {high:+.1f}]"
            counts = f"{test.wins}, {test.losses}"
            rows.append((title, difference, counts, str(test.pairs), f"{test.p_value:.1g}"))
    columns = ("paired on the same starts", "difference [points]", "better, worse", "n", "exact p")
    return TextTable("", columns, rows)


def _scales(results: Results) -> TextTable:
    """Return the success of `recap` with each guidance, over all seeds."""
    rows = [
        (name, str(_pooled(by_seed))) for (arm, name), by_seed in results.items() if arm == "recap"
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


def _pooled(by_seed: Mapping[int, rl.Evaluation]) -> rl.Evaluation:
    """Return the episodes of all seeds as one list, each with a place of its own."""
    rows = [row for evaluation in by_seed.values() for row in evaluation.rows]
    numbered = tuple(replace(row, index=index) for index, row in enumerate(rows))
    rule = next(iter(by_seed.values())).success_rule
    return rl.Evaluation(rows=numbered, success_rule=rule)


def _rate(evaluation: rl.Evaluation) -> str:
    rate = evaluation.success_rate
    return "none" if rate is None else f"{100 * rate:.1f}"
