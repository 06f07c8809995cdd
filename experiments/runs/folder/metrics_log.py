"""The metrics of a run while it trains, and their copies in its checkpoints.

A row is added at the end of the file. Memory holds only the latest rows, so that a run of weeks
needs no more than one of minutes. The size and the checksum of the file are known. If another
program has changed it, it is written again from the rows here, from the copy in a checkpoint and
from the file itself, in this order.
"""

from __future__ import annotations

import shutil
import zlib
from collections import deque
from pathlib import Path

from pitune.experiments.runs.folder.checksums import checksum
from pitune.experiments.runs.folder.metrics_file import (
    Row,
    line_of,
    parse,
    read_rows,
    same_row,
    widened,
    write_rows,
)
from pitune.experiments.runs.progress import screen

NUM_RECENT = 256
"""Rows in memory."""


class MetricsLog:
    """Rows of metrics.csv: the latest in memory, all in the file.

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
        self.columns: list[str] = ["iteration"]
        self.recent: deque[Row] = deque(maxlen=NUM_RECENT)
        """The latest rows."""
        # the file as it was written last
        self._size, self._code = 0, 0
        self._last_line = b""

    @property
    def rows(self) -> list[Row]:
        """All rows, read from the file."""
        return parse(self.file).rows if self.file.exists() else []

    def add(self, row: Row) -> None:
        """Add a row."""
        self._repair()
        self.recent.append(row)
        new = [key for key in row if key not in self.columns]
        if new or not self._size:  # a new column changes the header
            self._rewrite(new)
        self._append(line_of(self.columns, row))

    def amend(self, values: Row) -> None:
        """Add values to the last row."""
        self._repair()
        self.recent[-1] |= values
        new = [key for key in values if key not in self.columns]
        self._rewrite(new, without_last=True)
        self._append(line_of(self.columns, self.recent[-1]))

    def copy(self, file: Path) -> None:
        """Copy the file of all rows."""
        self._repair(deep=True)
        if self._size:
            shutil.copyfile(self.file, file)
        else:
            write_rows(file, self.columns, [])

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
            self._replace(*read_rows(self.file))
            return
        found = parse(self.file)
        for fault in (*found.repairs, *found.damage):
            screen.note(f"{self.file}: {fault}")
        self._replace(found.columns, found.rows)

    def restore(self, iteration: int, copy: Path) -> None:
        """Go back to the rows of a checkpoint.

        Args:
            iteration: Of the checkpoint.
            copy: Its copy of the rows, absent from checkpoints of pitune 0.2 and before.
        """
        columns, rows = self.columns, self.rows
        if copy.is_file():
            read = [row for row in rows if row["iteration"] <= iteration]
            columns, rows = read_rows(copy)
            if len(read) != len(rows) or not all(map(same_row, read, rows)):
                screen.note(f"{self.file} was not as written; its rows are those of {copy}")
        rows = [row for row in rows if row["iteration"] <= iteration]
        missing = sorted(set(range(1, iteration + 1)) - {row["iteration"] for row in rows})
        if missing:
            screen.note(
                f"warning: {self.file} has lost iterations {missing}, which are not repeated: "
                "the curve lacks them, and training is not affected"
            )
        self._replace(columns, rows)

    def _append(self, line: bytes) -> None:
        """Add a line at the end of the file, in a single write."""
        with self.file.open("ab") as opened:
            opened.write(line)
        self._size, self._code = self._size + len(line), zlib.crc32(line, self._code)
        self._last_line = line

    def _rewrite(self, new: list[str], without_last: bool = False) -> None:
        """Write the file again with further columns, line by line."""
        end = self._size - len(self._last_line) * without_last
        self.columns += new
        self._size, self._code = widened(self.file, self.columns, len(new), end)

    def _replace(self, columns: list[str], rows: list[Row]) -> None:
        """Write the file with these rows."""
        self.columns = columns
        write_rows(self.file, columns, rows)
        self.recent = deque(rows[-NUM_RECENT:], maxlen=NUM_RECENT)
        self._last_line = line_of(columns, rows[-1]) if rows else b""
        self._size, self._code = self.file.stat().st_size, checksum(self.file)

    def _repair(self, deep: bool = False) -> None:
        """Write the file again if another program has changed or removed it.

        Args:
            deep: Whether to compare its checksum too, and not only its size.
        """
        size = self.file.stat().st_size if self.file.exists() else 0
        if size == self._size and not (deep and size and checksum(self.file) != self._code):
            return
        rows: dict[int, Row] = {}
        columns = dict.fromkeys(self.columns)
        # the best source last, because it replaces the others
        for file in (self.file, *sorted(self.file.parent.glob(f"checkpoint_*/{self.file.name}"))):
            if file.is_file():
                found = parse(file)
                columns |= dict.fromkeys(found.columns)
                rows |= {row["iteration"]: row for row in found.rows}
        rows |= {row["iteration"]: row for row in self.recent}
        screen.note(f"{self.file} was changed by another program; it is written again")
        latest = self.recent[-1]["iteration"] if self.recent else 0
        self._replace(list(columns), [rows[key] for key in sorted(rows) if key <= latest])
