"""The time and the memory of a run's iterations, and the checkpoints that are due by time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch

from pitune.compilation import CompileClock
from pitune.experiments.runs.progress import screen

PHASES = ("simulator", "policy", "update", "evaluation", "save")
"""Phases of a run whose time is measured."""
MIB = 2**20


class WorkClock:
    """A clock that stands still while functions are compiled.

    Args:
        compiles: Whether the policy is compiled.

    Example:
        >>> clock = WorkClock(compiles=False)
        >>> clock() <= clock(), clock.phases, clock.compile_row({})
        (True, (), {})
    """

    def __init__(self, compiles: bool) -> None:
        self._compilations = CompileClock() if compiles else None
        self._number, self._seconds = 0, 0.0
        self.phases: tuple[str, ...] = ("compile",) if compiles else ()
        """Phases of a run beyond `PHASES`."""

    def __call__(self) -> float:
        """Return the time without compilations [s]."""
        compilations = self._compilations
        return time.perf_counter() - (0.0 if compilations is None else compilations.seconds)

    def compile_row(self, seconds: dict[str, float]) -> dict[str, float]:
        """Return the time of the compilations since the last call, for a row of metrics [s].

        Args:
            seconds: Time of each phase so far, to which it is added.
        """
        clock = self._compilations
        if clock is None:
            return {}
        # since the last row
        number, spent = clock.number - self._number, clock.seconds - self._seconds
        self._number, self._seconds = clock.number, clock.seconds
        if number:
            screen.note(f"compiled {number} functions in {spent:.0f} s, which no speed counts")
        seconds["compile"] += spent
        return {"seconds/compile": spent}


class SaveTimer:
    """Time since the last checkpoint, and the time that checkpoints take.

    Example:
        >>> times = iter([0.0, 50.0, 61.0, 61.0, 62.5, 70.0])
        >>> timer = SaveTimer(minutes=1.0, clock=lambda: next(times))
        >>> timer.is_due(), timer.is_due()
        (False, True)
        >>> with timer.measured():
        ...     pass
        >>> timer.last, timer.is_due(), timer.spent_since_last_row()
        (1.5, False, 1.5)

    Args:
        minutes: Time after which a checkpoint is due [min].
        clock: Returns the time [s], for tests.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = 60 * minutes, clock
        self._saved = clock()
        self._spent = 0.0
        self.last = 0.0
        """Time of the last checkpoint [s]."""

    def is_due(self) -> bool:
        """Return whether the last checkpoint, or the start, is long ago."""
        return self._clock() - self._saved >= self._seconds

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the writing of a checkpoint inside the context."""
        start = self._clock()
        yield
        self._saved = self._clock()
        self.last = self._saved - start
        self._spent += self.last

    def spent_since_last_row(self) -> float:
        """Return the time of the checkpoints since the last call [s]."""
        spent, self._spent = self._spent, 0.0
        return spent


def memory_in_use() -> dict[str, float]:
    """Return the memory of this process, and its peak on a GPU since the last call [MiB]."""
    used = {"memory/process_mib": psutil.Process().memory_info().rss / MIB}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        used["memory/device_mib"] = torch.cuda.max_memory_allocated() / MIB
        torch.cuda.reset_peak_memory_stats()
    return used
