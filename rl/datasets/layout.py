"""Places of files in a LeRobot dataset, and the folder of a dataset by its path or hub name.

Source: lerobot 0.6.1 `datasets/utils.py` (v3.0), lerobot 0.3.3 `datasets/utils.py` (v2.1).
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from pitune.extras import install_command

INFO, STATS = Path("meta/info.json"), Path("meta/stats.json")
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA, VIDEO = f"data/{FILE}.parquet", f"videos/{{video_key}}/{FILE}.mp4"
EPISODES, TASKS = f"meta/episodes/{FILE}.parquet", Path("meta/tasks.parquet")
CHUNK_SIZE = 1000
"""Files in a folder, before the next folder begins."""
OLD_TASKS, OLD_EPISODES = Path("meta/tasks.jsonl"), Path("meta/episodes.jsonl")
OLD_STATS = Path("meta/episodes_stats.jsonl")
FACTS = Path("meta/pitune.json")
"""Facts about a recording that the format has no place for."""
INDEX = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features of every dataset, besides those of its robot."""
VERSIONS = ("v2.1", "v3.0")


def require(name: str) -> ModuleType:
    """Import a package of the extra `datasets`.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"LeRobot datasets need {name.partition('.')[0]}; run {install_command('datasets')}"
        ) from error


def is_dataset(path: Path) -> bool:
    """Return whether a path is a folder with a LeRobot dataset."""
    return (path / INFO).is_file()


def find_dataset(name: Path) -> Path:
    """Return the folder of a dataset. A hub name such as lerobot/pusht is downloaded once.

    Raises:
        FileNotFoundError: there is no such folder, and the hub does not give it either.
    """
    if is_dataset(name):
        return name
    if name.exists():
        raise FileNotFoundError(
            f"{name} is no LeRobot dataset: it has no {INFO}; pass the folder that holds meta/ "
            "and data/"
        )
    local = f"no demonstrations at {name}, and no folder of that name here"
    if name.is_absolute() or len(name.parts) != 2:
        raise FileNotFoundError(
            f"{local}; pass a file of experiments.pretrain (.safetensors), a folder with a LeRobot "
            "dataset, or a hub name such as lerobot/pusht"
        )
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f"{local}, and huggingface_hub, which would download it from the hub, is not "
            "installed; run pip install huggingface_hub, or pass a folder"
        ) from error
    try:
        return Path(snapshot_download(name.as_posix(), repo_type="dataset"))
    except Exception as error:  # the hub's library raises many types, for each cause another
        raise FileNotFoundError(
            f"{local}, and the hub does not give it ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}); pass a folder, or check the "
            "name and the network"
        ) from error


def read_json(file: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; the dataset is incomplete")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON file ({error}); the dataset is damaged") from error


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a file with one JSON object per line.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: a line is damaged.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; the dataset is incomplete")
    rows = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{file}, line {number} is no JSON object ({error})") from error
    return rows
