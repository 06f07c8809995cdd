"""The worker processes of a `WorkerEnv`: who holds which environment, and what if one dies.

Letters: E envs, n rows asked about.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from pitune.envs.gym.spaces import CopySpec, empty_obs
from pitune.envs.workers.process import Failure, InProcess, Worker, WorkerDiedError
from pitune.envs.workers.sub_envs import Factory, Rows

logger = logging.getLogger(__name__)


class WorkerPool:
    """E copies, spread evenly over workers.

    Args:
        factory: Makes one copy; picklable.
        env_id: Name for messages.
        num_envs: E.
        num_workers: Processes, at most E; 0 for none.
        start_timeout: How long a worker may take to make its copies [s].
        step_timeout: How long a worker may take for any other answer [s].

    Raises:
        ValueError: the factory cannot be pickled, or the copies' spaces are not usable.
        RuntimeError: a copy could not be made.
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
        self.workers: list[Worker | InProcess] = []
        kind = Worker if num_workers else InProcess
        try:
            for rows in np.array_split(np.arange(num_envs), max(num_workers, 1)):
                self.workers.append(kind(range(rows[0], rows[-1] + 1), factory, env_id))
            # Only now wait for them: they make their copies at the same time.
            for worker in self.workers:
                self.spec = self._await_copies(worker)
        except BaseException:
            self.close()
            raise
        self.obs = empty_obs(self.spec.state_dim, self.spec.cameras, num_envs)
        """The last observation of every environment (E, ...)."""
        self.lost: dict[int, str] = {}
        """Environments whose worker was replaced while others were asked, and why."""

    def exchange(self, method: str, rows: np.ndarray, values: np.ndarray) -> Rows:
        """Ask the copies of `rows` (n,), with one of `values` (n, ...) each.

        A worker that dies over it is replaced. Then `failed` names its rows among these, and
        `lost` its other ones.

        Returns:
            E rows, zero where not asked; `obs` is the last one of all; `failed` is by environment.
        """
        result = Rows.empty(self.spec, self._num_envs)
        result.obs = self.obs
        asked = []
        for worker in self._open_workers():
            mine = (rows >= worker.rows.start) & (rows < worker.rows.stop)
            if mine.any():
                worker.ask(method, rows[mine] - worker.rows.start, values[mine])
                asked.append((worker, rows[mine]))
        for worker, mine in asked:
            try:
                self._merge(result, mine, worker.answer(self._step_timeout))
            except WorkerDiedError as error:
                reason = self._replace(worker, error)
                result.failed |= dict.fromkeys(mine.tolist(), reason)
                self.lost |= {row: reason for row in worker.rows if row not in mine}
        return result

    def ask_all(self, method: str) -> list[Any]:
        """Return every worker's answer to a question without arguments.

        Raises:
            RuntimeError: a worker could not answer.
        """
        for worker in self._open_workers():
            worker.ask(method)
        try:
            results = [worker.answer(self._step_timeout) for worker in self.workers]
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

    def _open_workers(self) -> list[Worker | InProcess]:
        if not self.workers:
            raise RuntimeError(f"{self._env_id} is closed; make a new one")
        return self.workers

    def _await_copies(self, worker: Worker | InProcess) -> CopySpec:
        """Return what a worker that was just started says about its copies."""
        try:
            result = worker.answer(self._start_timeout)
        except WorkerDiedError as error:
            raise RuntimeError(
                f"{self._env_id}: a worker {error} while it made its environments; see what it "
                "printed, guard the script with `if __name__ == '__main__':`, or raise "
                "start_timeout"
            ) from error
        if isinstance(result, Failure):
            if result.wrong_value:
                raise ValueError(result.message) from RuntimeError(result.traceback)
            raise RuntimeError(f"{self._env_id}: no copy could be made: {result.traceback}")
        return result

    def _merge(self, result: Rows, rows: np.ndarray, part: Rows | Failure) -> None:
        """Write a worker's answer about `rows` into the result of all E."""
        if isinstance(part, Failure):  # not a copy's fault, so a bug of this package
            raise RuntimeError(f"{self._env_id}: a worker failed: {part.traceback}")
        good = np.ones(len(rows), bool)
        good[list(part.failed)] = False
        for key, value in part.obs.items():
            result.obs[key][rows[good]] = value[good]
        for name in ("reward", "terminated", "truncated", "success"):
            getattr(result, name)[rows[good]] = getattr(part, name)[good]
        for position, reason in part.failed.items():
            logger.warning(
                "%s: environment %d broke down: %s", self._env_id, rows[position], reason
            )
            result.failed[int(rows[position])] = reason

    def _replace(self, worker: Worker | InProcess, error: WorkerDiedError) -> str:
        """Start a dead worker anew and return what happened, in words."""
        first, last = worker.rows.start, worker.rows.stop - 1
        reason = f"the worker of environments {first} to {last} {error}"
        logger.warning("%s: %s; it is replaced, and their episodes end", self._env_id, reason)
        worker.restart()
        self._await_copies(worker)
        return reason
