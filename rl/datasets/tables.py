"""Rows of parquet files, read by pyarrow, with checks that name the file and the row.

Letters: N rows, D width of a feature, Y, X image pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pitune.rl.datasets.layout import require

OPEN_FILES = 8
"""Parquet files whose footers are kept."""
_ONE_AT_A_TIME = RLock()
"""An open parquet file must not be read by two threads at once."""


def read_columns(file: Path, names: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Return columns of a small parquet file as lists. Names that it lacks are left out.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged.
    """
    parquet = _open(file)
    present = set(parquet.schema_arrow.names)
    chosen = sorted(present) if names is None else [name for name in names if name in present]
    table = _checked(file, lambda: parquet.read(columns=chosen, use_threads=False))
    return {name: table.column(name).to_pylist() for name in table.column_names}


class Rows:
    """Rows `start` to `stop` of a parquet file (N), with only the columns that are read.

    Row groups outside of the rows are not read.

    Args:
        file: The parquet file.
        start: First row.
        stop: Row after the last.
        names: Columns.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, has fewer rows, or lacks a column.

    Example:
        >>> rows = Rows(Path("file-000.parquet"), 0, 100, ["action"])  # doctest: +SKIP
        >>> rows.vectors("action", 7).shape  # doctest: +SKIP
        torch.Size([100, 7])
    """

    def __init__(self, file: Path, start: int, stop: int, names: Sequence[str]) -> None:
        self.file, self.start = file, start
        parquet = _open(file)
        missing = [name for name in names if name not in parquet.schema_arrow.names]
        if missing:
            raise ValueError(
                f"{file} lacks the columns {missing}; it has {sorted(parquet.schema_arrow.names)}"
            )
        if stop > parquet.metadata.num_rows:
            raise ValueError(
                f"{file} has {parquet.metadata.num_rows} rows, but the metadata place frames in "
                f"rows {start} to {stop - 1}; the dataset is damaged or incomplete"
            )
        groups, skipped = _groups(parquet.metadata, start, stop)
        table = _checked(
            file, lambda: parquet.read_row_groups(groups, list(names), use_threads=False)
        )
        self._table = table.slice(start - skipped, stop - start)

    def vectors(self, name: str, width: int) -> Tensor:
        """Return a column of numbers (N, D) float32.

        Raises:
            ValueError: a row has another number of entries, or one is not finite.
        """
        column = self._table.column(name).combine_chunks()
        num = len(column)
        if column.null_count:
            row = next(i for i, valid in enumerate(column.is_valid().to_pylist()) if not valid)
            raise ValueError(f"{self._at(row)}: {name!r} is empty")
        nested = hasattr(column, "flatten") and hasattr(column.type, "value_type")
        if nested:
            # list<float> or fixed_size_list<float> -> (N, D)
            lengths = [len(row) for row in column] if num else []
            wrong = next((i for i, length in enumerate(lengths) if length != width), None)
            if wrong is not None:
                raise ValueError(
                    f"{self._at(wrong)}: {name!r} has {lengths[wrong]} entries, but {width} are "
                    "declared in meta/info.json"
                )
            column = column.flatten()
        values = np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float32)
        values = values.reshape(num, width)
        # a single broken number would spoil the weights
        bad = ~np.isfinite(values).all(-1)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(f"{self._at(row)}: {name!r} is not finite, {values[row].tolist()}")
        return torch.from_numpy(values.copy())

    def integers(self, name: str) -> Tensor:
        """Return a column of integers (N,) int64."""
        return torch.tensor(self._table.column(name).to_pylist(), dtype=torch.int64)

    def times(self) -> list[float]:
        """Return the times of the frames in their episode [s]."""
        return [float(value) for value in self._table.column("timestamp").to_pylist()]

    def pictures(self, name: str) -> Tensor:
        """Return a column of encoded pictures (N, 3, Y, X) uint8.

        Raises:
            ValueError: a picture is missing or damaged, or has another size than the first.
        """
        pictures: list[np.ndarray[Any, Any]] = []
        for row, entry in enumerate(self._table.column(name).to_pylist()):
            if not isinstance(entry, dict) or not entry.get("bytes"):
                raise ValueError(f"{self._at(row)}: {name!r} holds no picture")
            try:
                picture = np.asarray(Image.open(io.BytesIO(entry["bytes"])).convert("RGB"))
            except OSError as error:
                raise ValueError(f"{self._at(row)}: the picture {name!r} is damaged") from error
            if pictures and picture.shape != pictures[0].shape:
                raise ValueError(
                    f"{self._at(row)}: the picture {name!r} has shape {picture.shape}, the first "
                    f"one {pictures[0].shape}"
                )
            pictures.append(picture)
        # (N, Y, X, 3) -> (N, 3, Y, X)
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

    def check_episode(self, number: int, first_frame: int) -> None:
        """Raise ValueError if the rows are not consecutive frames of an episode."""
        episodes = self.integers("episode_index")
        frames = self.integers("frame_index")
        wrong = (episodes != number) | (frames != first_frame + torch.arange(len(frames)))
        if wrong.any():
            row = int(wrong.int().argmax())
            raise ValueError(
                f"{self._at(row)}: found frame {int(frames[row])} of episode "
                f"{int(episodes[row])}, but the metadata place frame {first_frame + row} of "
                f"episode {number} here; the dataset is damaged"
            )

    def _at(self, row: int) -> str:
        return f"{self.file}, row {self.start + row}"


def _groups(metadata: Any, start: int, stop: int) -> tuple[list[int], int]:
    """Return the row groups that hold some rows, and the number of rows before them."""
    groups: list[int] = []
    skipped = first = 0
    for group in range(metadata.num_row_groups):
        last = first + metadata.row_group(group).num_rows
        if last > start and first < stop:
            groups.append(group)
            skipped = skipped if len(groups) > 1 else first
        first = last
    return groups, skipped


def _open(file: Path) -> Any:
    """Return an open parquet file."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; the dataset is incomplete")
    with _ONE_AT_A_TIME:
        return _opened(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=OPEN_FILES)
def _opened(file: Path, changed: int) -> Any:
    """Return an open parquet file. A file that was changed is opened anew."""
    parquet = require("pyarrow.parquet")
    return _checked(file, lambda: parquet.ParquetFile(file))


def _checked(file: Path, read: Any) -> Any:
    """Return the result of a read, with an error that names the file."""
    arrow = require("pyarrow")
    try:
        with _ONE_AT_A_TIME:
            return read()
    except (arrow.ArrowInvalid, OSError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(
            f"{file} is damaged or cut off ({cause}); copy or download it again"
        ) from error
