"""Rows of an evaluation in a file that only grows: a line for each episode, when it ends.

A kill or a power failure may cut the last line. It is then removed and its episode is played again.
Every other damage is named and never guessed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pitune.experiments.runs.progress import screen
from pitune.rl import EpisodeOutcome

ROWS = "rows.jsonl"


class StoredRow(NamedTuple):
    """An episode with the part of the evaluation that it belongs to.

    Example:
        >>> outcome = EpisodeOutcome(
        ...     index=0, seed=7, task_id=0, success_once=True, success_at_end=True, length=3
        ... )
        >>> StoredRow("checkpoint seed=0", outcome, True) == of_line(
        ...     line_of(StoredRow("checkpoint seed=0", outcome, True))
        ... )
        True
    """

    part: str
    """Name of the part."""
    outcome: EpisodeOutcome
    reported: bool
    """Whether the environment had reported success until the end of this episode."""


def line_of(row: StoredRow) -> str:
    """Return a row as a line of JSON."""
    values = {"part": row.part, **row.outcome.values(), "success_reported": row.reported}
    return json.dumps(values) + "\n"


def of_line(line: str) -> StoredRow:
    """Return the row of a line.

    Raises:
        ValueError: it is not a row.
    """
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    try:
        part, reported = values.pop("part"), values.pop("success_reported")
        outcome = EpisodeOutcome(**values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"it lacks an entry, or has another one ({error})") from error
    _check_types(outcome)
    if not isinstance(part, str) or not isinstance(reported, bool):
        raise ValueError(f"part={part!r} or success_reported={reported!r} is of another type")
    return StoredRow(part, outcome, reported)


def _check_types(outcome: EpisodeOutcome) -> None:
    """Raise ValueError if an entry of an outcome has another type than it was written with."""
    types: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("index", "task_id", "length"), (int,)),
        **dict.fromkeys(("success_once", "success_at_end", "invalid"), (bool,)),
        "seed": (int, type(None)),
        "episode_return": (float, int),
        "status_done": (bool, type(None)),
        "undecoded": (int, type(None)),
    }
    for name, kinds in types.items():
        value = getattr(outcome, name)
        if type(value) not in kinds:
            raise ValueError(f"{name}={value!r} is of another type")


class RowsFile:
    """Appends rows to a file. The caller holds the lock of its folder.

    Example:
        >>> import tempfile
        >>> file = RowsFile(Path(tempfile.mkdtemp()) / "rows.jsonl")
        >>> file.close()

    Args:
        file: The file, made if it is missing. A last line that was cut is removed.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            _repair(file)
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def add(self, row: StoredRow) -> None:
        """Append a row, in a single write."""
        os.write(self._descriptor, line_of(row).encode())

    def close(self) -> None:
        """Write the rows to the disk, and close the file."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)


def read_rows(file: Path) -> list[StoredRow]:
    """Return the rows of a file, without a last line that was cut.

    Raises:
        ValueError: another line is damaged.
    """
    content = _whole_lines(file.read_bytes())
    return list(_rows(file, content))


def _rows(file: Path, content: bytes) -> Iterator[StoredRow]:
    for number, line in enumerate(content.decode("utf-8", errors="replace").split("\n")[:-1], 1):
        try:
            yield of_line(line)
        except ValueError as error:
            raise ValueError(
                f"{file} is damaged in line {number}: {error}. Remove this line, and its episode "
                "is played again"
            ) from error


def _whole_lines(content: bytes) -> bytes:
    """Return the lines that end with a line break, so without zeros that a power failure left."""
    return content[: content.rfind(b"\n") + 1]


def _repair(file: Path) -> None:
    """Remove a last line that was cut."""
    content = file.read_bytes()
    whole = _whole_lines(content)
    if len(whole) < len(content):
        screen.note(f"{file}: its last line was cut short, and its episode is played again")
        os.truncate(file, len(whole))


def merged(files: Sequence[Path]) -> dict[tuple[str, int], StoredRow]:
    """Return the rows of several files, by their part and their place in its list.

    Two processes may have played the same episode, if they had different shares of it.

    Raises:
        ValueError: a line is damaged, or an episode that its seed fixes has two outcomes.
    """
    rows: dict[tuple[str, int], StoredRow] = {}
    for file in files:
        for row in read_rows(file):
            key = (row.part, row.outcome.index)
            known = rows.setdefault(key, row)
            # an episode without a fixed start may end otherwise, and its first outcome stays
            if row.outcome != known.outcome and row.outcome.seed is not None:
                raise ValueError(
                    f"{file} has another outcome of episode {key[1]} ({key[0]}) than an earlier "
                    "line or file of this evaluation; its simulator does not repeat itself, or the "
                    "file was changed. Remove one of them, or start again with another --folder"
                )
    return rows
