"""Progress inside one update, for those that take minutes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pitune.experiments.runs.progress import Screen, Task, screen
from pitune.rl import Algorithm
from pitune.rl.algorithm import no_progress

LEAST_SECONDS = 2.0
"""Work that takes less is not shown [s]."""


@contextmanager
def update_progress(algorithm: Algorithm[Any], display: Screen = screen) -> Iterator[None]:
    """Show the rounds of an algorithm's updates while the context is open.

    Args:
        algorithm: It calls `on_progress` in its updates.
        display: Where to show it.
    """
    start = display.clock()
    with ExitStack() as stack:
        tasks: dict[str, Task] = {}

        def on_progress(work: str, done: int, total: int) -> None:
            nonlocal start
            if work not in tasks and display.clock() - start >= LEAST_SECONDS:
                tasks[work] = stack.enter_context(display.task(work, total, done))
            if work in tasks:
                tasks[work].update(done)
            if done == total:  # the next work begins
                start = display.clock()

        algorithm.on_progress = on_progress
        stack.callback(setattr, algorithm, "on_progress", no_progress)
        yield
