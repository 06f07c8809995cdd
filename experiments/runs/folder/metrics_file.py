"""metrics.csv of a run: one writer, and one reader that repairs or names every damage.

A spreadsheet may have saved the file with a byte order mark, other separators or in another order,
and a kill or a power failure may have cut its end. Such files are read as what they were. A value
that cannot be known is never guessed: its line is named.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pitune.experiments.runs.progress import screen

METRICS = "metrics.csv"
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
Row = dict[str, Any]


class MetricsFile(NamedTuple):
    """The readable part of a metrics.csv.

    Example:
        >>> MetricsFile(["iteration", "loss"], [{"iteration": 1, "loss": 0.5}], [], []).columns
        ['iteration', 'loss']
    """

    columns: list[str]
    rows: list[Row]
    """By iteration, without empty cells."""
    repairs: list[str]
    """Differences from a file of ours that changed no value, and a last line that was cut."""
    damage: list[str]
    """Lines that cannot be read, which are left out of `rows`."""


def read_rows(file: Path) -> tuple[list[str], list[Row]]:
    """Return the columns and the rows of a metrics.csv, and print each repair.

    Raises:
        ValueError: a line is damaged.
    """
    found = parse(file)
    if found.damage:
        raise ValueError(
            f"{file} is damaged in {'; '.join(found.damage)}. Correct or remove that, "
            "or pass another --out"
        )
    for repair in found.repairs:
        screen.note(f"{file} was repaired: {repair}")
    return found.columns, found.rows


def parse(file: Path) -> MetricsFile:
    """Read all that can be read of a metrics.csv."""
    repairs: list[str] = []
    damage: list[str] = []
    lines = _lines(_decoded(file.read_bytes(), repairs), repairs)
    if not lines:
        return MetricsFile(["iteration"], [], repairs, damage)

    # header
    columns, separator = _header(lines.pop(0), repairs, damage)
    if damage:
        return MetricsFile(["iteration"], [], repairs, damage)

    # rows
    rows: dict[int, tuple[int, Row]] = {}
    in_order = True
    for number, text in lines:
        try:
            row = _row(_cells(text, separator), columns, separator)
        except ValueError as error:
            damage.append(f"line {number}: {error}")
            continue
        iteration = row["iteration"]
        in_order = in_order and iteration >= max(rows, default=iteration)
        if iteration not in rows:
            rows[iteration] = (number, row)
        elif same_row(rows[iteration][1], row):
            repairs.append(f"line {number} repeats line {rows[iteration][0]}")
        else:
            first = rows[iteration][0]
            damage.append(f"line {number}: iteration {iteration} has other values in line {first}")
    if not in_order:
        repairs.append("its lines were in another order")
    columns = ["iteration", *(column for column in columns if column != "iteration")]
    return MetricsFile(columns, [rows[key][1] for key in sorted(rows)], repairs, damage)


def _header(line: _Line, repairs: list[str], damage: list[str]) -> tuple[list[str], str]:
    """Return the columns and the separator of a file by its first line."""
    separator = max(_SEPARATORS, key=line.text.count)
    if separator != ",":
        repairs.append(f"its cells are separated by {_SEPARATORS[separator]}")
    try:
        columns = [cell.strip() for cell in _cells(line.text, separator)]
    except ValueError as error:
        damage.append(f"line {line.number}: {error}")
        return [], separator
    while columns and not columns[-1]:
        columns.pop()
    if "iteration" not in columns:
        damage.append(f"line {line.number}: no header with a column `iteration`")
    elif len(set(columns)) < len(columns) or "" in columns:
        damage.append(f"line {line.number}: a column has no name, or the name of another")
    elif columns[0] != "iteration":
        repairs.append("its columns were in another order")
    return columns, separator


def write_rows(file: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Write a metrics.csv, whole or not at all."""
    temporary = file.with_name(f"tmp_{file.name}")
    with temporary.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, columns)
        writer.writeheader()
        writer.writerows(rows)
    temporary.rename(file)


