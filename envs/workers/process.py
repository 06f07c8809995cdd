"""A worker process, the pipe to it, and a worker with the same interface in this process.

A request is `(number, method of SubEnvs, arguments)` and a reply is `(number, result)`. The first
request to a process carries the arguments of `SubEnvs`, and the result is the `SubEnvSpec`.
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

from pitune.envs.workers.sub_envs import Factory, SubEnvs


class WorkerDiedError(RuntimeError):
    """A worker process ended, or sent no reply in time.

    Example:
        >>> raise WorkerDiedError("ended with exit code 1")
        Traceback (most recent call last):
            ...
        pitune.envs.workers.process.WorkerDiedError: ended with exit code 1
    """


@dataclass(frozen=True)
class Failure:
    """The result of a request that raised.

    Example:
        >>> try:
        ...     raise ValueError("speed=-1 must be at least 0; raise it")
        ... except ValueError as error:
        ...     failure = Failure.of(error)
        >>> failure.message, failure.wrong_value
        ('speed=-1 must be at least 0; raise it', True)
    """

    message: str
    """Text of the exception."""
    traceback: str
    """Traceback of the exception."""
    wrong_value: bool
    """Whether it was a ValueError, whose message is meant for the caller who passed the value."""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Return the exception that is being handled as text, because not every one pickles."""
        return cls(str(error), traceback.format_exc(), isinstance(error, ValueError))


class LocalWorker:
    """The interface of `Worker` without a process, for debugging and for fast simulators.

    Example:
        >>> import functools, gymnasium
        >>> factory = functools.partial(gymnasium.make, "Pendulum-v1")
        >>> worker = LocalWorker(range(2), factory, "pendulum")
        >>> worker.receive(timeout=180.0).state_dim  # of the spec
        3

    Args:
        rows: Which of the E environments it holds.
        factory: Makes one sub-environment.
        env_id: Name for messages.
    """

    def __init__(self, rows: range, factory: Factory, env_id: str) -> None:
        self.rows = rows
        self._sub_envs = SubEnvs(factory, env_id, len(rows))
        self._result: Any = self._sub_envs.spec

    def send(self, method: str, *arguments: Any) -> None:
        """Handle the request at once."""
        try:
            self._result = getattr(self._sub_envs, method)(*arguments)
        except Exception as error:
            self._result = Failure.of(error)

    def receive(self, timeout: float) -> Any:
        """Return the result of the last request, at once."""
        return self._result

    def restart(self) -> None:
        """Do nothing, because there is no process."""

    def stop(self) -> None:
        """Close the sub-environments."""
        self._sub_envs.close()


class Worker:
    """One process with several sub-environments.

    Example:
        >>> import functools, gymnasium
        >>> factory = functools.partial(gymnasium.make, "Pendulum-v1")
        >>> worker = Worker(range(2), factory, "pendulum")  # doctest: +SKIP
        >>> worker.receive(timeout=180.0).state_dim  # doctest: +SKIP
        3
        >>> worker.stop()  # doctest: +SKIP

    Args:
        rows: Which of the E environments it holds.
        factory: Makes one sub-environment and is picklable.
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
            self.send("start", *self._arguments)
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
        with limit_to_one_thread():
            self._process.start()
        # If this end stayed open here, a dead worker would look like a slow one.
        connection.close()

    def send(self, method: str, *arguments: Any) -> None:
        """Send one request."""
        self._number += 1
        # Sending to a dead worker fails silently. `receive` raises.
        with contextlib.suppress(OSError):
            self._connection.send((self._number, method, arguments))

    def receive(self, timeout: float) -> Any:
        """Return the result of the last request.

        Args:
            timeout: Longest time to wait for it [s].

        Raises:
            WorkerDiedError: there is no reply, and there will be none.
        """
        try:
            while self._connection.poll(timeout):
                number, result = self._connection.recv()
                # A lower number belongs to a request that was interrupted, e.g. by Ctrl-C.
                if number == self._number:
                    return result
        except (EOFError, OSError):
            self._process.join(1)
            raise WorkerDiedError(f"ended with exit code {self._process.exitcode}") from None
        raise WorkerDiedError(f"gave no answer within {timeout:g} s")

    def restart(self) -> None:
        """Replace the process by a new one, whose first reply is the spec again."""
        self._kill()
        self._start()
        self.send("start", *self._arguments)

    def stop(self) -> None:
        """End the process, by force if it does not end by itself."""
        self.send("close")
        self._process.join(1)
        self._kill()

    def _kill(self) -> None:
        """Kill the process if it is alive, and close the pipe."""
        self._process.kill()
        self._process.join()
        self._connection.close()


@contextlib.contextmanager
def limit_to_one_thread() -> Iterator[None]:
    """Make a process that starts inside load its libraries with one thread each.

    A worker has work for one core, and more threads would compete with the other workers.
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
    """Handle requests until one asks to close or until the parent is gone.

    Args:
        connection: To the parent.
        environment: The parent's environment variables. Those of the fork server may be older.
    """
    # one thread, because the workers share the cores
    os.environ.update(environment, OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole process group, but only the parent decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sub_envs: SubEnvs | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, method, arguments = connection.recv()
            result: Any
            try:
                # the first request makes the sub-environments
                if sub_envs is None:
                    sub_envs = SubEnvs(*arguments)
                    result = sub_envs.spec
                else:
                    result = getattr(sub_envs, method)(*arguments)
            except Exception as error:
                result = Failure.of(error)
            connection.send((number, result))
            if method == "close":
                break
