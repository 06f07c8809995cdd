"""The hook that shows the progress of updates that take minutes."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`(work, done, total)`, called in an update that may take minutes."""


def no_progress(work: str, done: int, total: int) -> None:
    """Show nothing, the default where progress may be shown."""
