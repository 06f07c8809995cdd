"""SIGTERM, SIGHUP and Ctrl-C: a command ends with a message, after a checkpoint where one is due.

A second signal ends the process at once, as if nothing handled it.
"""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pitune.experiments.runs.folder.checkpoints import own_checkpoints
from pitune.experiments.runs.folder.disk import as_disk_error
from pitune.experiments.runs.progress import screen
from pitune.rl import ranks

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class StoppedBySignal(SystemExit):
    """A signal ended the work. The exit code is 128 plus its number, 130 for Ctrl-C.

    Example:
        >>> StoppedBySignal(signal.SIGTERM).code
        143
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


class StopRequest:
    """The first signal, which the owner handles when it is safe.

    Example:
        >>> request = StopRequest()
        >>> request.stopped is None
        True
    """

    def __init__(self) -> None:
        self.stopped: StoppedBySignal | None = None
        """The signal, or None so far. Of several ranks, that which all know of."""
        self._arrived: StoppedBySignal | None = None
        self.at_once = False
        """Whether a signal raises where it arrives, because nothing would be lost."""

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Let signals raise inside the context. One that came before raises at its start.

        Raises:
            StoppedBySignal: a signal arrived, whichever error it caused on its way out.
        """
        if self.stopped is not None:
            raise self.stopped
        self.at_once = ranks.world() == 1  # or the other ranks would wait for this one
        try:
            yield
        except Exception as error:
            # a library that is interrupted in its own clean-up may raise an error in its place
            if self.stopped is None:
                raise
            raise self.stopped from error
        finally:
            self.at_once = False

    def handle(self, number: int, _: FrameType | None) -> None:
        """Handle the first signal."""
        for name in SIGNALS:
            if signal.getsignal(name) != signal.SIG_IGN:
                signal.signal(name, signal.SIG_DFL)
        self._arrived = StoppedBySignal(number)
        if ranks.world() == 1:
            self.stopped = self._arrived
        if self.at_once:
            raise self._arrived
        screen.note(
            f"{self._arrived.name}: the run saves a checkpoint after this iteration and ends; a "
            "second signal ends it at once, without one"
        )

    def agree(self) -> None:
        """Let all ranks stop here if a signal has reached one of them."""
        if self.stopped is None and ranks.on_any(self._arrived is not None):
            self.stopped = self._arrived or StoppedBySignal(signal.SIGTERM)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Yield the request that signals make while the context is open.

    A signal that the process was started to ignore (`nohup`) stays ignored. Outside the main
    thread, where Python allows no handlers, signals do as before.
    """
    request = StopRequest()
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        before = {n: handler for n, handler in handlers.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, request.handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """Let signals end a command where they arrive, with a message and their exit code.

    Raises:
        StoppedBySignal: a signal arrived.
    """
    with stop_request() as request:
        try:
            with request.raising():
                yield
        except StoppedBySignal as stopped:
            if stopped is request.stopped:
                screen.note(f"stopped by {stopped.name}")
            raise


def restart_note(iteration: int, repeated: bool = False) -> str:
    """Return the note of a run that continues between two evaluations, with new episodes.

    Args:
        iteration: Of its checkpoint.
        repeated: Whether the simulator has played the old episodes again, but differently.
    """
    reason = ", because the simulator did not repeat its episodes" if repeated else ""
    return (
        f"the run continues between two evaluations, at iteration {iteration}, with new episodes"
        f"{reason}: later numbers are not those of an uninterrupted run"
    )


def failed_note(folder: Path, iteration: int, failed: Path) -> str:
    """Return the end of the message of a run that stops at a number that is not finite.

    Args:
        folder: Of the run.
        iteration: Of its latest checkpoint.
        failed: Folder with the state at the stop.
    """
    again = shlex.join(["pitune", "train", "--resume", str(folder)])
    return (
        f"the state is kept in {failed} for inspection, and `{again}` goes on from iteration "
        f"{iteration}"
    )


def note_of_disk(error: BaseException, folder: Path) -> None:
    """Print how a run goes on after an error of its disk. Other errors print nothing.

    Args:
        error: That ended the run.
        folder: Of the run.
    """
    if as_disk_error(error, folder) is None or not (checkpoints := own_checkpoints(folder)):
        return
    again = shlex.join(["pitune", "train", "--resume", str(folder)])
    screen.note(
        f"{checkpoints[-1].name} is whole; `{again}` goes on from there when {folder} can be "
        "written again"
    )


def stop_note(folder: Path, iteration: int, exact: bool) -> str:
    """Return the note at the end of a run that a signal has stopped.

    Args:
        folder: Of the run.
        iteration: Of its latest checkpoint.
        exact: Whether the resumed run has the numbers of an uninterrupted one.
    """
    numbers = (
        "with the numbers of an uninterrupted run"
        if exact
        else "with new episodes, so that later numbers differ from those of an uninterrupted run"
    )
    again = shlex.join(["pitune", "train", "--resume", str(folder)])
    return (
        f"stopped at the checkpoint of iteration {iteration} in {folder}; `{again}` continues "
        f"there, {numbers}"
    )
