"""The tables of iterated arms, from the records in a folder."""

from __future__ import annotations

from pathlib import Path

from pitune.experiments.benchmarks.learning.results import (
    Results,
    pairs_table,
    percent,
    pooled,
    read_records,
    results_of,
    successes_table,
)
from pitune.experiments.reports.table import TextTable

TITLES = {
    "bc": "`bc` on all data",
    "filtered": "`bc` on all successes (filtered)",
    "filtered_bc": "`filtered_bc`, own latest successes",
    "recap": "`recap`",
    "inverted": "`recap:inverted`",
}


def tables(out: Path) -> str:
    """Return the results in a folder as Markdown: each update, the last one, and its pairs.

    Raises:
        ValueError: the folder has no results.
    """
    results = results_of(read_records(out))
    last = str(max(int(update) for _, update in results))
    others = [arm for arm in TITLES if arm != "recap"]
    shown = [
        _updates(results),
        successes_table(results, {title: (arm, last) for arm, title in TITLES.items()}),
        pairs_table(
            results,
            {f"`recap` against {TITLES[arm]}": ((arm, last), ("recap", last)) for arm in others},
        ),
    ]
    return "\n\n".join(table.markdown() for table in shown)


def _updates(results: Results) -> TextTable:
    """Return the success of each arm after each update, over all seeds [%]."""
    updates = sorted({update for _, update in results}, key=int)
    rows = [
        (f"{title} [%]", *(percent(pooled(results[arm, update])) for update in updates))
        for arm, title in TITLES.items()
        if (arm, updates[0]) in results
    ]
    return TextTable("", ("updates", *updates), rows)
