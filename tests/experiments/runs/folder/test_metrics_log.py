"""`metrics_log`: rows are appended, memory holds the latest, a changed file is written again."""

from __future__ import annotations

from pathlib import Path

import pytest

from pitune.experiments.runs.folder import metrics_log
from pitune.experiments.runs.folder.metrics_file import parse
from pitune.experiments.runs.folder.metrics_log import MetricsLog


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    log = MetricsLog(tmp_path / "metrics.csv")
    for iteration in range(1, 6):
        log.add({"iteration": iteration, "loss": iteration / 3})
    return log


def expected(last: int) -> list[dict]:
    return [{"iteration": number, "loss": number / 3} for number in range(1, last + 1)]


def test_a_row_is_appended(log: MetricsLog) -> None:
    before = log.file.read_bytes()
    inode = log.file.stat().st_ino
    log.add({"iteration": 6, "loss": 6 / 3})
    assert log.file.read_bytes().startswith(before)
    assert log.file.stat().st_ino == inode  # the same file, and no new one
    assert log.rows == expected(6)


def test_memory_holds_the_latest_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_log, "NUM_RECENT", 3)
    log = MetricsLog(tmp_path / "metrics.csv")
    for iteration in range(1, 101):
        log.add({"iteration": iteration, "loss": iteration / 3})
    assert [row["iteration"] for row in log.recent] == [98, 99, 100]
    assert log.rows == expected(100)
    log.restore(90, tmp_path / "no copy")
    assert [row["iteration"] for row in log.recent] == [88, 89, 90]
    assert log.rows == expected(90)


def test_new_columns_and_late_values_leave_the_other_cells_as_they_are(log: MetricsLog) -> None:
    log.add({"iteration": 6, "loss": 2.0, "success_rate": 0.5})
    log.amend({"eval/return, mean": 1.5, "loss": 2.5})
    log.add({"iteration": 7, "loss": 7 / 3})
    late = {"iteration": 6, "loss": 2.5, "success_rate": 0.5, "eval/return, mean": 1.5}
    assert log.rows == [*expected(5), late, expected(7)[-1]]
    assert log.columns == ["iteration", "loss", "success_rate", "eval/return, mean"]
    assert parse(log.file).repairs == []
    log.amend({"loss": 0.25})
    assert log.rows[-1] == {"iteration": 7, "loss": 0.25}


def test_a_copy_is_the_file(log: MetricsLog, tmp_path: Path) -> None:
    log.copy(tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_bytes() == log.file.read_bytes()
    log.add({"iteration": 6, "loss": 2.0})
    assert parse(tmp_path / "copy.csv").rows == expected(5)
    empty = MetricsLog(tmp_path / "new.csv")
    empty.copy(tmp_path / "empty.csv")
    assert (tmp_path / "empty.csv").read_text().split() == ["iteration"]
    assert not empty.file.exists()


@pytest.mark.parametrize("damage", ["removed", "cut", "extended", "edited", "of a spreadsheet"])
def test_a_file_that_another_program_changes_meanwhile_is_written_again(
    damage: str, log: MetricsLog, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    log.recent = type(log.recent)(list(log.recent)[-2:], maxlen=2)  # the others are not in memory
    checkpoint = tmp_path / "checkpoint_000003"
    checkpoint.mkdir()
    log.copy(checkpoint / "metrics.csv")
    content = log.file.read_bytes()
    if damage == "removed":
        log.file.unlink()
    else:
        changed = {
            "cut": content[:-7],
            "extended": content + b"9,9.0\r\n",
            "edited": content.replace(b"0.333", b"0.444"),
            "of a spreadsheet": content.replace(b",", b";").replace(b".", b","),
        }
        log.file.write_bytes(changed[damage])
    log.copy(tmp_path / "copy.csv")
    assert log.rows == parse(tmp_path / "copy.csv").rows == expected(5)
    assert "was changed by another program; it is written again" in capsys.readouterr().err
    log.add({"iteration": 6, "loss": 6 / 3})
    assert log.rows == expected(6)
    assert capsys.readouterr().err == ""
