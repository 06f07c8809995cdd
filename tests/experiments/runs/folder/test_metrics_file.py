"""`metrics_file`: a metrics.csv is read as it was written, or its damaged line is named."""

from __future__ import annotations

import codecs
import math
import sys
from pathlib import Path

import pytest

from pitune.experiments.runs.folder.metrics_file import parse, read_rows, write_rows

ROWS = [
    {"iteration": 1, "loss": 0.25, "env_steps": 80.0},
    {"iteration": 2, "loss": -1.5e-7, "env_steps": 160.0, "success_rate": 0.5},
    {"iteration": 3, "loss": math.inf, "env_steps": 240.0},
]
COLUMNS = ["iteration", "loss", "env_steps", "success_rate"]
ZERO_BYTES = "loss=" if sys.version_info >= (3, 11) else "line contains NUL"
WHOLE = "iteration,loss,env_steps,success_rate\n1,0.25,80.0,\n2,-1.5e-07,160.0,0.5\n3,inf,240.0,\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "metrics.csv"


def test_rows_come_back_as_they_were_written(file: Path) -> None:
    write_rows(file, COLUMNS, ROWS)
    assert file.read_text().replace("\r", "") == WHOLE
    assert parse(file) == (COLUMNS, ROWS, [], [])


REPAIRED = {
    "utf-8 mark": (codecs.BOM_UTF8 + WHOLE.encode(), "byte order mark (utf-8)"),
    "utf-16 and tabs": (WHOLE.replace(",", "\t").encode("utf-16"), "separated by tabs"),
    "semicolons": (WHOLE.replace(",", ";").encode(), "separated by semicolons"),
    "semicolons and decimal commas": (
        WHOLE.replace(",", ";").replace(".", ",").encode(),
        "separated by semicolons",
    ),
    "a named separator": (b"sep=;\n" + WHOLE.replace(",", ";").encode(), "names the separator"),
    "lines repeated": ((WHOLE + "3,inf,240.0,\n").encode(), "line 5 repeats line 4"),
    "lines in another order": (
        b"iteration,loss,env_steps,success_rate\n2,-1.5e-07,160.0,0.5\n3,inf,240.0,\n1,0.25,80.0,\n",
        "its lines were in another order",
    ),
    "columns in another order": (
        b"loss,iteration,env_steps,success_rate\n0.25,1,80,\n-1.5e-07,2,160,0.5\ninf,3,240,\n",
        "its columns were in another order",
    ),
    "a cut tail": ((WHOLE + "4,0.2").encode(), "line 5 was cut short"),
    "a number cut in its digits": ((WHOLE + "4,0.2,320.0,0.1").encode(), "line 5 was cut short"),
    "zero bytes": (WHOLE.encode() + bytes(60), "its end was lost"),
}


@pytest.mark.parametrize("name", REPAIRED)
def test_a_repair_changes_no_value_and_is_printed(
    name: str, file: Path, capsys: pytest.CaptureFixture
) -> None:
    content, repair = REPAIRED[name]
    file.write_bytes(content)
    columns, rows = read_rows(file)
    assert (set(columns), columns[0], rows) == (set(COLUMNS), "iteration", ROWS)
    shown = capsys.readouterr().err
    assert f"{file} was repaired: " in shown
    assert repair in shown


@pytest.mark.parametrize(
    "content",
    [
        WHOLE.replace("\n", "\r\n"),
        WHOLE.replace("\n", "\r"),
        WHOLE.replace("\n", "\n\n"),
        WHOLE.replace("0.25", '"0.25"').replace("80.0", " 80.0 "),
        WHOLE.replace("\n", ",,\n"),
        WHOLE.replace("\n1,", "\n1.0,"),
    ],
)
def test_spellings_of_the_same_table_are_read_in_silence(content: str, file: Path) -> None:
    file.write_bytes(content.encode())
    assert parse(file) == (COLUMNS, ROWS, [], [])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("2,n.a.,160,", "line 3: loss='n.a.' is no number"),
        ("2,#REF!,160,", "line 3: loss='#REF!' is no number"),
        ("2,50%,160,", "line 3: loss='50%' is no number"),
        ("2,1_000,160,", "line 3: loss='1_000' is no number"),
        ('2,"0,5",160,', "line 3: loss='0,5' is no number"),
        ("x,0.5,160,", "line 3: iteration='x' is no number"),
        ("2.5,0.5,160,", "line 3: iteration=2.5 is no whole number"),
        ("-1,0.5,160,", "line 3: iteration=-1.0 is no whole number"),
        (",0.5,160,", "line 3: iteration=nan is no whole number"),
        ("2,0.5", "line 3: 2 cells for 4 columns"),
        ("2,0.5,160,0.5,7", "line 3: 5 cells for 4 columns"),
        ("1,0.26,80.0,", "line 3: iteration 1 has other values in line 2"),
        ("2,\x00\x00,160,", f"line 3: {ZERO_BYTES}"),
        (f"2,{'0' * 200_000},160,", "line 3: field larger than field limit"),
    ],
)
def test_a_damaged_line_is_named_and_the_others_are_read(line: str, fault: str, file: Path) -> None:
    file.write_text(WHOLE.replace("2,-1.5e-07,160.0,0.5", line))
    found = parse(file)
    assert len(found.damage) == 1
    assert found.damage[0].startswith(fault)
    assert [row["iteration"] for row in found.rows] == [1, 3]
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged in line 3: .*, or pass another"):
        read_rows(file)


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ("1,0.25,80.0,", "line 1: no header with a column `iteration`"),
        ("iteration,loss,loss,success_rate", "line 1: a column has no name, or the name of anoth"),
        (f"iteration,{'x' * 200_000}", "line 1: field larger than field limit"),
        ("iteration,,env_steps,success_rate", "line 1: a column has no name, or the name of anoth"),
    ],
)
def test_a_table_without_its_header_is_refused(header: str, fault: str, file: Path) -> None:
    file.write_text("\n".join([header, *WHOLE.splitlines()[1:]]) + "\n")
    assert parse(file).damage[0].startswith(fault)
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged in line 1: "):
        read_rows(file)


@pytest.mark.parametrize("content", [b"", b"\n\n", bytes(20), codecs.BOM_UTF8])
def test_an_empty_file_has_no_rows(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    assert read_rows(file) == (["iteration"], [])
