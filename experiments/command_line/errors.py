"""Errors of the commands: one line for a mistake or for the machine, a traceback for our own fault.

The exit status is 2 for a mistake of the user, 3 for numbers that are not finite any more, 1 for a
fault of the machine or of pitune, and 130 for Ctrl-C.
"""

from __future__ import annotations

import errno
import linecache
import os
import select
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

EXPECTED = (ValueError, FileExistsError, FileNotFoundError, ImportError)
PACKAGE = Path(__file__).resolve().parents[2]
"""The folder with our packages."""
REMEDIES: Mapping[int, str] = {
    errno.ENOSPC: "free some space there, or pass a folder on another disk",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or pass a folder on another disk",
    errno.EDQUOT: "free some space there, or pass a folder on another disk",
    errno.EACCES: "change its permissions, or pass another path",
    errno.EPERM: "change its permissions, or pass another path",
    errno.EROFS: "pass a path on a disk that can be written",
    errno.ENOENT: "pass the path of something that exists",
    errno.EISDIR: "pass a file instead of a folder",
    errno.ENOTDIR: "a part of the path is a file; pass another path",
    errno.EEXIST: "pass another path, or remove it",
    errno.ENAMETOOLONG: "pass a shorter path",
    errno.ELOOP: "a link points back to itself; pass another path",
    errno.EMFILE: "raise the limit (ulimit -n), or use fewer workers",
    errno.ENFILE: "close other programs, or use fewer workers",
    errno.ENOMEM: "use fewer environments or smaller minibatches",
    errno.EPIPE: "the program at the other end has ended",
    errno.EIO: "the disk or the network drive has a fault; pass another path",
}
"""Remedy for each error number of the operating system."""
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "can't alloc")
"""Parts of PyTorch's messages about memory."""


@contextmanager
def exit_with_message() -> Iterator[None]:
    """Print the message of an error on standard error and exit.

    Raises:
        SystemExit: an error was raised inside, or the reader of a pipe has left.
    """
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from error
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            # `pitune list ... | head`: as other programs, without a word
            raise SystemExit(128 + 13) from error
        status, message = explained(error)
        if message is None:
            traceback.print_exc()
            message = (
                f"{type(error).__name__}: {error}; this is a fault of pitune, please report it "
                "with the lines above"
            )
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(status) from error


def explained(error: Exception) -> tuple[int, str | None]:
    """Return the exit status of an error and its message, None for a fault of ours.

    Example:
        >>> explained(ValueError("num_envs=0 must be at least 1"))
        (2, 'num_envs=0 must be at least 1')
    """
    if isinstance(error, OSError) and error.errno is not None:
        return 1, _of_system(error)
    if isinstance(error, MemoryError) or _names_memory(error):
        first = (str(error).strip().splitlines() or ["no memory is left"])[0]
        return 1, f"{first}; use fewer environments, smaller minibatches or --finetune.dtype"
    if isinstance(error, FloatingPointError):
        return 3, str(error) or type(error).__name__
    if isinstance(error, EXPECTED):
        return 2, str(error) or type(error).__name__
    if isinstance(error, RuntimeError) and _raised_by_us(error.__traceback__):
        return 1, str(error)
    return 1, None


def _of_system(error: OSError) -> str:
    """Return one sentence about an error of the operating system."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    subject = f"{' -> '.join(names)}: " if names else ""
    reason = (error.strerror or type(error).__name__).lower()
    remedy = REMEDIES.get(error.errno or 0)
    return f"{subject}{reason}" + (f"; {remedy}" if remedy else "")


def _names_memory(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and any(p in str(error) for p in OUT_OF_MEMORY)


def _raised_by_us(trace: TracebackType | None) -> bool:
    """Return whether a `raise` of ours ended here, so that its message is meant for the user.

    An error inside PyTorch ends in our line too, because its own code has no frames.
    """
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename
    inside = PACKAGE in Path(file).resolve().parents
    return inside and linecache.getline(file, trace.tb_lineno).strip().startswith("raise ")


def _reader_left() -> bool:
    """Return whether the reader of standard output has left, and silence standard output then."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # no file, or closed
        return False
    watched = select.poll()
    watched.register(output, 0)  # errors are reported without being asked for
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in watched.poll(0)):
        return False
    # Python would complain again when it closes standard output
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True
