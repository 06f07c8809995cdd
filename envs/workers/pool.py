"""The worker processes of a `WorkerEnv`: which one holds which environment, and their replacement.

Letters: E envs, N rows, s robot state dim, h executed actions, d robot action dim.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from pitune.envs.workers.observation import empty_obs
from pitune.envs.workers.process import LocalWorker, Worker, WorkerDiedError
from pitune.envs.workers.remote.ahead import AnyWorker, StepsAhead
from pitune.envs.workers.remote.timeouts import Timeouts as Timeouts
from pitune.envs.workers.rows import Rows
from pitune.envs.workers.serve import Failure
from pitune.envs.workers.spaces import SubEnvSpec
from pitune.envs.workers.sub_envs import Factory

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
        ... )
        >>> seeds = np.array([7, 8])
        >>> pool.exchange("reset", np.arange(2), seeds).obs["state"].shape  # (E, s)
        (2, 3)

    Args:
        factory: Makes one sub-environment and is picklable.
        env_id: Name for messages.
        num_envs: E.
        num_workers: Processes, at most E. 0 for none.
        timeouts: The longest times to wait for a worker.
        probe: Whether an instance of its own is played with for the spec, and its starts compared.
            Otherwise the first sub-environment takes a step.

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
        timeouts: Timeouts | None = None,
        *,
        probe: bool = True,
    ) -> None:
        self._env_id, self._num_envs = env_id, num_envs
        self.timeouts = timeouts or Timeouts()
        self.workers: list[AnyWorker] = []
        self._probe: AnyWorker | None = None
        self._ahead: StepsAhead | None = None
        kind = self._kind(num_workers)
        try:
            for rows in np.array_split(np.arange(num_envs), max(num_workers, 1)):
                self.workers.append(kind(range(rows[0], rows[-1] + 1), factory, env_id))
            if probe:
                # after the others, which are then the same with a probe in this process
                self._probe = kind(range(1), factory, env_id)
            # Wait only after all have started, so that they make their environments in parallel.
            for worker in self.workers:
                self._wait_until_made(worker)
            self.spec = self._describe()
        except BaseException:
            self.close()
            raise
        finally:
            if self._probe is not None:
                self._probe.stop()
        self.obs = empty_obs(self.spec.state_dim, self.spec.cameras, num_envs)
        """The last observation of every environment (E, ...)."""
        self.lost: dict[int, str] = {}
        """Environment -> reason, where its worker was replaced while it handled other rows."""

    def _kind(self, num_workers: int) -> Callable[[range, Factory, str], AnyWorker]:
        """Return the class of the workers.

        Raises:
            ValueError: they would be in this process and on Ray.
        """
        if self.timeouts.on == "processes":
            return Worker if num_workers else LocalWorker
        if not num_workers:
            raise ValueError(
                "workers_on='ray' needs workers, but num_workers=0 runs the environments in this "
                "process; pass --env.num-workers 1 or more"
            )
        from pitune.envs.workers.remote.ray import RayWorker

        return partial(RayWorker, address=self.timeouts.ray_address)

    @property
    def plans_ahead(self) -> bool:
        """Whether a chunk of steps is one message."""
        return self.timeouts.on == "ray"

    def announce(self, rows: np.ndarray, chunk: np.ndarray, left: np.ndarray) -> None:
        """Let the workers take the steps of a chunk, whose results the next exchanges return.

        Args:
            rows: (N,).
            chunk: (E, h, d) [robot units].
            left: Steps until the time limit (E,).
        """
        left, actions = left[rows], chunk[rows].swapaxes(0, 1)  # (N,), (h, N, d)
        # pictures are read at the end of the chunk, and of an episode
        number = np.arange(1, len(actions) + 1)[:, None]  # (h, 1)
        read = (number == len(actions)) | (number == left)  # (h, N)
        for worker, here in self._shares(rows):
            arguments = (actions[:, here], read[:, here], left[here])
            worker.send("take_steps", rows[here] - worker.rows.start, *arguments)
        self._ahead = StepsAhead(actions, rows)

    def _shares(self, rows: np.ndarray) -> Iterator[tuple[AnyWorker, np.ndarray]]:
        """Yield the workers of some rows (N,), each with the mask of its rows (N,)."""
        for worker in self._open_workers():
            here = (rows >= worker.rows.start) & (rows < worker.rows.stop)
            if here.any():
                yield worker, here

    def exchange(self, method: str, rows: np.ndarray, *values: np.ndarray) -> Rows:
        """Call a method of `SubEnvs` for `rows` (N,), with one of each of `values` (N, ...).

        A worker that dies meanwhile is replaced. Then `failed` has its rows among these, and `lost`
        has its other rows.

        Returns:
            E rows, zero outside `rows`. `obs` is the last one of all environments, and `failed` and
            `words` have environments as keys.

        Raises:
            ValueError: an environment returned something that does not have the promised form.
        """
        result = Rows.empty(self.spec.state_dim, self.spec.cameras, self._num_envs)
        result.obs = self.obs
        # the workers are ahead only in the steps of an announced chunk
        ahead = self._ahead = self._ahead if method == "step" else None
        if ahead is not None:
            ahead.begin(rows, values[0])

        # all requests before the first answer, so that the workers run in parallel
        pending = []
        for worker, here in self._shares(rows):
            if ahead is None:
                parts = [value[here] for value in values]
                worker.send(method, rows[here] - worker.rows.start, *parts)
            pending.append((worker, rows[here]))

        # answers
        timeout = self.timeouts.of(method)
        for worker, worker_rows in pending:
            try:
                part = worker.receive(timeout) if ahead is None else ahead.result(worker, timeout)
                self._merge(result, worker_rows, part)
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
        self._ahead = None
        for worker in self._open_workers():
            worker.send(method)
        try:
            results = [worker.receive(self.timeouts.of(method)) for worker in self.workers]
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

    def _open_workers(self) -> list[AnyWorker]:
        if not self.workers:
            raise RuntimeError(f"{self._env_id} is closed; make a new one")
        return self.workers

    def _wait_until_made(self, worker: AnyWorker) -> None:
        """Wait until a new worker has made its sub-environments."""
        self._receive(worker, "while it made its environments", "no sub-environment could be made")

    def _describe(self) -> SubEnvSpec:
        """Return the spec, of an instance of its own if one can be made."""
        if self._probe is None:
            return self._description(self.workers[0], verify=False)
        try:
            self._wait_until_made(self._probe)
        except (RuntimeError, ValueError) as error:
            # some simulators exist only once in a process or on a machine
            logger.info("%s: no instance for a probe: %s", self._env_id, error)
            return self._description(self.workers[0], verify=True)
        return self._description(self._probe, verify=True)

    def _description(self, worker: AnyWorker, *, verify: bool) -> SubEnvSpec:
        worker.send("describe", verify=verify)
        spec: SubEnvSpec = self._receive(
            worker, "in its first episodes", "no episode could be begun", "describe"
        )
        return spec

    def _receive(self, worker: AnyWorker, when: str, problem: str, method: str = "start") -> Any:
        """Return a worker's reply to one of the first two requests.

        Raises:
            ValueError: a setting or a space is not usable.
            RuntimeError: the worker or its environments failed.
        """
        try:
            result = worker.receive(self.timeouts.of(method))
        except WorkerDiedError as error:
            raise RuntimeError(
                f"{self._env_id}: a worker {error} {when}; read the output above, guard the script "
                "with `if __name__ == '__main__':`, or raise start_timeout"
            ) from error
        if isinstance(result, Failure):
            if result.wrong_value:
                raise ValueError(result.message) from RuntimeError(result.traceback)
            raise RuntimeError(f"{self._env_id}: {problem}: {result.traceback}")
        return result

    def _merge(self, result: Rows, rows: np.ndarray, part: Rows | Failure) -> None:
        """Write a worker's results for `rows` into the result of all E."""
        if isinstance(part, Failure):
            if part.wrong_value:  # the environment does not keep its promises
                raise ValueError(part.message) from RuntimeError(part.traceback)
            raise RuntimeError(f"{self._env_id}: a worker failed: {part.traceback}")

        # rows that worked
        valid = np.ones(len(rows), bool)
        valid[list(part.failed)] = False
        for key, value in part.obs.items():
            written = valid & part.drawn if key.startswith("image/") else valid
            result.obs[key][rows[written]] = value[written]
        for name in ("reward", "terminated", "truncated", "success"):
            getattr(result, name)[rows[valid]] = getattr(part, name)[valid]
        result.reports_success |= part.reports_success

        for position, words in part.words.items():
            result.words[int(rows[position])] = words

        # rows that broke down keep their last observation
        for position, reason in part.failed.items():
            logger.warning(
                "%s: environment %d broke down: %s", self._env_id, rows[position], reason
            )
            result.failed[int(rows[position])] = reason

    def _replace(self, worker: AnyWorker, error: WorkerDiedError) -> str:
        """Replace a dead worker and return the reason in words."""
        first, last = worker.rows.start, worker.rows.stop - 1
        reason = f"the worker of environments {first} to {last} {error}"
        logger.warning("%s: %s; it is replaced, and their episodes end", self._env_id, reason)
        worker.restart()
        self._wait_until_made(worker)
        return reason
