"""Files of a dataset that is being written. Past a size the next file begins.

Letters: N rows, Y, X image pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pitune.rl.datasets.config import RecordConfig
from pitune.rl.datasets.layout import CHUNK_SIZE, DATA, VIDEO, require
from pitune.rl.datasets.video import VideoFile

MIB = 2**20
Place = dict[str, Any]
"""Columns of `meta/episodes` that locate an episode."""


class DataFiles:
    """Parquet files, with a row group for each episode.

    Args:
        folder: The dataset's folder.
        config: Greatest size.

    Example:
        >>> files = DataFiles(Path("my_dataset"), RecordConfig())  # doctest: +SKIP
        >>> files.add(table)  # doctest: +SKIP
        {'data/chunk_index': 0, 'data/file_index': 0}
    """

    def __init__(self, folder: Path, config: RecordConfig) -> None:
        self._folder, self._config = folder, config
        self._number, self._file = -1, folder
        self._writer: Any = None

    def add(self, table: Any) -> Place:
        """Append the rows of an episode and return their place."""
        if self._writer is not None and self._file.stat().st_size >= self._config.data_mib * MIB:
            self.close()
        if self._writer is None:
            self._number += 1
            self._file = self._folder / DATA.format(**file_place(self._number))
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._writer = require("pyarrow.parquet").ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)
        return {f"data/{key}": value for key, value in file_place(self._number).items()}

    def close(self) -> None:
        """Finish the current file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class VideoFiles:
    """Video files of one camera, each with many episodes.

    Args:
        folder: The dataset's folder.
        feature: Feature of the camera.
        fps: Frames per second [Hz].
        config: Codec and greatest size.

    Example:
        >>> name = "observation.images.front"
        >>> files = VideoFiles(Path("my_dataset"), name, 20.0, RecordConfig())
        >>> files.add(pictures)[f"videos/{name}/from_timestamp"]  # doctest: +SKIP
        0.0
    """

    def __init__(self, folder: Path, feature: str, fps: float, config: RecordConfig) -> None:
        self._folder, self._feature, self._fps, self._config = folder, feature, fps, config
        self._number = -1
        self._video: VideoFile | None = None

    def add(self, pictures: Tensor) -> Place:
        """Append the pictures of an episode (N, 3, Y, X) uint8 and return their place."""
        if self._video is not None and self._video.num_bytes >= self._config.video_mib * MIB:
            self.close()
        if self._video is None:
            self._number += 1
            name = VIDEO.format(video_key=self._feature, **file_place(self._number))
            shape = (pictures.shape[-2], pictures.shape[-1])
            self._video = VideoFile(
                self._folder / name, self._fps, shape, self._config.codec, self._config.crf
            )
        start = self._video.seconds
        for picture in pictures:
            self._video.add(picture)
        place: Place = {**file_place(self._number), "from_timestamp": start}
        place["to_timestamp"] = self._video.seconds
        return {f"videos/{self._feature}/{key}": value for key, value in place.items()}

    def close(self) -> None:
        """Finish the current file."""
        if self._video is not None:
            self._video.close()
            self._video = None


def file_place(number: int) -> dict[str, int]:
    """Return folder and file of the file with a number.

    Example:
        >>> file_place(1001)
        {'chunk_index': 1, 'file_index': 1}
    """
    return {"chunk_index": number // CHUNK_SIZE, "file_index": number % CHUNK_SIZE}
