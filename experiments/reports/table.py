"""A table of texts, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table


class TextTable(NamedTuple):
    """Cells of text, with a header.

    Example:
        >>> print(TextTable("", ("task", "success"), [("push", "50 %")]).markdown())
        | task | success |
        |---|---|
        | push | 50 % |
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    """Below the table."""

    def rich(self) -> Table:
        """Return the table for a terminal."""
        table = Table(title=self.title or None, caption=self.caption or None)
        for column in self.columns:
            table.add_column(column, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table as Markdown, with its title above and its caption below."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        texts = [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        ]
        texts[1] = texts[1].replace(" ", "")
        above = [f"**{self.title}**", ""] if self.title else []
        below = ["", self.caption] if self.caption else []
        return "\n".join([*above, *texts, *below])
