"""The worker processes of a `WorkerEnv`: which one holds which environment, and their replacement.

Letters: E envs, N rows, s robot state dim.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from pitune.envs.workers.process import Failure, LocalWorker, Worker, WorkerDiedError
from pitune.envs.workers.spaces import SubEnvSpec, empty_obs
from pitune.envs.workers.sub_envs import Factory, Rows

logger = logging.getLogger(__name__)


class WorkerPool:
    """E sub-environments, spread evenly over workers.

    Example:
        >>> import functools, gymnasium
        >>> pool = WorkerPool(
        ...     functools.partial(gymnasium.make, "Pendulum-v1"),
        ...     "pendulum",
        ...     num_envs=2,
        ...     num_workers=0,
        ...     start_timeout=180.0,
        ...     step_timeout=120.0,
        ... )
        >>> seeds = np.array([7, 8])
        >>> pool.exchange("reset", rows=np.arange(2), values=seeds).obs["state"].shape  # (E, s)
        (2, 3)

    Args:
        factory: Makes one sub-environment and is picklable.
        env_id: Name for messages.
        num_envs: E.
        num_workers: Processes, at most E. 0 for none.
        start_timeout: Longest time for a worker to make its sub-environments [s].
        step_timeout: Longest time for any other reply of a worker [s].

    Raises:
        ValueError: the factory cannot be pickled, or the spaces are not usable.
        RuntimeError: a sub-environment could not be made.
    """

    def __init__(
        self,
        factory: Factory,
        env_id: str,
        num_envs: int,
        num_workers: int,
        start_timeout: float,
        step_timeout: float,
    ) -> None:
        self._env_id, self._num_envs = env_id, num_envs
        self._start_timeout, self._step_timeout = start_timeout, step_timeout
        self.workers: list[Worker | LocalWorker] = []
        kind = Worker if num_workers else LocalWorker
        try:
            for rows in np.array_split(np.arange(num_envs), max(num_workers, 1)):
                self.workers.append(kind(range(rows[0], rows[-1] + 1), factory, env_id))
            # Wait only after all have started, so that they make their environments in parallel.
            for worker in self.workers:
                self.spec = self._receive_spec(worker)
        except BaseException:
            self.close()
            raise
        self.obs = empty_obs(self.spec.state_dim, self.spec.cameras, num_envs)
        """The last observation of every environment (E, ...)."""
        self.lost: dict[int, str] = {}
        """Environment -> reason, where its worker was replaced while it handled other rows."""

    def exchange(self, method: str, rows: np.ndarray, values: np.ndarray) -> Rows:
        """Call a method of `SubEnvs` for `rows` (N,), with one of `values` (N, ...) each.

        A worker that dies meanwhile is replaced. Then `failed` has its rows among these, and `lost`
        has its other rows.

        Returns:
            E rows, zero outside `rows`. `obs` is the last one of all environments, and `failed` has
            environments as keys.
        """
        result = Rows.empty(self.spec, self._num_envs)
        result.obs = self.obs
        # all requests before the first answer, so that the workers run in parallel
        pending = []
        for worker in self._open_workers():
            in_worker = (rows >= worker.rows.start) & (rows < worker.rows.stop)
            if in_worker.any():
                worker.send(method, rows[in_worker] - worker.rows.start, values[in_worker])
                pending.append((worker, rows[in_worker]))

        # answers
        for worker, worker_rows in pending:
            try:
                self._merge(result, worker_rows, worker.receive(self._step_timeout))
            except WorkerDiedError as error:
                reason = self._replace(worker, error)
                result.failed |= dict.fromkeys(worker_rows.tolist(), reason)
                self.lost |= {row: reason for row in worker.rows if row not in worker_rows}
        return result

    def call_all(self, method: str) -> list[Any]:
        """Return every worker's result of a method without arguments.

        Raises:
            RuntimeError: a worker failed.
        """
        for worker in self._open_workers():
            worker.send(method)
        try:
            results = [worker.receive(self._step_timeout) for worker in self.workers]
        except WorkerDiedError as error:
            raise RuntimeError(f"{self._env_id}: a worker {error} in {method}()") from error
        for result in results:
            if isinstance(result, Failure):
                raise RuntimeError(result.message) from RuntimeError(result.traceback)
        return results

    def close(self) -> None:
        """End the workers. Closing twice is the same as closing once."""
        workers, self.workers = self.workers, []
        for worker in workers:
            worker.stop()

    def _open_workers(self) -> list[Worker | LocalWorker]:
        if not self.workers:
            raise RuntimeError(f"{self._env_id} is closed; make a new one")
        return self.workers

    def _receive_spec(self, worker: Worker | LocalWorker) -> SubEnvSpec:
        """Return the spec that a new worker sends when its sub-environments are made."""
        try:
            result = worker.receive(self._start_timeout)
        except WorkerDiedError as error:
            raise RuntimeError(
                f"{self._env_id}: a worker {error} while it made its environments; read the "
                "output above, guard the script with `if __name__ == '__main__':`, or raise "
                "start_timeout"
            ) from error
        if isinstance(result, Failure):
            if result.wrong_value:
                raise ValueError(result.message) from RuntimeError(result.traceback)
            raise RuntimeError(
                f"{self._env_id}: no sub-environment could be made: {result.traceback}"
            )
        spec: SubEnvSpec = result
        return spec

    def _merge(self, result: Rows, rows: np.ndarray, part: Rows | Failure) -> None:
        """Write a worker's results for `rows` into the result of all E."""
        if isinstance(part, Failure):  # not the fault of a sub-environment: a bug of this package
            if part.wrong_value:
                raise ValueError(part.message) from RuntimeError(part.traceback)
            raise RuntimeError(f"{self._env_id}: a worker failed: {part.traceback}")

        # rows that worked
        valid = np.ones(len(rows), bool)
        valid[list(part.failed)] = False
        for key, value in part.obs.items():
            result.obs[key][rows[valid]] = value[valid]
        for name in ("reward", "terminated", "truncated", "success"):
            getattr(result, name)[rows[valid]] = getattr(part, name)[valid]
        result.reports_success |= part.reports_success

        # rows that broke down keep their last observation
        for position, reason in part.failed.items():
            logger.warning(
                "%s: environment %d broke down: %s", self._env_id, rows[position], reason
            )
            result.failed[int(rows[position])] = reason

    def _replace(self, worker: Worker | LocalWorker, error: WorkerDiedError) -> str:
        """Replace a dead worker and return the reason in words."""
        first, last = worker.rows.start, worker.rows.stop - 1
        reason = f"the worker of environments {first} to {last} {error}"
        logger.warning("%s: %s; it is replaced, and their episodes end", self._env_id, reason)
        worker.restart()
        self._receive_spec(worker)
        return reason
