"""The beginning of a run in its folder: a free folder, and nothing left of a start that failed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pitune.experiments.runs.folder.checkpoints import clean, own_checkpoints
from pitune.experiments.runs.folder.lock import NAME as LOCK
from pitune.experiments.runs.folder.lock import lock, unlock
from pitune.experiments.runs.progress import screen

BASE = "initial_policy"
"""Folder with the policy as it was loaded, so that a resumed run needs no other folder."""
_RESULTS = ("metrics.csv", "summary.json")
_OF_A_START = ("config.json", "before.mp4", BASE, "replay")
"""Files of a run that exist before its first checkpoint."""


def claim(folder: Path) -> bool:
    """Lock a folder for a new run, and return whether it was made for it.

    A start that ended before its first checkpoint is taken over.

    Raises:
        FileExistsError: the folder holds a run already, or another process uses it.
        PermissionError: the folder cannot be written.
    """
    _check_free(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock(folder)
    _check_free(folder)  # another process may have begun and ended in between
    clean(folder)
    if (folder / "config.json").exists():
        screen.note(f"{folder} holds a start without a checkpoint; it starts again")
        _remove(folder, _OF_A_START)
    return made


def abandon(folder: Path, made: bool) -> None:
    """Remove the files of a start that failed, and unlock the folder.

    Args:
        folder: Of the run.
        made: Whether to remove the folder too, if nothing else is in it.
    """
    if own_checkpoints(folder):
        unlock(folder)
        return
    _remove(folder, (*_OF_A_START, "wandb") if made else _OF_A_START)
    clean(folder)
    unlock(folder)
    (folder / LOCK).unlink(missing_ok=True)
    if made and not any(folder.iterdir()):
        folder.rmdir()


def _check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; pass another --out")
    results = [path.name for path in own_checkpoints(folder)]
    results += [name for name in _RESULTS if (folder / name).exists()]
    config = folder / "config.json"
    if config.exists() and not _is_of_a_run(config):
        raise FileExistsError(f"{config} is not of a run; pass another --out, or remove the file")
    if results and config.exists():
        raise FileExistsError(
            f"{folder} already holds a run; pass another --out, or --resume to go on with it"
        )
    if results:
        raise FileExistsError(
            f"{folder} holds {', '.join(results)} of a run whose config.json is missing; restore "
            "that file, or pass another --out"
        )


def _is_of_a_run(config: Path) -> bool:
    """Return whether a config.json is a run's, and not that of another program."""
    try:
        record = json.loads(config.read_text())
        return isinstance(record["config"], dict) and "provenance" in record
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _remove(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
