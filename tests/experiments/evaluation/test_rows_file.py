"""The rows in their file: written once, repaired at the end, and never guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pitune.experiments.evaluation.rows_file import RowsFile, StoredRow, line_of, merged, read_rows
from pitune.rl import EpisodeOutcome

OUTCOME = EpisodeOutcome(
    index=4,
    seed=11,
    task_id=2,
    success_once=True,
    success_at_end=False,
    length=9,
    episode_return=0.1 + 0.2,
)
ROW = StoredRow("checkpoint seed=0", OUTCOME, True)


def written(file: Path, *rows: StoredRow) -> Path:
    opened = RowsFile(file)
    for row in rows:
        opened.add(row)
    opened.close()
    return file


def other(**changes: object) -> StoredRow:
    return ROW._replace(outcome=replace(OUTCOME, **changes))  # type: ignore[arg-type]


def test_rows_are_read_as_they_were_written_to_the_last_bit(tmp_path: Path) -> None:
    rows = [ROW, other(index=5, seed=None), ROW._replace(part="b", reported=False)]
    file = written(tmp_path / "a" / "rows.jsonl", *rows)
    assert read_rows(file) == rows
    written(file, other(index=6))
    assert len(read_rows(file)) == 4


@pytest.mark.parametrize("cut", [1, 5, 60])
@pytest.mark.parametrize("zeros", [0, 7])
def test_an_end_that_was_cut_is_removed_before_further_rows(
    cut: int, zeros: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "rows.jsonl", ROW, other(index=5))
    file.write_bytes(file.read_bytes()[:-cut] + b"\0" * zeros)
    assert read_rows(file) == [ROW]
    written(file, other(index=6))
    assert read_rows(file) == [ROW, other(index=6)]
    assert "its last line was cut short" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"seed": 11', '"seed": "11"', "seed='11' is of another type"),
        ('"length": 9', '"length": 9.5', "length=9.5 is of another type"),
        ('"success_once": true', '"success_once": 1', "success_once=1 is of another type"),
        ('"length": 9, ', "", "it lacks an entry"),
        ('"length"', '"lenght"', "it lacks an entry"),
        ('"success_reported": true', '"success_reported": 3', "success_reported=3"),
        ("{", "[", "Expecting"),
        (line_of(ROW).strip(), "3", "no JSON object"),
    ],
)
def test_other_damage_is_named_with_its_line(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    file = written(tmp_path / "rows.jsonl", other(index=0), ROW)
    first, second = file.read_text().splitlines(keepends=True)
    file.write_text(first + second.replace(old, new))
    with pytest.raises(ValueError, match=rf"rows.jsonl is damaged in line 2: .*{message}.*Remove"):
        read_rows(file)


def test_the_same_row_twice_is_one_and_another_outcome_is_an_error(tmp_path: Path) -> None:
    first = written(tmp_path / "a", ROW, other(index=1))
    second = written(tmp_path / "b", ROW, other(index=2))
    assert [index for _, index in merged([first, second])] == [4, 1, 2]
    third = written(tmp_path / "c", other(length=10))
    with pytest.raises(ValueError, match=r"another outcome of episode 4 \(checkpoint seed=0\)"):
        merged([first, third])
    # without a start that its seed fixes, the first outcome stays
    unseeded = [
        written(tmp_path / name, other(seed=None, length=length))
        for name, length in (("d", 3), ("e", 7))
    ]
    assert [row.outcome.length for row in merged(unseeded).values()] == [3]