def line_of(columns: Sequence[str], row: Row) -> bytes:
    """Return the line of a row, with its end."""
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns).writerow(row)
    return text.getvalue().encode()


def widened(file: Path, columns: Sequence[str], num_new: int, end: int) -> tuple[int, int]:
    """Write a metrics.csv again with further columns at its end, and return size and CRC-32.

    Args:
        file: As `write_rows` and `line_of` have written it, or missing.
        columns: All columns.
        num_new: How many of them the file lacks.
        end: Size of the part of the file that is kept [bytes].
    """
    temporary = file.with_name(f"tmp_{file.name}")
    header = line_of(columns, dict(zip(columns, columns, strict=True)))
    size, code = len(header), zlib.crc32(header)
    with temporary.open("wb") as target:
        target.write(header)
        if end:
            with file.open("rb") as source:
                old = columns[: len(columns) - num_new]
                source.seek(len(line_of(old, dict(zip(old, old, strict=True)))))
                while source.tell() < end:
                    line = source.readline()
                    line = line.removesuffix(b"\r\n") + b"," * num_new + b"\r\n"
                    target.write(line)
                    size, code = size + len(line), zlib.crc32(line, code)
    temporary.rename(file)
    return size, code


class _Line(NamedTuple):
    number: int
    text: str


def _decoded(content: bytes, repairs: list[str]) -> str:
    """Return the text of a file, in the encoding that its first bytes announce."""
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if content.startswith(mark):
            repairs.append(f"it begins with a byte order mark ({encoding})")
            return content.removeprefix(mark).decode(encoding, errors="replace")
    return content.decode("utf-8", errors="replace")


def _lines(text: str, repairs: list[str]) -> list[_Line]:
    """Return the lines that are not empty, without a last one that was cut."""
    whole = text.rstrip("\0")
    if whole != text:
        repairs.append("its end was lost (zero bytes)")
    texts = whole.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = [_Line(number, line) for number, line in enumerate(texts, 1) if line.strip()]
    if lines and lines[0].text.lower().startswith("sep="):
        lines.pop(0)
        repairs.append("its first line names the separator")
    # A line of ours ends with a line break. Without it the last value may be a part of a number.
    if lines and texts[-1].strip():
        cut = lines.pop()
        repairs.append(f"line {cut.number} was cut short and is left out")
    return lines


def _cells(text: str, separator: str) -> list[str]:
    """Return the cells of a line.

    Raises:
        ValueError: it has zero bytes (before Python 3.11), or a cell of over 100,000 characters.
    """
    try:
        return next(csv.reader([text], delimiter=separator), [])
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _row(cells: list[str], columns: list[str], separator: str) -> Row:
    """Return the numbers of a line by column.

    Raises:
        ValueError: a cell is no number, or there are too many.
    """
    # Fewer cells are the rest of a line that was cut, whose last number may be a part of one.
    if len(cells) < len(columns) or any(cell.strip() for cell in cells[len(columns) :]):
        raise ValueError(f"{len(cells)} cells for {len(columns)} columns")
    row: Row = {}
    for column, cell in zip(columns, cells, strict=False):
        if cell.strip():
            row[column] = _number(cell.strip(), column, separator)
    iteration = row.pop("iteration", math.nan)
    if not (math.isfinite(iteration) and iteration == int(iteration) and iteration >= 0):
        raise ValueError(f"iteration={iteration} is no whole number")
    return {"iteration": int(iteration), **row}


def _number(cell: str, column: str, separator: str) -> float:
    # Spreadsheets that separate by semicolons write decimal commas.
    if separator == ";" and cell.count(",") == 1 and "." not in cell:
        cell = cell.replace(",", ".")
    try:
        if "_" in cell:  # Python's own digit groups
            raise ValueError
        return float(cell)
    except ValueError:
        raise ValueError(f"{column}={cell!r} is no number") from None


def same_row(first: Row, second: Row) -> bool:
    """Return whether two rows have the same cells, where nan equals nan."""
    return first.keys() == second.keys() and all(
        first[key] == second[key] or (first[key] != first[key] and second[key] != second[key])
        for key in first
    )
