"""A worker process, the pipe to it, and a worker with the same interface in this process.

See `serve` for the requests and the replies.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from multiprocessing.connection import wait
from pickle import PicklingError
from typing import Any

from pitune.envs.workers.launch import fork_server, kill_group, limit_to_one_thread
from pitune.envs.workers.serve import Failure, serve
from pitune.envs.workers.sub_envs import Factory, SubEnvs


class WorkerDiedError(RuntimeError):
    """A worker process ended, or sent no reply in time.

    Example:
        >>> raise WorkerDiedError("ended with exit code 1")
        Traceback (most recent call last):
            ...
        pitune.envs.workers.process.WorkerDiedError: ended with exit code 1
    """


class LocalWorker:
    """The interface of `Worker` without a process, for debugging and for fast simulators.

    Example:
        >>> import functools, gymnasium
        >>> factory = functools.partial(gymnasium.make, "Pendulum-v1")
        >>> worker = LocalWorker(range(2), factory, "pendulum")
        >>> worker.receive(timeout=180.0)  # the environments are made
        >>> worker.send("reset", [0], [7])
        >>> worker.receive(timeout=120.0).obs["state"].shape
        (1, 3)

    Args:
        rows: Which of the E environments it holds.
        factory: Makes one sub-environment.
        env_id: Name for messages.
    """

    def __init__(self, rows: range, factory: Factory, env_id: str) -> None:
        self.rows = rows
        self._sub_envs: SubEnvs | None = None
        self._result: Any = None
        try:
            self._sub_envs = SubEnvs(factory, env_id, len(rows), rows.start, shared=True)
        except Exception as error:
            self._result = Failure.of(error)

    def send(self, method: str, *arguments: Any, **settings: Any) -> None:
        """Handle the request at once."""
        if self._sub_envs is None:
            return  # the failure to make them stays the answer
        try:
            self._result = getattr(self._sub_envs, method)(*arguments, **settings)
        except Exception as error:
            self._result = Failure.of(error)

    def receive(self, timeout: float) -> Any:
        """Return the result of the last request, at once."""
        return self._result

    def restart(self) -> None:
        """Do nothing, because there is no process."""

    def stop(self) -> None:
        """Close the sub-environments."""
        if self._sub_envs is not None:
            self._sub_envs.close()


class Worker:
    """One process with several sub-environments.

    Example:
        >>> import functools, gymnasium
        >>> factory = functools.partial(gymnasium.make, "Pendulum-v1")
        >>> worker = Worker(range(2), factory, "pendulum")  # doctest: +SKIP
        >>> worker.receive(timeout=180.0)  # doctest: +SKIP
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
        self._arguments = (factory, env_id, len(rows), rows.start)
        self._number = 0
        self._start()
        try:
            self.send("start", *self._arguments, shared=False)
        except (PicklingError, AttributeError, TypeError) as error:
            self.stop()
            raise ValueError(
                f"{factory=} cannot be pickled for a worker process ({error}); pass a module-level "
                "function or a functools.partial of one, or num_workers=0"
            ) from error

    def _start(self) -> None:
        """Start the process."""
        context = fork_server()
        self._connection, connection = context.Pipe()
        self._process = context.Process(
            target=serve, args=(connection, dict(os.environ)), daemon=True
        )
        with limit_to_one_thread():
            self._process.start()
        # also at the end of a trainer that does not close its environments
        self._kill_group = weakref.finalize(self, kill_group, self._process)
        # If this end stayed open here, a dead worker would look like a slow one.
        connection.close()

    def send(self, method: str, *arguments: Any, **settings: Any) -> None:
        """Send one request."""
        self._number += 1
        # Sending to a dead worker fails silently. `receive` raises.
        with contextlib.suppress(OSError):
            self._connection.send((self._number, method, arguments, settings))

    def receive(self, timeout: float) -> Any:
        """Return the result of the last request.

        Args:
            timeout: Longest time to wait for it [s].

        Raises:
            WorkerDiedError: there is no reply, and there will be none.
        """
        deadline = time.monotonic() + timeout
        try:
            while self._wait(deadline - time.monotonic()):
                number, result = self._connection.recv()
                # A lower number belongs to a request that was interrupted, e.g. by Ctrl-C.
                if number == self._number:
                    return result
        except (EOFError, OSError):
            self._process.join(1)
            raise WorkerDiedError(f"ended with exit code {self._process.exitcode}") from None
        raise WorkerDiedError(f"gave no answer within {timeout:g} s")

    def _wait(self, timeout: float) -> bool:
        """Return whether there is a reply within a time [s].

        Raises:
            EOFError: the process has ended without one. Its own children may hold the pipe open.
        """
        ready = wait([self._connection, self._process.sentinel], max(0.0, timeout))
        if ready and self._connection not in ready and not self._connection.poll():
            raise EOFError
        return bool(ready)

    def restart(self) -> None:
        """Replace the process by a new one, which makes its environments again."""
        self._kill()
        self._start()
        self.send("start", *self._arguments, shared=False)

    def stop(self) -> None:
        """End the process, by force if it does not end by itself."""
        self.send("close")
        self._process.join(1)
        self._kill()

    def _kill(self) -> None:
        """Kill the process and its children, and close the pipe."""
        self._kill_group()
        self._connection.close()
