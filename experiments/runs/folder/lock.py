"""A lock on the folder of a run, so that two processes never write into the same one.

The lock is the operating system's (`flock`) on `run.lock`. It ends with its process, however that
ends, so a killed run leaves nothing that has to be removed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from pitune.experiments.runs.progress import screen

NAME = "run.lock"
"""File in the folder, with the process that holds the lock."""
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_HELD: dict[tuple[int, int], int] = {}
"""Device and inode of each lock file that this process holds -> its file descriptor."""


def lock(folder: Path, option: str = "--out") -> None:
    """Take the lock of a folder, which must exist, for the life of this process.

    A process may take a lock again that it holds.

    Args:
        folder: The folder.
        option: The option that names it, for messages.

    Raises:
        FileExistsError: another process holds it.
        PermissionError: the folder cannot be written.
    """
    file = folder / NAME
    while True:
        descriptor = _open(file, option)
        if _key(descriptor) in _HELD:
            os.close(descriptor)
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read(descriptor)
            os.close(descriptor)
            raise FileExistsError(
                f"{folder} is in use by {holder}; wait until it has ended or stop it, "
                f"or pass another {option}"
            ) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                os.close(descriptor)
                raise
            screen.note(
                f"{folder} is on a file system without locks ({error.strerror}): take care that "
                "no second process writes into it"
            )
        # The file may have been removed and made again between opening and locking it.
        if file.exists() and _key(descriptor) == _key(file):
            break
        os.close(descriptor)

    # identity of this process, for the message above
    process = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(process) + "\n").encode(), 0)
    _HELD[_key(descriptor)] = descriptor


def unlock(folder: Path) -> None:
    """Release the lock of a folder, if this process holds it."""
    file = folder / NAME
    if file.exists() and (descriptor := _HELD.pop(_key(file), None)) is not None:
        os.close(descriptor)


def holder(folder: Path) -> str | None:
    """Return the process that holds the lock of a folder, or None if it is free."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _key(descriptor) in _HELD:
            return f"this process ({os.getpid()})"
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _open(file: Path, option: str) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        message = f"the folder cannot be written; make it writable, or pass another {option}"
        raise PermissionError(error.errno, message, str(file.parent)) from error


def _key(file: int | Path) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino


def _read(descriptor: int) -> str:
    """Return the process that is written in a lock file, as words."""
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {record['pid']} on {record['host']} since {record['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _forget_in_child() -> None:
    """Close inherited descriptors, or a child that outlives its parent would keep the locks."""
    for descriptor in _HELD.values():
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_forget_in_child)
