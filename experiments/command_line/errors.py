"""Errors of the commands: one line for a mistake of the user, a traceback for a fault of ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXPECTED = (ValueError, FileExistsError, FileNotFoundError, ImportError, FloatingPointError)


@contextmanager
def exit_with_message() -> Iterator[None]:
    """Print the message of an expected error on standard error and exit with status 2.

    Raises:
        SystemExit: an error of `EXPECTED` was raised inside, or the reader of a pipe has left.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as error:
        # `pitune list ... | head`: Python would complain again when it closes standard output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from error
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
