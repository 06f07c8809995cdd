"""The identity of a checkpoint, by which an evaluation recognizes it when it goes on."""

from __future__ import annotations

import hashlib
from pathlib import Path

_BYTES_AT_ONCE = 2**24


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a checkpoint: of the names and contents of all its files.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "policy.json").write_text("{}")
        >>> fingerprint(folder)[:8]
        'e9017aad'

    Args:
        path: Folder or file.
    """
    whole = hashlib.sha256()
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    for file in files:
        if file.is_file():
            name = file.name if file == path else str(file.relative_to(path))
            whole.update(f"{name}\0{_content(file)}\n".encode())
    return whole.hexdigest()


def _content(file: Path) -> str:
    """Return the SHA-256 of a file."""
    code = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(_BYTES_AT_ONCE):
            code.update(block)
    return code.hexdigest()
