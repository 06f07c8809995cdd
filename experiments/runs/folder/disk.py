"""Errors of the disk, which libraries report in words of their own."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

FAULTS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
)
"""Numbers of errors after which nothing can be written."""
LEAST_FREE = 2**20
"""A disk with less is full [bytes]."""
_OF_SAFETENSORS = re.compile(r"os error ([0-9]+)")
_OF_TORCH = re.compile(r"PytorchStreamWriter|file write failed|unexpected pos|iostream error")


def as_disk_error(error: BaseException, path: Path) -> OSError | None:
    """Return an error in writing a file as an error of the operating system, or None.

    Example:
        >>> error = RuntimeError("I/O error: No space left on device (os error 28)")
        >>> as_disk_error(error, Path("runs/a")).strerror
        'No space left on device'

    Args:
        error: From Python, safetensors or PyTorch.
        path: The file or its folder.
    """
    if isinstance(error, OSError):
        return error if error.errno in FAULTS else None
    # safetensors writes the number into its text
    number = _OF_SAFETENSORS.search(str(error))
    if number is not None and int(number[1]) in FAULTS:
        return _error(int(number[1]), path)
    if isinstance(error, RuntimeError) and _OF_TORCH.search(str(error)):
        # PyTorch does not report the reason
        full = shutil.disk_usage(path).free < LEAST_FREE
        return _error(errno.ENOSPC if full else errno.EIO, path)
    return None


def _error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))
