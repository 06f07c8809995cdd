"""The columns of a recorded episode, and their declaration as LeRobot features.

Letters: N rows, D width of a feature, s robot state dim, d robot action dim, Y, X image pixels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from pitune.rl.datasets.layout import INDEX, require

Columns = dict[str, npt.NDArray[Any]]
"""Feature -> its numbers (N, D)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RecordedEpisode:
    """One whole episode (N) to write.

    Example:
        >>> import torch
        >>> episode = RecordedEpisode(
        ...     state=torch.zeros(5, 3), action=torch.zeros(5, 2), task="reach the goal"
        ... )
        >>> len(episode)
        5
    """

    state: Tensor
    """States before the actions (N, s) [robot units]."""
    action: Tensor
    """Executed actions (N, d) [robot units]."""
    task: str
    """Instruction."""
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    """By camera (N, 3, Y, X) uint8."""
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    """Further features of a frame (N,), such as `next.reward`: float32 or bool."""
    success: bool | None = None
    """Success of the episode, where the environment reports it."""
    seed: int | None = None
    """Seed of its start."""

    def __len__(self) -> int:
        return len(self.action)

    def columns(self) -> Columns:
        """Return the numbers of the episode, by feature."""
        columns = {
            "observation.state": self.state.float().cpu().numpy(),
            "action": self.action.float().cpu().numpy(),
        }
        signals = {name: value.cpu().numpy()[:, None] for name, value in self.signals.items()}
        return columns | signals

    def cameras(self) -> dict[str, Tensor]:
        """Return the pictures by feature."""
        return {f"observation.images.{name}": value for name, value in self.pictures.items()}

    def check(self) -> None:
        """Reject an episode without frames, with unequal lengths or with a broken number.

        Raises:
            ValueError: one of these.
        """
        parts = self.columns() | self.cameras()
        lengths = {name: len(value) for name, value in parts.items()}
        if not len(self) or set(lengths.values()) != {len(self)}:
            raise ValueError(f"an episode must have frames, equally many in each part: {lengths}")
        for name, values in self.columns().items():
            bad = ~np.isfinite(values.astype(np.float64)).all(-1)
            if bad.any():
                frame = int(bad.argmax())
                raise ValueError(
                    f"{name!r} is not finite in frame {frame} of the episode: "
                    f"{values[frame].tolist()}"
                )


def features_of(episode: RecordedEpisode, pictures: str, fps: float) -> dict[str, dict[str, Any]]:
    """Return the features of a dataset with such episodes, as `meta/info.json` declares them.

    Args:
        episode: Its first episode.
        pictures: "video" or "image".
        fps: Frames per second [Hz].
    """
    features: dict[str, dict[str, Any]] = {}
    for name, values in episode.columns().items():
        dtype = "bool" if values.dtype == np.bool_ else "float32"
        features[name] = _numbers(dtype, values.shape[1])
    for name, value in episode.cameras().items():
        shape = [int(value.shape[2]), int(value.shape[3]), 3]
        kind = {"dtype": pictures, "shape": shape, "names": ["height", "width", "channels"]}
        features[name] = kind
        if pictures == "video":
            size = {"video.height": shape[0], "video.width": shape[1], "video.channels": 3}
            features[name]["info"] = {**size, "video.fps": fps, "has_audio": False}
    for name in INDEX:
        features[name] = _numbers("float32" if name == "timestamp" else "int64", 1)
    return features


def arrow_table(
    columns: Columns, pictures: Mapping[str, Tensor], features: Mapping[str, Mapping[str, Any]]
) -> Any:
    """Return the rows of an episode as a pyarrow table.

    A feature of one dimension is a plain column, as in lerobot.

    Args:
        columns: Numbers of the frames.
        pictures: Pictures that are stored as PNG files, by feature (N, 3, Y, X) uint8.
        features: Declared types.
    """
    arrow = require("pyarrow")
    arrays = {}
    for name, values in columns.items():
        flat = arrow.array(values.ravel(), type=_arrow_type(arrow, str(features[name]["dtype"])))
        width = values.shape[1]
        arrays[name] = flat if width == 1 else arrow.FixedSizeListArray.from_arrays(flat, width)
    struct = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    for name, stack in pictures.items():
        rows = [{"bytes": _png(picture), "path": None} for picture in stack]
        arrays[name] = arrow.array(rows, type=struct)
    return arrow.table(arrays)


def write_tasks(file: Path, tasks: list[str]) -> None:
    """Write the table of instructions, with them as its pandas index, as lerobot reads it."""
    arrow = require("pyarrow")
    index = {"name": "task", "field_name": "task", "pandas_type": "unicode", "metadata": None}
    number = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {**number, "numpy_type": "int64", "metadata": None},
            {**index, "numpy_type": "object"},
        ],
        "pandas_version": "2.0.0",
    }
    table = arrow.table(
        {"task_index": arrow.array(range(len(tasks)), arrow.int64()), "task": tasks}
    )
    metadata = {b"pandas": json.dumps(pandas).encode()}
    require("pyarrow.parquet").write_table(table.replace_schema_metadata(metadata), file)


def _numbers(dtype: str, width: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [width], "names": None}


def _arrow_type(arrow: Any, dtype: str) -> Any:
    types = {"float32": arrow.float32(), "int64": arrow.int64(), "bool": arrow.bool_()}
    return types[dtype]


def _png(picture: Tensor) -> bytes:
    """Return a picture (3, Y, X) uint8 as a PNG file."""
    buffer = io.BytesIO()
    array = picture.permute(1, 2, 0).cpu().numpy()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, format="PNG")
    return buffer.getvalue()
