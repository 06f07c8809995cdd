"""A mutant: one line of the code, changed so that it is wrong.

`tests.mutation.table` lists all of them, and `tests.mutation.run` runs their tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent


class Change(NamedTuple):
    """One wrong line of a file."""

    name: str
    """Words for the fault, unique in its file."""
    old: str
    """Part of a line that occurs once in the file."""
    new: str
    """Its wrong replacement."""
    tests: tuple[str, ...] = ()
    """Tests that should fail, or none for those of the file."""


class Mutants(NamedTuple):
    """The changes of one file."""

    file: str
    """Path in the checkout."""
    tests: tuple[str, ...]
    """Test files, the quickest first, or single tests as in `file.py::test_name`."""
    changes: list[Change]


@dataclass(frozen=True)
class Mutant:
    """One change with its file and its tests."""

    file: str
    change: Change
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name that is unique in the table."""
        return f"{self.file}: {self.change.name}"

    def occurrences(self, root: Path = ROOT) -> int:
        """Return how often the old text occurs in its file, which must be once."""
        return (root / self.file).read_text().count(self.change.old)

    def applied(self, source: str) -> str:
        """Return a file's text with the change.

        Raises:
            ValueError: the old text does not occur exactly once.
        """
        num = source.count(self.change.old)
        if num != 1:
            raise ValueError(
                f"{self.name}: {self.change.old!r} occurs {num} times; it must occur once, repair "
                "the table in tests/mutation"
            )
        return source.replace(self.change.old, self.change.new)


def mutants(*files: Mutants) -> list[Mutant]:
    """Return the mutants of some files."""
    return [
        Mutant(file=group.file, change=change, tests=change.tests or group.tests)
        for group in files
        for change in group.changes
    ]
