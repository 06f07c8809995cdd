"""Sizes and checksums of the files in a folder, kept in its checksums.json."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

CHECKSUMS = "checksums.json"
_BYTES_AT_ONCE = 2**24


def write_checksums(folder: Path) -> None:
    """Write the size and the checksum of every file in a folder into checksums.json, the last."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    sums = {str(file.relative_to(folder)): [file.stat().st_size, checksum(file)] for file in files}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")


def checksum_fault(folder: Path, deep: bool) -> str | None:
    """Return the first difference of a folder from its checksums.json, or None."""
    try:
        expected = _read_checksums(folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS} is damaged ({error!r})"
    # sizes first, because a checksum reads the whole file
    for name, (size, code) in expected.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} of {size:,} bytes"
        if deep and checksum(file) != code:
            return f"{name} has changed since it was written"
    return None


def known_checksum(folder: Path, name: str) -> int | None:
    """Return the checksum that a file of a folder had, or None if that is not known."""
    try:
        return _read_checksums(folder)[name][1]
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None


def _read_checksums(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and checksum of each file, by its path in the folder."""
    sums = json.loads((folder / CHECKSUMS).read_text())
    return {str(name): (int(size), int(code)) for name, (size, code) in sums.items()}


def checksum(file: Path) -> int:
    """Return the CRC-32 of a file."""
    code = 0
    with file.open("rb") as opened:
        while block := opened.read(_BYTES_AT_ONCE):
            code = zlib.crc32(block, code)
    return code
