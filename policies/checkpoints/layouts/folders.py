"""The folder of a checkpoint inside a download or a training run.

A path may lie above the checkpoint: a training output of lerobot, whose checkpoints are in
`checkpoints/last/pretrained_model`, one of its steps, or a repository in Hugging Face's cache
(`snapshots/`). The way down is unique or rejected, and a warning names the folder that was taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from pitune.policies.checkpoints.files import PICKLE_ADVICE

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".safetensors.bin")


def find_folder(path: Path, is_checkpoint: Callable[[Path], bool]) -> Path:
    """Return the checkpoint's folder at or below a path.

    Args:
        path: The path that the caller gave.
        is_checkpoint: Whether a folder holds a checkpoint itself.

    Raises:
        FileNotFoundError: there is no folder at the path.
        ValueError: there are several checkpoints below it.
    """
    if path.is_file():
        raise FileNotFoundError(f"{path} is a file; pass the folder that holds it, {path.parent}")
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(
            f"{path} links to {path.readlink()}, which is missing; pass the checkpoint's own folder"
        )
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}; pass a checkpoint's folder")
    folder = path
    while not is_checkpoint(folder):
        below = _below(folder)
        if below is None:
            return path
        folder = below
    if folder != path:
        warnings.warn(f"{path} is read from {folder} ({folder.resolve()})", stacklevel=3)
    return folder


def _below(folder: Path) -> Path | None:
    """Return the only folder to go on with, None if there is none."""
    # names that lerobot gives
    for name in ("pretrained_model", "last", "checkpoints"):
        place = folder / name
        if place.is_dir():
            return place
        if place.is_symlink():
            raise FileNotFoundError(
                f"{place} links to {place.readlink()}, which is missing; pass the checkpoint's own "
                "folder"
            )
        if place.is_file() and (folder / place.read_text(errors="replace").strip()).is_dir():
            return folder / place.read_text().strip()  # a link that was copied as text

    # a repository in Hugging Face's cache
    if (folder / "snapshots").is_dir():
        main = folder / "refs" / "main"
        named = folder / "snapshots" / (main.read_text().strip() if main.is_file() else "-")
        return named if named.is_dir() else _only(folder / "snapshots", "snapshots")
    return _only(folder, "steps")


def _only(folder: Path, kind: str) -> Path | None:
    """Return the only child folder of a kind, None if there is none.

    Raises:
        ValueError: there are several.
    """
    children = sorted(
        child
        for child in folder.iterdir()
        if child.is_dir() and (kind == "snapshots" or child.name.isdigit())
    )
    if len(children) > 1:
        raise ValueError(
            f"{folder} holds the {kind} {[child.name for child in children]} and does not say which"
            " is meant; pass one of them"
        )
    return children[0] if children else None


def why_unreadable(folder: Path) -> str | None:
    """Return why a folder without a known format cannot be read, None if there is no reason."""
    files = [file for pattern in ("*", "*/*") for file in sorted(folder.glob(pattern))]
    sharded = [file for file in files if file.suffix == ".distcp" or file.name == ".metadata"]
    if sharded:
        return (
            f"{sharded[0]} belongs to a distributed checkpoint of torch; consolidate it with "
            "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch`, and save the "
            "result as model.safetensors"
        )
    pickles = [str(file.relative_to(folder)) for file in files if file.name.endswith(_PICKLES)]
    if pickles:
        return f"{folder} holds {pickles[:5]}, which are pickles, each {PICKLE_ADVICE}"
    partial = [
        file.name
        for file in files
        if file.name.endswith((".incomplete", ".part", ".crdownload", ".aria2", ".tmp"))
    ]
    if partial:
        return f"{folder} holds the unfinished downloads {partial[:5]}; download them again"
    return None
