"""The checkpoints in the folder of a run: which are its own, whether they are whole, their removal.

Only a directory `checkpoint_<six digits or more>`, that is no link and holds the progress of that
iteration, is the run's own. A copy, an archive or a link of the user beside it is left alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pitune.experiments.runs.folder.checksums import CHECKSUMS, checksum_fault, write_checksums
from pitune.experiments.runs.folder.checksums import checksum as checksum
from pitune.experiments.runs.folder.disk import as_disk_error
from pitune.experiments.runs.folder.segments import fault as segment_fault
from pitune.experiments.runs.progress import screen

PROGRESS, TRAINING = "progress.json", "training.pt"
PARTS = ("policy.safetensors", "policy.json", TRAINING, PROGRESS)
"""Files without which a checkpoint cannot be resumed from."""
OLD_NAMES = {"ode": "deployed", "stochastic": "exploring"}
"""Names of the two evaluations in files of pitune 0.1, and their names now."""
_NAME = re.compile(r"checkpoint_([0-9]{6,})")
_LEFTOVERS = re.compile(
    r"tmp_(checkpoint_[0-9]+|nonfinite_[0-9]+|initial_policy)_[0-9]+|\.removed_.+_[0-9]+|"
    r"tmp_(metrics\.csv|config\.json|summary\.json|before_after\.gif|learning_curve\.png|"
    r"before\.mp4|after\.mp4)"
)
"""Temporary names of the run's own files, which only a kill leaves behind."""


class DamagedCheckpointError(ValueError):
    """A checkpoint cannot be read.

    Example:
        >>> str(DamagedCheckpointError("training.pt is missing"))
        'training.pt is missing'
    """


def checkpoint_name(iteration: int) -> str:
    """Return the name of the checkpoint after an iteration.

    Example:
        >>> checkpoint_name(40)
        'checkpoint_000040'
    """
    return f"checkpoint_{iteration:06d}"


def own_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    numbered = []
    for path in folder.glob("checkpoint_*"):
        match = _NAME.fullmatch(path.name)
        if match is not None and _is_own(path, int(match[1])):
            numbered.append((int(match[1]), path))
    return [path for _, path in sorted(numbered)]


def _is_own(path: Path, iteration: int) -> bool:
    if path.name != checkpoint_name(iteration) or path.is_symlink() or not path.is_dir():
        return False
    # A copy of another iteration, for example `checkpoint_20260131`, is the user's.
    try:
        return bool(read_progress(path)["iteration"] == iteration)
    except DamagedCheckpointError:
        return True


def with_current_names(evaluations: dict[str, Any]) -> dict[str, Any]:
    """Return the evaluations of a summary, of any version, as `deployed` and `exploring`."""
    return {OLD_NAMES.get(name, name): evaluation for name, evaluation in evaluations.items()}


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """Return the progress of a checkpoint, with the current names of its evaluations.

    Raises:
        DamagedCheckpointError: the file is missing or damaged.
    """
    try:
        progress = json.loads((checkpoint / PROGRESS).read_text())
        if not isinstance(progress["iteration"], int):
            raise TypeError("iteration is no integer")
        if "before" in progress:
            progress["before"] = with_current_names(progress["before"])
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{PROGRESS} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{PROGRESS} is damaged ({error!r})") from error
    return dict(progress)


def damage_of(checkpoint: Path, deep: bool = False) -> str | None:
    """Return the first fault of a checkpoint, or None if it is whole.

    Args:
        checkpoint: Folder.
        deep: Whether to read all files and compare their checksums, and not only their sizes.
    """
    for name in PARTS:
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if not (checkpoint / name).stat().st_size:
            return f"{name} is empty"
    if (checkpoint / CHECKSUMS).is_file():  # absent from checkpoints of pitune 0.2 and before
        fault = checksum_fault(checkpoint, deep)
        if fault is not None:
            return fault
    if fault := segment_fault(checkpoint, deep):
        return fault
    try:
        read_progress(checkpoint)
    except DamagedCheckpointError as error:
        return str(error)
    return None


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, which replaces it if the block succeeds.

    A kill at any moment leaves the old folder, or a complete temporary one that `clean` adopts.

    Raises:
        OSError: the disk is full, or cannot be written. The old folder stays.
    """
    temporary = target.with_name(f"tmp_{target.name}_{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same id
    temporary.mkdir(parents=True)
    try:
        yield temporary
        write_checksums(temporary)
    except BaseException as error:
        of_disk = as_disk_error(error, temporary)
        # also after Ctrl-C, so that no incomplete folder stays
        shutil.rmtree(temporary, ignore_errors=True)
        if of_disk is None or of_disk is error:
            raise
        raise of_disk from error
    replaced = _hidden(target) if target.exists() or target.is_symlink() else None
    if replaced is not None:
        if not target.is_symlink() and target.is_dir():
            target.rename(replaced)
        else:
            set_aside(target, "other", "it is no checkpoint of this run")
    temporary.rename(target)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint so that a kill leaves it whole or not at all."""
    hidden = _hidden(checkpoint)
    try:
        checkpoint.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        screen.note(f"warning: {checkpoint} cannot be removed ({error}); remove it by hand")


def set_aside(checkpoint: Path, prefix: str, reason: str) -> Path:
    """Rename a folder or file that is in the way, print a warning, and return its new path."""
    target, number = checkpoint.with_name(f"{prefix}_{checkpoint.name}"), 1
    while target.exists() or target.is_symlink():
        number += 1
        target = checkpoint.with_name(f"{prefix}_{checkpoint.name}_{number}")
    checkpoint.rename(target)
    screen.note(f"warning: {checkpoint}: {reason}; it is kept as {target.name}")
    return target


def clean(folder: Path) -> None:
    """Remove the leftovers of a killed run. The caller holds the lock of the folder.

    A temporary checkpoint that is complete lacks only its name, and gets it.
    """
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or _LEFTOVERS.fullmatch(path.name) is None:
            continue
        if not path.is_dir():
            path.unlink()
            continue
        name = path.name.removeprefix("tmp_").rpartition("_")[0]
        complete = (path / CHECKSUMS).is_file() and checksum_fault(path, deep=True) is None
        if path.name.startswith("tmp_") and complete and not (folder / name).exists():
            path.rename(folder / name)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _hidden(path: Path) -> Path:
    """Return a free name for a folder that is about to be removed."""
    hidden = path.with_name(f".removed_{path.name}_{os.getpid()}")
    shutil.rmtree(hidden, ignore_errors=True)  # of a killed process with the same id
    return hidden
