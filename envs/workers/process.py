"""One worker process, the pipe to it, and the same interface without a process.

A question is `(number, method of Copies, arguments)`, an answer `(number, result)`. The first
question of a process is how to make its copies, and its result is their `CopySpec`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pickle import PicklingError
from typing import Any

import torch

from pitune.envs.workers.sub_envs import Copies, Factory


class WorkerDiedError(RuntimeError):
    """A worker process ended, or gave no answer in time."""


@dataclass(frozen=True)
class Failure:
    """The result of a question whose answering raised."""

    message: str
    """What the exception says."""
    traceback: str
    """Where it came from."""
    wrong_value: bool
    """Whether it was a ValueError: then the message is meant for whoever passed the value."""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Return the exception that is being handled, as text: not every exception pickles."""
        return cls(str(error), traceback.format_exc(), isinstance(error, ValueError))


class InProcess:
    """The interface of `Worker` without a process: for debugging, and for quick simulators.

    Args:
        rows: Which of the E environments it holds.
        factory: Makes one copy.
        env_id: Name for messages.
    """

    def __init__(self, rows: range, factory: Factory, env_id: str) -> None:
        self.rows = rows
        self._copies = Copies(factory, env_id, len(rows))
        self._result: Any = self._copies.spec

    def ask(self, method: str, *arguments: Any) -> None:
        """Do the work."""
        try:
            self._result = getattr(self._copies, method)(*arguments)
        except Exception as error:
            self._result = Failure.of(error)

    def answer(self, timeout: float) -> Any:
        """Return the result of the last question, at once."""
        return self._result

    def restart(self) -> None:
        """Do nothing: there is no process."""

    def stop(self) -> None:
        """Close the copies."""
        self._copies.close()


class Worker:
    """One process with several copies.

    Args:
        rows: Which of the E environments it holds.
        factory: Makes one copy; picklable.
        env_id: Name for messages.

    Raises:
        ValueError: the factory cannot be pickled.
    """

    def __init__(self, rows: range, factory: Factory, env_id: str) -> None:
        self.rows = rows
        self._arguments = (factory, env_id, len(rows))
        self._number = 0
        self._start()
        try:
            self.ask("start", *self._arguments)
        except (PicklingError, AttributeError, TypeError) as error:
            self.stop()
            raise ValueError(
                f"{factory=} cannot be pickled for a worker process ({error}); pass a module-level "
                "function or a functools.partial of one, or num_workers=0"
            ) from error

    def _start(self) -> None:
        """Start the process."""
        # A fork server imports torch once for all workers, and it is never forked from a parent
        # that has threads or a GPU.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pitune.envs.workers.process"])
        self._connection, connection = context.Pipe()
        self._process = context.Process(
            target=serve, args=(connection, dict(os.environ)), daemon=True
        )
        with one_thread():
            self._process.start()
        # Were this end left open here, a dead worker could not be told from a slow one.
        connection.close()

    def ask(self, method: str, *arguments: Any) -> None:
        """Send one question."""
        self._number += 1
        # Nobody can ask a dead worker; that it is dead is found where its answer is awaited.
        with contextlib.suppress(OSError):
            self._connection.send((self._number, method, arguments))

    def answer(self, timeout: float) -> Any:
        """Return the result of the last question.

        Args:
            timeout: How long to wait for it [s].

        Raises:
            WorkerDiedError: no answer came, and none will come.
        """
        try:
            while self._connection.poll(timeout):
                number, result = self._connection.recv()
                # A lower number answers a question whose asker was interrupted, as by Ctrl-C.
                if number == self._number:
                    return result
        except (EOFError, OSError):
            self._process.join(1)
            raise WorkerDiedError(f"ended with exit code {self._process.exitcode}") from None
        raise WorkerDiedError(f"gave no answer within {timeout:g} s")

    def restart(self) -> None:
        """Replace the process by a new one with new copies; `answer` then returns their spec."""
        self._end()
        self._start()
        self.ask("start", *self._arguments)

    def stop(self) -> None:
        """End the process, by force if it does not end by itself."""
        self.ask("close")
        self._process.join(1)
        self._end()

    def _end(self) -> None:
        """Kill what is left of the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let a process that starts meanwhile load its libraries with one thread each.

    Every worker has one core's work to do; threads of its own would fight those of the others.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def serve(connection: Connection, environment: Mapping[str, str]) -> None:
    """Answer questions until told to close or until the parent is gone.

    Args:
        connection: To the parent.
        environment: The parent's environment variables: those of the fork server may be older.
    """
    os.environ.update(environment, OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole process group, but only the parent decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    copies: Copies | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, method, arguments = connection.recv()
            result: Any
            try:
                if copies is None:
                    copies = Copies(*arguments)
                    result = copies.spec
                else:
                    result = getattr(copies, method)(*arguments)
            except Exception as error:
                result = Failure.of(error)
            connection.send((number, result))
            if method == "close":
                break
