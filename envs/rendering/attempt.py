"""An attempt to draw, in a process of its own, which a broken driver may crash."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

DRAWN = "drawn"
"""Word that the code prints when it has drawn."""


def problem_of(code: str, seconds: float, settings: Mapping[str, str] | None = None) -> str | None:
    """Return why some code could not draw, or None if it could.

    Example:
        >>> problem_of("raise OSError('no driver')", seconds=60.0)
        'OSError: no driver'
        >>> problem_of("print('drawn')", seconds=60.0) is None
        True

    Args:
        code: Python, which prints `drawn` in the end.
        seconds: Longest time [s].
        settings: Environment variables.
    """
    try:
        drawn = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env={**os.environ, **(settings or {})},
        )
    except subprocess.TimeoutExpired:
        return f"it drew nothing in {seconds:g} s"
    if DRAWN in drawn.stdout:
        return None
    if drawn.returncode < 0:
        return f"it crashed (signal {-drawn.returncode})"
    lines = drawn.stderr.strip().splitlines()
    return lines[-1] if lines else f"it ended with status {drawn.returncode}"
