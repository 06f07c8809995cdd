"""The health table as Markdown, and the blocks of docs/ that are generated from it.

    python -m pitune.experiments.health.markdown docs

writes every block between `<!-- health: NAME -->` and `<!-- end of health -->` anew. NAME is a
registered algorithm, `every_run`, `all`, or a symptom such as `success_dropped`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.health.every_run import EVERY_RUN
from pitune.experiments.health.metric import Metric
from pitune.experiments.health.symptoms import SYMPTOMS
from pitune.experiments.health.table import METRICS, metrics_of
from pitune.ranges import Settings

BLOCK = re.compile(
    r"(<!-- health: (?P<name>\w+) -->\n).*?(<!-- end of health -->)", flags=re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class MarkdownConfig(Settings):
    """Write the health tables of the documentation anew.

    Example:
        >>> MarkdownConfig(folder=Path("docs/algorithms")).folder.name
        'algorithms'
    """

    folder: Annotated[Path, tyro.conf.Positional] = Path("docs")
    """Folder of the Markdown files."""


def markdown(name: str) -> str:
    """Return a Markdown table of the health table.

    Args:
        name: A registered algorithm, for its own metrics; `every_run` for those that all runs log;
            `all`; or a key of `SYMPTOMS`.

    Raises:
        ValueError: no metric belongs to the name.
    """
    if name in SYMPTOMS:
        return _table(SYMPTOMS[name].entries(), with_algorithms=True)
    if name == "all":
        return _table(METRICS, with_algorithms=True)
    if name == "every_run":
        return _table(EVERY_RUN, with_algorithms=False)
    known = sorted({algorithm for metric in METRICS for algorithm in metric.algorithms})
    if name not in known:
        raise ValueError(
            f"no health table for name={name!r}; valid: "
            f"{', '.join(['all', 'every_run', *SYMPTOMS, *known])}"
        )
    own = [metric for metric in metrics_of(name) if metric.algorithms]
    return _table(own, with_algorithms=False)


def _table(metrics: Sequence[Metric], with_algorithms: bool) -> str:
    header = ["metric", "meaning", "healthy", "otherwise"]
    lines = []
    for metric in metrics:
        cells = [f"`{metric.name}`", metric.meaning, metric.healthy, metric.advice]
        if with_algorithms:
            cells.insert(1, ", ".join(metric.algorithms) or "all")
        lines.append("| " + " | ".join(cells) + " |")
    if with_algorithms:
        header.insert(1, "logged by")
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *lines])


def with_tables(text: str) -> str:
    """Return a Markdown text with every generated block as it should be.

    Raises:
        ValueError: a block has an unknown name.
    """
    return BLOCK.sub(lambda block: f"{block[1]}{markdown(block['name'])}\n{block[3]}", text)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = tyro.cli(MarkdownConfig, args=argv, description=__doc__)
        for file in sorted(config.folder.rglob("*.md")):
            text = file.read_text()
            if with_tables(text) != text:
                file.write_text(with_tables(text))
                print(f"wrote {file}")


if __name__ == "__main__":
    main()
