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


PICKLE_ADVICE = (
    "which can run any code and is never loaded. Convert it in the environment that wrote it: "
    "`weights = torch.load(file, weights_only=True)`, then safetensors.torch.save_file(weights, "
    "'model.safetensors') of the entry that maps names to tensors"
)
"""Explanation after the name of a pickle."""


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


def check_safetensors(file: Path) -> None:
    """Fail if a file cannot be safetensors, by its first bytes and its length.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: names another kind of file, or the missing bytes.
    """
    if file.is_symlink() and not file.exists():
        raise FileNotFoundError(
            f"{file} links to {os.readlink(file)}, which is missing; download the checkpoint again"
        )
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {file}; take a complete checkpoint")

    # kind of the file, by its first bytes
    with file.open("rb") as opened:
        start = opened.read(32)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{file} is a pointer of git-lfs and not the file itself; run `git lfs pull` in its "
            "folder, or download the checkpoint again"
        )
    # a safetensors file has "{" after its header's length, whose own bytes are arbitrary
    is_safetensors = start[8:9] == b"{"
    if not is_safetensors and start.startswith((b"PK", b"\x80")):
        raise ValueError(f"{file} is a pickle, {PICKLE_ADVICE}")
    if start[:1] == b"<" and not is_safetensors:
        raise ValueError(
            f"{file} is a web page, as a failed download leaves; download the checkpoint again"
        )

    # length, which the header gives
    size = file.stat().st_size
    header = int.from_bytes(start[:8], "little") if is_safetensors else 0
    if size < 9 or (is_safetensors and size < 8 + header):
        raise ValueError(
            f"{file} is damaged or cut short: it has {size} bytes, fewer than its header needs; "
            "download the checkpoint again"
        )


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file. Those of a large file are mapped into memory, not copied.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is no complete safetensors file. A pickle is never opened.
    """
    check_safetensors(file)

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


def write_json(file: Path, values: dict[str, Any], indent: int = 2) -> None:
    """Write a JSON object with a final newline."""
    file.write_text(json.dumps(values, indent=indent) + "\n")
