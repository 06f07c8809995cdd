"""Writes LeRobot datasets of version 3.0.

The files are written into a temporary folder beside the dataset's, which gets its name at the end.
So a writer that is killed leaves no dataset, and never a damaged one.
Source: lerobot 0.6.1 `datasets/dataset_writer.py`, `datasets/dataset_metadata.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pitune.rl.datasets.columns import (
    Columns,
    RecordedEpisode,
    arrow_table,
    features_of,
    write_tasks,
)
from pitune.rl.datasets.config import RecordConfig
from pitune.rl.datasets.feature_stats import NumberStats, PictureStats, Stats
from pitune.rl.datasets.layout import (
    CHUNK_SIZE,
    DATA,
    EPISODES,
    FACTS,
    INFO,
    STATS,
    TASKS,
    VIDEO,
    require,
)
from pitune.rl.datasets.rolling import DataFiles, VideoFiles, file_place

VERSION = "v3.0"


class DatasetWriter:
    """Writes episodes into a new dataset, which exists from `close` on.

    The features are those of the first episode. As a context manager it is closed at the end of
    the block, or removed after an exception. The numbers of all frames stay in memory until then,
    for the quantiles, and pictures do not.

    Args:
        folder: The dataset. It must not exist.
        fps: Frames per second [Hz].
        config: Storage of the pictures.
        robot_type: Name of the robot or the environment.
        facts: Facts to store beside the dataset, such as the success rate of an expert.

    Raises:
        FileExistsError: the folder exists.
        ValueError: an episode is empty, differs in its features from the first one, or holds a
            number that is not finite. When closed: there is no episode.

    Example:
        >>> with DatasetWriter(Path("my_dataset"), fps=20.0) as writer:  # doctest: +SKIP
        ...     writer.add(episode)
    """

    def __init__(
        self,
        folder: Path,
        *,
        fps: float,
        config: RecordConfig | None = None,
        robot_type: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        if folder.exists():
            raise FileExistsError(f"{folder} exists already; pass another folder or remove it")
        require("pyarrow.parquet")
        self.folder, self.fps, self.robot_type = folder, fps, robot_type
        self.config = RecordConfig() if config is None else config
        if self.config.pictures == "video":
            require("av")
        self.facts: dict[str, Any] = dict(facts or {})
        """Facts to store beside the dataset. They may be changed until `close`."""
        self.num_frames = 0
        """Frames so far."""
        self.tasks: list[str] = []
        """Instructions so far."""

        # files
        self._temporary = folder.with_name(f"tmp_{folder.name}")
        shutil.rmtree(self._temporary, ignore_errors=True)  # of a writer that was killed
        self._temporary.mkdir(parents=True)
        self._data = DataFiles(self._temporary, self.config)
        self._videos: dict[str, VideoFiles] = {}

        # metadata
        self._features: dict[str, dict[str, Any]] = {}
        self._stats: dict[str, NumberStats | PictureStats] = {}
        self._episodes: list[dict[str, Any]] = []

    @property
    def num_episodes(self) -> int:
        """Episodes so far."""
        return len(self._episodes)

    def add(self, episode: RecordedEpisode) -> None:
        """Write an episode."""
        episode.check()
        # the same features in all episodes
        features = features_of(episode, self.config.pictures, self.fps)
        if not self._features:
            self._features = features
        if features != self._features:
            names = sorted(features.keys() | self._features.keys())
            differing = [n for n in names if features.get(n) != self._features.get(n)]
            raise ValueError(
                f"episode {self.num_episodes} differs from the first one in {differing}; a "
                "dataset has the same features, of the same shapes, in all episodes"
            )

        # frames
        if episode.task not in self.tasks:
            self.tasks.append(episode.task)
        columns = episode.columns() | self._index_columns(episode)
        images = self.config.pictures == "image"
        table = arrow_table(columns, episode.cameras() if images else {}, self._features)
        row = self._data.add(table)
        for name, pictures in ({} if images else episode.cameras()).items():
            if name not in self._videos:
                self._videos[name] = VideoFiles(self._temporary, name, self.fps, self.config)
            row |= self._videos[name].add(pictures)
        self._episodes.append(self._metadata(episode, row, columns))
        self.num_frames += len(episode)

    def close(self) -> None:
        """Write the metadata and give the dataset its name."""
        if not self._episodes:
            self.abandon()
            raise ValueError(f"{self.folder} would hold no episode; nothing was recorded")
        self._close_files()
        file = self._temporary / EPISODES.format(**file_place(0))
        file.parent.mkdir(parents=True)
        table = require("pyarrow").Table.from_pylist(self._episodes)
        require("pyarrow.parquet").write_table(table, file)
        write_tasks(self._temporary / TASKS, self.tasks)

        # JSON files
        stats = {name: stats.result() for name, stats in self._stats.items()}
        files = {STATS: stats, INFO: self._info()} | ({FACTS: self.facts} if self.facts else {})
        for path, content in files.items():
            (self._temporary / path).write_text(json.dumps(content, indent=4) + "\n")
        self._temporary.rename(self.folder)

    def abandon(self) -> None:
        """Remove everything that was written."""
        self._close_files()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _close_files(self) -> None:
        self._data.close()
        for videos in self._videos.values():
            videos.close()

    def _index_columns(self, episode: RecordedEpisode) -> Columns:
        """Return the columns that every dataset has, one number per frame."""
        num = len(episode)
        frame = np.arange(num)
        columns: Columns = {
            "timestamp": (frame / self.fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(num, self.num_episodes),
            "index": self.num_frames + frame,
            "task_index": np.full(num, self.tasks.index(episode.task)),
        }
        return {name: column[:, None] for name, column in columns.items()}

    def _metadata(
        self, episode: RecordedEpisode, place: dict[str, Any], columns: Columns
    ) -> dict[str, Any]:
        """Return the row of an episode in `meta/episodes`."""
        row: dict[str, Any] = {
            "episode_index": self.num_episodes,
            "tasks": [episode.task],
            "length": len(episode),
            "dataset_from_index": self.num_frames,
            "dataset_to_index": self.num_frames + len(episode),
            **place,
        }
        for name, stats in self._episode_stats(episode, columns).items():
            row |= {f"stats/{name}/{key}": value for key, value in stats.items()}
        row |= {f"meta/episodes/{key}": value for key, value in file_place(0).items()}
        recorded = {"success": episode.success, "seed": episode.seed}
        return row | {key: value for key, value in recorded.items() if value is not None}

    def _episode_stats(self, episode: RecordedEpisode, columns: Columns) -> dict[str, Stats]:
        """Return the statistics of an episode by feature, and add them to those of all."""
        found: dict[str, Stats] = {}
        for name, values in columns.items():
            numbers = self._stats.setdefault(name, NumberStats())
            found[name] = numbers.add(values)
        for name, pictures in episode.cameras().items():
            levels = self._stats.setdefault(name, PictureStats())
            found[name] = levels.add(pictures.cpu().numpy())
        return found

    def _info(self) -> dict[str, Any]:
        """Return the content of `meta/info.json`."""
        fps = int(self.fps) if float(self.fps).is_integer() else self.fps
        videos = [name for name, kind in self._features.items() if kind["dtype"] == "video"]
        return {
            "codebase_version": VERSION,
            "robot_type": self.robot_type or None,
            "total_episodes": self.num_episodes,
            "total_frames": self.num_frames,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK_SIZE,
            "data_files_size_in_mb": int(self.config.data_mib) or 1,
            "video_files_size_in_mb": int(self.config.video_mib) or 1,
            "fps": fps,
            "splits": {"train": f"0:{self.num_episodes}"},
            "data_path": DATA,
            "video_path": VIDEO if videos else None,
            "features": self._features,
        }
