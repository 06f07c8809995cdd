"""A chunk of steps that a worker takes with one message, for workers on other machines.

Letters: N rows, h executed actions, d robot action dim.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from pitune.envs.workers.rows import Rows
from pitune.envs.workers.serve import Failure
from pitune.envs.workers.sub_envs import SubEnvs


class AnyWorker(Protocol):
    """The interface of a worker, in this process, in another one or on another machine.

    Example:
        >>> import functools, gymnasium
        >>> from pitune.envs.workers.process import LocalWorker
        >>> factory = functools.partial(gymnasium.make, "Pendulum-v1")
        >>> worker: AnyWorker = LocalWorker(range(2), factory, "pendulum")
        >>> worker.rows
        range(0, 2)
    """

    rows: range

    def send(self, method: str, *arguments: Any, **settings: Any) -> None:
        """Send one request."""

    def receive(self, timeout: float) -> Any:
        """Return the result of the last request."""

    def restart(self) -> None:
        """Replace the worker by a new one."""

    def stop(self) -> None:
        """End the worker."""


def take_steps(
    sub_envs: SubEnvs, rows: Sequence[int], actions: np.ndarray, read: np.ndarray, left: np.ndarray
) -> list[Rows]:
    """Take the steps of a chunk, and return the results of each step for the rows that took it.

    A row whose episode ends takes no further step.

    Args:
        sub_envs: The environments.
        rows: (N,).
        actions: (h, N, d) [robot units].
        read: Steps after which pictures are read (h, N) bool.
        left: Steps until the time limit of each row (N,).
    """
    live = np.ones(len(rows), bool)
    results = []
    for number, (action, pictures) in enumerate(zip(actions, read, strict=True)):
        # rows that go on: below the time limit, and not ended by an earlier step
        live &= number < left
        places = np.flatnonzero(live)
        if not len(places):
            break
        part = sub_envs.step(
            [rows[int(place)] for place in places], action[places], pictures[places]
        )
        results.append(part)
        # rows whose episode has ended, by itself or by a breakdown
        ended = part.terminated | part.truncated
        ended[list(part.failed)] = True
        live[places[ended]] = False
    return results


class StepsAhead:
    """The steps of a chunk that workers take ahead, and their results in order.

    Example:
        >>> ahead = StepsAhead(np.zeros((2, 3, 1)), np.arange(3))
        >>> ahead.remaining
        2

    Args:
        actions: (h, N, d) [robot units].
        rows: Environments (N,).
    """

    def __init__(self, actions: np.ndarray, rows: np.ndarray) -> None:
        self._actions, self._rows = actions, rows
        self._results: dict[int, deque[Rows] | Failure] = {}
        self._number = 0

    @property
    def remaining(self) -> int:
        """Number of steps that are not taken yet."""
        return len(self._actions) - self._number

    def begin(self, rows: np.ndarray, action: np.ndarray) -> None:
        """Begin the next step, which must be the announced one.

        Raises:
            RuntimeError: it is another one, so that the workers have taken wrong steps.
        """
        # the workers have taken the announced steps already, so another action cannot be taken
        places = np.searchsorted(self._rows, rows)
        if not self.remaining or not np.array_equal(self._actions[self._number, places], action):
            raise RuntimeError(
                "a step was taken that is not the next one of the announced chunk; reset the "
                "environments, and announce every chunk before its first step"
            )
        self._number += 1

    def result(self, worker: AnyWorker, timeout: float) -> Rows | Failure:
        """Return a worker's result of the present step, waiting for the whole chunk at first.

        Args:
            worker: It got its part of the chunk.
            timeout: Longest time to wait for one step [s].

        Raises:
            WorkerDiedError: there is no reply, and there will be none.
        """
        first = worker.rows.start
        if first not in self._results:
            # one reply holds the results of the whole chunk
            received = worker.receive(timeout * len(self._actions))
            is_failure = isinstance(received, Failure)
            self._results[first] = received if is_failure else deque(received)
        results = self._results[first]
        return results if isinstance(results, Failure) else results.popleft()
