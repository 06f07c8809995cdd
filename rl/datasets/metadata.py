"""The metadata of a LeRobot dataset: features, tasks, and the place of every episode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pitune.rl.datasets.layout import (
    INFO,
    OLD_EPISODES,
    OLD_TASKS,
    TASKS,
    VERSIONS,
    read_json,
    read_json_lines,
)
from pitune.rl.datasets.tables import read_columns


@dataclass(frozen=True, kw_only=True)
class VideoPart:
    """The part of a video file that holds one episode of a camera.

    Example:
        >>> VideoPart(file=Path("file-000.mp4"), start=2.5).start
        2.5
    """

    file: Path
    start: float
    """Time of its first frame in the file [s]."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One episode, and where its frames are.

    Example:
        >>> Episode(number=0, length=3, file=Path("file-000.parquet"), first_row=0).length
        3
    """

    number: int
    length: int
    """Frames."""
    file: Path
    """Parquet file."""
    first_row: int
    """Row of its first frame in the file."""
    videos: Mapping[str, VideoPart] = field(default_factory=dict)
    """By feature."""
    success: bool | None = None
    """Success, where the dataset stores it."""


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Features, tasks and episodes of a dataset.

    Example:
        >>> metadata = read_metadata(Path("my_dataset"))  # doctest: +SKIP
        >>> metadata.tasks  # doctest: +SKIP
        ('pick up the cube',)
    """

    folder: Path
    version: str
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    """Feature -> dtype, shape and names."""
    tasks: tuple[str, ...]
    """Instructions, indexed by `task_index`."""
    episodes: tuple[Episode, ...]

    def cameras(self) -> list[str]:
        """Return the features with pictures."""
        return [name for name, kind in self.features.items() if kind["dtype"] in PICTURES]

    def width(self, name: str) -> int:
        """Return the number of dimensions of a feature."""
        size = 1
        for part in self.features[name]["shape"]:
            size *= int(part)
        return size


PICTURES = ("video", "image")
"""Types of the features with pictures."""


def read_metadata(folder: Path) -> Metadata:
    """Read the metadata of a dataset of version 2.1 or 3.0.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the version is another one, or a file is damaged.
    """
    info = read_json(folder / INFO)
    version = str(info.get("codebase_version"))
    if version not in VERSIONS:
        raise ValueError(
            f"{folder / INFO} has codebase_version={version!r}; valid: {', '.join(VERSIONS)}. "
            "Convert the dataset with lerobot's own scripts"
        )
    # the parts of info.json that every version has
    missing = [key for key in ("fps", "features", "data_path") if not info.get(key)]
    if missing:
        raise ValueError(f"{folder / INFO} lacks {missing}; the dataset is damaged")
    features = info["features"]
    videos = [name for name, kind in features.items() if kind["dtype"] == "video"]
    old = version == "v2.1"
    tasks = _old_tasks(folder) if old else _tasks(folder)
    episodes = (_old_episodes if old else _episodes)(folder, info, videos)
    if not episodes:
        raise ValueError(f"{folder} holds no episode")
    return Metadata(
        folder=folder,
        version=version,
        fps=float(info["fps"]),
        features=features,
        tasks=tasks,
        episodes=tuple(episodes),
    )


def _tasks(folder: Path) -> tuple[str, ...]:
    """Return the instructions of a dataset v3.0."""
    file = folder / TASKS
    columns = read_columns(file)
    # pandas' index, which lerobot writes with one of two names
    words = next((columns[key] for key in ("task", "__index_level_0__") if key in columns), None)
    if words is None or "task_index" not in columns:
        raise ValueError(f"{file} has the columns {sorted(columns)}; it needs task_index and task")
    return _in_order(file, dict(zip(columns["task_index"], words, strict=True)))


def _old_tasks(folder: Path) -> tuple[str, ...]:
    """Return the instructions of a dataset v2.1."""
    file = folder / OLD_TASKS
    rows = read_json_lines(file)
    return _in_order(file, {row["task_index"]: row["task"] for row in rows})


def _in_order(file: Path, words: dict[int, str]) -> tuple[str, ...]:
    """Return instructions by their index."""
    if sorted(words) != list(range(len(words))):
        raise ValueError(f"{file} has task_index {sorted(words)[:10]}; it must count from 0")
    return tuple(words[i] for i in range(len(words)))


def _episodes(folder: Path, info: Mapping[str, Any], videos: list[str]) -> list[Episode]:
    """Return the episodes of a dataset v3.0."""
    files = sorted((folder / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"{folder}/meta/episodes holds no parquet file; the dataset is incomplete"
        )
    # only the columns of places, because those of statistics are far larger
    rows: list[dict[str, Any]] = []
    for file in files:
        names = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        names += ["dataset_from_index", "success"]
        parts = ("chunk_index", "file_index", "from_timestamp")
        names += [f"videos/{video}/{part}" for video in videos for part in parts]
        columns = read_columns(file, names)
        missing = [name for name in names if name not in columns and name != "success"]
        if missing:
            raise ValueError(f"{file} lacks the columns {missing}; the dataset is damaged")
        rows += [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
    rows.sort(key=lambda row: int(row["episode_index"]))

    # a file's first frame is that of its first episode
    first: dict[tuple[int, int], int] = {}
    for row in rows:
        place = (row["data/chunk_index"], row["data/file_index"])
        first[place] = min(first.get(place, row["dataset_from_index"]), row["dataset_from_index"])
    return [_episode(folder, info, videos, row, first) for row in rows]


def _episode(
    folder: Path,
    info: Mapping[str, Any],
    videos: list[str],
    row: dict[str, Any],
    first: dict[tuple[int, int], int],
) -> Episode:
    """Return an episode of a dataset v3.0 from its row of metadata."""
    chunk, file = row["data/chunk_index"], row["data/file_index"]
    parts = {}
    for video in videos:
        place = {part: row[f"videos/{video}/{part}"] for part in ("chunk_index", "file_index")}
        path = folder / info["video_path"].format(video_key=video, **place)
        parts[video] = VideoPart(file=path, start=float(row[f"videos/{video}/from_timestamp"]))
    success = row.get("success")
    return Episode(
        number=int(row["episode_index"]),
        length=int(row["length"]),
        file=folder / info["data_path"].format(chunk_index=chunk, file_index=file),
        first_row=int(row["dataset_from_index"] - first[chunk, file]),
        videos=parts,
        success=None if success is None else bool(success),
    )


def _old_episodes(folder: Path, info: Mapping[str, Any], videos: list[str]) -> list[Episode]:
    """Return the episodes of a dataset v2.1, which has a file for each."""
    episodes = []
    for row in read_json_lines(folder / OLD_EPISODES):
        number = int(row["episode_index"])
        place = {"episode_chunk": number // int(info.get("chunks_size", 1000))}
        place["episode_index"] = number
        parts = {
            video: VideoPart(
                file=folder / info["video_path"].format(video_key=video, **place), start=0.0
            )
            for video in videos
        }
        file = folder / info["data_path"].format(**place)
        episodes.append(
            Episode(number=number, length=int(row["length"]), file=file, first_row=0, videos=parts)
        )
    return sorted(episodes, key=lambda episode: episode.number)
