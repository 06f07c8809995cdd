"""Progress of long work: one display on standard error for a whole command.

On a terminal it shows bars, and prints notes, warnings and log records above them. Elsewhere, for
example in a log file, it prints plain lines: the first at once, then at most one a minute.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import torch
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor

MIN_SECONDS_BETWEEN_LINES = 60.0
"""Where standard error is not a terminal [s]."""


class Task:
    """One piece of long work. Made by `Screen.task`.

    Example:
        >>> import io
        >>> screen = Screen(Console(file=io.StringIO()))
        >>> with screen.task("cloning", total=200, done=50) as task:
        ...     task.line("loss 0.5")
        'cloning: 50/200, loss 0.5'

    Args:
        screen: Shows it.
        description: A word or two, for example "cloning".
        total: Units of work, for example gradient steps.
        done: Units that were done before, for example in the run that is resumed.
        bar: Its bar, or None where standard error is not a terminal.
    """

    def __init__(
        self, screen: Screen, description: str, total: int, done: int, bar: TaskID | None
    ) -> None:
        self.description, self.total, self.done, self.bar = description, total, done, bar
        self._screen, self._first, self._start = screen, done, screen.clock()

    def update(self, done: int, status: str = "") -> None:
        """Show that `done` units are done, with a few words about how it goes."""
        self.done = done
        self._screen.show(self, status)

    def line(self, status: str) -> str:
        """Return the progress as one line of text."""
        parts = [f"{self.description}: {self.done}/{self.total}"]
        if status:
            parts.append(" ".join(status.split()))
        new = self.done - self._first
        if new > 0:
            seconds = (self._screen.clock() - self._start) / new * (self.total - self.done)
            parts.append(f"{timedelta(seconds=round(seconds))} left")
        return ", ".join(parts)


class Screen:
    """Standard error of a command: notes, and the progress of its tasks below them.

    Example:
        >>> import io
        >>> screen = Screen(Console(file=io.StringIO()))
        >>> with screen.task("cloning", total=2) as task:
        ...     for step in (1, 2):
        ...         task.update(step)
        >>> screen.console.file.getvalue().startswith("cloning: 0/2")
        True

    Args:
        console: Where to print, standard error by default.
        clock: Returns the time [s], for tests.
    """

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = Console(stderr=True) if console is None else console
        self.clock = clock
        self._bars: Progress | None = None
        self._last_line = -math.inf

    def note(self, text: str) -> None:
        """Print a line that stays, above the bars."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def rule(self, title: str) -> None:
        """Print a title between two lines."""
        self.console.rule(title)

    def print(self, renderable: RenderableType) -> None:
        """Print a table or another Rich object, above the bars."""
        self.console.print(renderable)

    @contextmanager
    def task(self, description: str, total: int, done: int = 0) -> Iterator[Task]:
        """Show the progress of some work while the context is open.

        Tasks nest: an evaluation during training gets a bar below that of the training.

        Args:
            description: A word or two.
            total: Units of work.
            done: Units that are done already.
        """
        with ExitStack() as stack:
            # the outermost task opens the display, and the others add bars to it
            if self._bars is None and self.console.is_terminal:
                stack.enter_context(self._display())
            nested = self._bars is not None and bool(self._bars.tasks)
            bar = None
            if self._bars is not None:
                bar = self._bars.add_task(description, total=total, completed=done, status="")
            task = Task(self, description, total, done, bar)
            self.show(task, "")
            try:
                yield task
            finally:
                if nested and self._bars is not None and bar is not None:
                    self._bars.remove_task(bar)

    def show(self, task: Task, status: str) -> None:
        """Show the present state of a task, called by `Task.update`."""
        if self._bars is not None and task.bar is not None:
            self._bars.update(task.bar, completed=task.done, status=status)
        elif self.clock() - self._last_line >= MIN_SECONDS_BETWEEN_LINES:
            self._last_line = self.clock()
            self.note(task.line(status))

    @contextmanager
    def _display(self) -> Iterator[None]:
        """Show bars while the context is open, and print other output above them."""
        bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self.console,
            redirect_stdout=sys.stdout.isatty(),  # never move piped output to standard error
        )
        streams = (sys.stdout, sys.stderr)
        with bars, _moved_handlers(dict(zip(streams, (sys.stdout, sys.stderr), strict=True))):
            self._bars = bars
            try:
                yield
            finally:
                self._bars = None


@contextmanager
def _moved_handlers(streams: dict) -> Iterator[None]:
    """Let log handlers that captured a standard stream write to its replacement.

    A handler that keeps the stream itself would write into the bar.

    Args:
        streams: Original stream -> replacement.
    """
    # handlers of any logger that write to one of the streams
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream in streams
    }
    originals = {handler: handler.setStream(streams[handler.stream]) for handler in handlers}
    try:
        yield
    finally:
        for handler, stream in originals.items():
            if stream is not None:  # None: the replacement was the original
                handler.setStream(stream)


@contextmanager
def count_episodes(
    task_name: str, num_episodes: int, num_envs: int, done: int = 0
) -> Iterator[Callable[[Tensor], None]]:
    """Show the progress of an evaluation and yield the `on_step` of `rl.evaluate`.

    Args:
        task_name: Words before the bar.
        num_episodes: Episodes of the evaluation.
        num_envs: E.
        done: Episodes that were played before.
    """
    finished = torch.zeros(num_envs, dtype=torch.int64)  # (E,)
    with screen.task(task_name, num_episodes, done) as task:

        def on_step(ended: Tensor) -> None:
            finished.add_(ended.cpu())
            task.update(done + int(finished.sum()))

        yield on_step


screen = Screen()
"""The display of this process. Commands print through it and through nothing else."""
