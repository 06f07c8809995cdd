"""The metrics of a run while it trains, and their copies in its checkpoints."""

from __future__ import annotations

from pathlib import Path

from pitune.experiments.runs.folder.metrics_file import (
    Row,
    append_row,
    parse,
    read_rows,
    same_row,
    write_rows,
)
from pitune.experiments.runs.progress import screen


class MetricsLog:
    """Rows of metrics.csv, in memory and in the file.

    Example:
        >>> import tempfile
        >>> log = MetricsLog(Path(tempfile.mkdtemp()) / "metrics.csv")
        >>> log.add({"iteration": 1, "loss": 0.5})
        >>> log.file.read_text().split()
        ['iteration,loss', '1,0.5']

    Args:
        file: metrics.csv.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[Row] = []
        self.columns: list[str] = ["iteration"]

    def add(self, row: Row) -> None:
        """Add a row."""
        # a new column changes the header, so the whole file is written
        new = [key for key in row if key not in self.columns]
        self.columns += new
        self.rows.append(row)
        if new or not self.file.exists():
            self.copy(self.file)
        else:
            append_row(self.file, self.columns, row)

    def amend(self, values: Row) -> None:
        """Add values to the last row."""
        self.rows[-1] |= values
        self.columns += [key for key in values if key not in self.columns]
        self.copy(self.file)

    def copy(self, file: Path) -> None:
        """Write all rows into a file."""
        write_rows(file, self.columns, self.rows)

    def read(self, has_copy: bool) -> None:
        """Read the rows of a run that is resumed, and print their repairs.

        Args:
            has_copy: Whether a checkpoint has a copy, so that damage is no error.

        Raises:
            ValueError: the file is damaged, and there is no copy.
        """
        if not self.file.exists():
            return
        if not has_copy:
            self.columns, self.rows = read_rows(self.file)
            return
        found = parse(self.file)
        self.columns, self.rows = found.columns, found.rows
        for fault in (*found.repairs, *found.damage):
            screen.note(f"{self.file}: {fault}")

    def restore(self, iteration: int, copy: Path) -> None:
        """Go back to the rows of a checkpoint.

        Args:
            iteration: Of the checkpoint.
            copy: Its copy of the rows, absent from checkpoints of pitune 0.2 and before.
        """
        if copy.is_file():
            read = [row for row in self.rows if row["iteration"] <= iteration]
            self.columns, self.rows = read_rows(copy)
            if len(read) != len(self.rows) or not all(map(same_row, read, self.rows)):
                screen.note(f"{self.file} was not as written; its rows are those of {copy}")
        self.rows = [row for row in self.rows if row["iteration"] <= iteration]
        missing = sorted(set(range(1, iteration + 1)) - {row["iteration"] for row in self.rows})
        if missing:
            screen.note(
                f"warning: {self.file} has lost iterations {missing}, which are not repeated: "
                "the curve lacks them, and training is not affected"
            )
        self.copy(self.file)
