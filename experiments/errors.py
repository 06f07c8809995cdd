"""How scripts fail: a clear line for what the user can mend, a traceback for what is our fault."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXPECTED = (ValueError, FileExistsError, FileNotFoundError, ImportError, FloatingPointError)


@contextmanager
def exit_with_message() -> Iterator[None]:
    """Turn an error in what was asked for into a message on standard error and exit status 2."""
    try:
        yield
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
