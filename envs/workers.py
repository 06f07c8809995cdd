"""A batch of CPU simulators, spread over worker processes: one `VectorEnv` of E Gymnasium copies.

Each worker holds several copies and gets one message per step. What goes wrong costs the episodes
it hits and no others:

- A copy that raises, or whose numbers are not finite, is thrown away: its episode is reported
  `truncated` and `invalid`, and the next reset makes it anew.
- A worker that is killed, or gives no answer in time, is replaced: that ends all its episodes so.

Both are logged as warnings. An environment that breaks down `MAX_BREAKDOWNS` times with no episode
that ends properly in between has a bug: then `step` raises, with the simulator's traceback. A copy
that cannot be made, and a reset that fails twice, raise at once.

Letters: E envs, n rows asked about, S state dim, A action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.copies import CopySpec, Factory, Rows
from envs.vector_env import EnvSpec, Observation, StepResult
from envs.worker_process import Failure, InProcess, Worker, WorkerDiedError

logger = logging.getLogger(__name__)

MAX_BREAKDOWNS = 3
"""Breakdowns in a row of one environment that end the run."""
DEFAULT_CONTROL_HZ = 20.0
"""For environments that do not say how long a step is [Hz]."""


class WorkerEnv:
    """E copies of a Gymnasium environment, in worker processes or in this one.

    A copy's observation is a Box, which becomes `state`, or a Dict of `state` and
    `image/<camera>` (and `task_id`, an index into `tasks`). `info["success"]` is its success
    signal, and a method `expert_action() -> (A,)` is its expert.

    Args:
        factory: Makes one copy; picklable, so a module-level function or a `functools.partial`.
        id: The name it was made by.
        num_envs: E.
        num_workers: Processes, of which at most E are used; 0 runs the copies in this process.
        max_episode_steps: Time limit, applied here; None for the copy's own one.
        tasks: Instructions in words.
        control_hz: Steps per simulated second [Hz]; None for what the copy says.
        simulator: Package and version of the simulator.
        deterministic_reset: Whether the seed alone fixes a copy's initial state.
        start_timeout: How long a worker may take to make its copies [s].
        step_timeout: How long a worker may take for any other answer [s].

    Raises:
        ValueError: a number or a space is not usable, or the factory cannot be pickled.
        RuntimeError: a copy could not be made.
    """

    def __init__(
        self,
        factory: Factory,
        *,
        id: str,
        num_envs: int,
        num_workers: int,
        max_episode_steps: int | None,
        tasks: tuple[str, ...] = ("",),
        control_hz: float | None = None,
        simulator: str,
        deterministic_reset: bool = True,
        start_timeout: float = 180.0,
        step_timeout: float = 120.0,
    ) -> None:
        if num_envs < 1 or num_workers < 0:
            raise ValueError(f"{num_envs=} must be at least 1 and {num_workers=} at least 0")
        self.workers: list[Worker | InProcess] = []
        self._id, self._start_timeout, self._step_timeout = id, start_timeout, step_timeout
        copy = self._start_workers(factory, num_envs, min(num_workers, num_envs))
        limit = copy.max_episode_steps if max_episode_steps is None else max_episode_steps
        if limit is None or limit < 1:
            self.close()
            raise ValueError(
                f"{id}: {max_episode_steps=} must be at least 1, and may be None only for an "
                "environment with a time limit of its own; pass max_episode_steps"
            )
        self.spec = EnvSpec(
            id=id,
            num_envs=num_envs,
            state_dim=copy.state_dim,
            action_low=copy.action_low,
            action_high=copy.action_high,
            max_episode_steps=limit,
            control_hz=control_hz or copy.control_hz or DEFAULT_CONTROL_HZ,
            tasks=tasks,
            cameras=copy.cameras,
            simulator=simulator,
            deterministic_reset=deterministic_reset,
            success_signal=copy.success_signal,
        )
        self._copy = copy
        self._obs = copy.empty_obs(num_envs)
        self._running = np.zeros(num_envs, bool)
        self._num_steps = np.zeros(num_envs, np.int64)
        self._num_breakdowns = np.zeros(num_envs, np.int64)
        # Running environments that lost their worker while others were asked: why. Told when
        # `step` next asks for them.
        self._lost: dict[int, str] = {}

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        """Start new episodes and return the observation of all E environments.

        Environments that were never reset show zeros.

        Args:
            seed: One seed in [0, 2^31) per environment that is reset (n,) int64.
            env_idx: Which environments to reset (n,) int64; all E by default.

        Raises:
            RuntimeError: an environment failed to reset twice.
        """
        rows = np.arange(self.spec.num_envs) if env_idx is None else env_idx.numpy()
        seeds = seed.numpy()
        self._running[rows] = False
        failed = self._exchange("reset", rows, seeds).failed
        if failed:
            # Copies that raised have had their second try; this is the one of worker processes.
            again = np.isin(rows, list(failed))
            failed = self._exchange("reset", rows[again], seeds[again]).failed
        for row, reason in failed.items():
            raise RuntimeError(f"{self._id}: environment {row} failed to reset twice: {reason}")
        self._running[rows] = True
        self._num_steps[rows] = 0
        for row in rows.tolist():
            self._lost.pop(row, None)
        return self._fresh_obs()

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        """Advance the active environments by one control step.

        Args:
            action: (E, A) [robot units], inside the bounds.
            active: (E,) bool.

        Raises:
            ValueError: an active environment waits for its reset.
            RuntimeError: an environment breaks down again and again.
        """
        wanted = active.numpy()
        waiting = np.flatnonzero(wanted & ~self._running).tolist()
        if waiting:
            raise ValueError(
                f"{self._id}: active environments {waiting} have no running episode; reset them "
                "first, or leave them out of active"
            )
        rows = np.array([row for row in np.flatnonzero(wanted) if row not in self._lost], np.int64)
        reply = self._exchange("step", rows, action.numpy()[rows])
        self._num_steps[rows] += 1
        for row in np.flatnonzero(wanted).tolist():
            if row in self._lost:
                reply.failed[row] = self._lost.pop(row)
        invalid = np.zeros_like(wanted)
        invalid[list(reply.failed)] = True
        out_of_time = wanted & (self._num_steps >= self.spec.max_episode_steps)
        reply.truncated |= (out_of_time & ~reply.terminated) | invalid
        ended = reply.terminated | reply.truncated
        self._running[ended] = False
        self._num_breakdowns[ended & ~invalid] = 0
        self._count_breakdowns(reply.failed)
        return StepResult(
            self._fresh_obs(),
            *map(torch.from_numpy, (reply.reward, reply.terminated, reply.truncated)),
            {"success": torch.from_numpy(reply.success), "invalid": torch.from_numpy(invalid)},
        )

    def render(self) -> Tensor:
        """Return one picture of every environment (E, Y, X, 3) uint8; black before its reset.

        Raises:
            RuntimeError: this machine or simulator cannot render, or nothing was reset yet.
        """
        pictures = [picture for part in self._ask_all("render") for picture in part]
        shown = next((picture for picture in pictures if picture is not None), None)
        if shown is None:
            raise RuntimeError(f"{self._id} has nothing to render yet; reset it first")
        black = np.zeros_like(shown)
        stack = np.stack([black if picture is None else picture for picture in pictures])
        return torch.from_numpy(stack)

    def expert(self) -> WorkerExpert:
        """Return a new expert for these environments.

        Raises:
            ValueError: the environment has no `expert_action` method.
        """
        if not self._copy.expert:
            raise ValueError(
                f"{self._id} has no expert; give the environment a method expert_action() -> (A,)"
            )
        return WorkerExpert(self)

    def close(self) -> None:
        """End the worker processes. Closing twice is the same as closing once."""
        workers, self.workers = self.workers, []
        for worker in workers:
            worker.stop()

    def _start_workers(self, factory: Factory, num_envs: int, num_workers: int) -> CopySpec:
        """Start all workers, then wait for them: they make their copies at the same time."""
        kind = Worker if num_workers else InProcess
        try:
            for rows in np.array_split(np.arange(num_envs), max(num_workers, 1)):
                self.workers.append(kind(range(rows[0], rows[-1] + 1), factory, self._id))
            return [self._await_copies(worker) for worker in self.workers][0]
        except BaseException:
            self.close()
            raise

    def _await_copies(self, worker: Worker | InProcess) -> CopySpec:
        """Return what a worker that was just started says about its copies."""
        try:
            result = worker.answer(self._start_timeout)
        except WorkerDiedError as error:
            raise RuntimeError(
                f"{self._id}: a worker process {error} while it made its environments; see what it "
                "printed, guard the script with `if __name__ == '__main__':`, or raise start_timeout"
            ) from error
        if isinstance(result, Failure):
            if result.wrong_value:
                raise ValueError(result.message) from RuntimeError(result.traceback)
            raise RuntimeError(f"{self._id}: no environment could be made: {result.traceback}")
        return result

    def _exchange(self, method: str, rows: np.ndarray, values: np.ndarray) -> Rows:
        """Ask the workers of `rows` (n,), with one of `values` (n, ...) each.

        Returns:
            E rows, those that were not asked zero; `failed` is by environment.
        """
        if not self.workers:
            raise RuntimeError(f"{self._id} is closed; make a new one")
        result = Rows.empty(self._copy, self.spec.num_envs)
        result.obs = self._obs
        asked = []
        for worker in self.workers:
            mine = (rows >= worker.rows.start) & (rows < worker.rows.stop)
            if mine.any():
                worker.ask(method, rows[mine] - worker.rows.start, values[mine])
                asked.append((worker, rows[mine]))
        for worker, mine in asked:
            try:
                self._merge(result, mine, worker.answer(self._step_timeout))
            except WorkerDiedError as error:
                result.failed |= self._replace(worker, mine, str(error))
        return result

    def _merge(self, result: Rows, rows: np.ndarray, part: Rows) -> None:
        """Write a worker's answer about `rows` into the result of all E."""
        good = np.ones(len(rows), bool)
        good[list(part.failed)] = False
        for key, value in part.obs.items():
            result.obs[key][rows[good]] = value[good]
        for name in ("reward", "terminated", "truncated", "success"):
            getattr(result, name)[rows[good]] = getattr(part, name)[good]
        for position, reason in part.failed.items():
            logger.warning("%s: environment %d broke down: %s", self._id, rows[position], reason)
            result.failed[int(rows[position])] = reason

    def _replace(self, worker: Worker | InProcess, rows: np.ndarray, error: str) -> dict[int, str]:
        """Start a dead worker anew and return why the `rows` that it was asked about failed."""
        held = f"environments {worker.rows.start} to {worker.rows.stop - 1}"
        reason = f"the worker process of {held} {error}"
        logger.warning("%s: %s; it is replaced, and their episodes end", self._id, reason)
        worker.restart()
        self._await_copies(worker)
        self._lost |= {row: reason for row in worker.rows if self._running[row] and row not in rows}
        return dict.fromkeys(rows.tolist(), reason)

    def _count_breakdowns(self, failed: dict[int, str]) -> None:
        """Raise when an environment breaks down too often in a row."""
        for row, reason in failed.items():
            self._num_breakdowns[row] += 1
            if self._num_breakdowns[row] >= MAX_BREAKDOWNS:
                raise RuntimeError(
                    f"{self._id}: environment {row} broke down {MAX_BREAKDOWNS} times in a row, "
                    f"the last time because: {reason}"
                )

    def _ask_all(self, method: str) -> list[Any]:
        """Return every worker's answer to a question without arguments."""
        if not self.workers:
            raise RuntimeError(f"{self._id} is closed; make a new one")
        for worker in self.workers:
            worker.ask(method)
        try:
            results = [worker.answer(self._step_timeout) for worker in self.workers]
        except WorkerDiedError as error:
            raise RuntimeError(f"{self._id}: a worker process {error} in {method}()") from error
        for result in results:
            if isinstance(result, Failure):
                raise RuntimeError(f"{self._id}: {method}() failed: {result.traceback}")
        return results

    def _fresh_obs(self) -> Observation:
        """Return the last observation of all E environments in tensors that nobody else holds."""
        return {key: torch.from_numpy(value.copy()) for key, value in self._obs.items()}


class WorkerExpert:
    """The copies' own `expert_action`, for all of them at once.

    Args:
        env: Whose present state it looks at.
    """

    def __init__(self, env: WorkerEnv) -> None:
        self._env = env

    def act(self) -> Tensor:
        """Return the expert's action (E, A) [robot units]; zeros before an environment's reset."""
        action = np.concatenate(self._env._ask_all("expert"))
        return torch.from_numpy(action)
