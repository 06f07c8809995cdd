"""Checkpoint files: folders that appear at once, and safetensors that are never unpickled."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

MAPPED_BYTES = 256 * 2**20
"""Files from this size on stay mapped into memory. Smaller ones are copied, because the last bits
of a computation depend on the alignment of its memory, and copies are always aligned [bytes]."""


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, and rename it to `path` if the block succeeds.

    Raises:
        FileExistsError: `path` exists already.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already; pass another path or remove it")
    temporary = path.with_name(f"tmp_{path.name}_{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same id
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        # also after Ctrl-C, so that no incomplete folder stays
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file. Those of a large file are mapped into memory, not copied.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is no complete safetensors file. A pickle is never opened.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {file}; take a complete checkpoint")

    # file format, by its first bytes
    with file.open("rb") as opened:
        start = opened.read(9)
    # a safetensors file has "{" after its header's length, whose own bytes are arbitrary
    if start[8:] != b"{" and (start.startswith(b"PK") or start.startswith(b"\x80")):
        raise ValueError(
            f"{file} is a pickle, which can run any code and is never loaded; convert it to "
            "safetensors with the program that wrote it"
        )

    # tensors
    try:
        with safe_open(file, framework="pt") as opened_file:
            tensors = {key: opened_file.get_tensor(key) for key in opened_file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is damaged or cut short ({error}); take a complete checkpoint"
        ) from error

    # aligned copies of a small file, see `MAPPED_BYTES`
    if file.stat().st_size < MAPPED_BYTES:
        tensors = {key: value.clone() for key, value in tensors.items()}
    return tensors


def read_weight_files(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of `model.safetensors`, or of all its shards.

    Raises:
        ValueError: two files hold the same tensor.
    """
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    weights: dict[str, Tensor] = {}
    for file in files:
        shard = read_safetensors(file)
        repeated = sorted(weights.keys() & shard.keys())
        if repeated:
            raise ValueError(
                f"{folder} holds {repeated[0]!r} in several files; remove the files that do not "
                "belong to this checkpoint"
            )
        weights |= shard
    return weights


def write_json(file: Path, values: dict[str, Any], indent: int = 2) -> None:
    """Write a JSON object with a final newline."""
    file.write_text(json.dumps(values, indent=indent) + "\n")
