"""E single CPU simulators as one `VectorEnv`, spread over worker processes.

Each worker holds several sub-environments and gets one message per step. A fault ends the episodes
that it affects and no others:

- A sub-environment that raises, or returns numbers that are not finite, is discarded. Its episode
  is reported as `truncated` and `invalid`, and the next reset makes it again.
- A worker that is killed, or sends no reply in time, is replaced, and all its episodes end so.
- A start that fails twice costs its episode too: the first step reports it as invalid. The reset
  after it comes with another seed.

All are logged as warnings. An environment that fails `max_failures` times without a regular end of
an episode in between has a bug: then `step` raises with the simulator's traceback. Results that do
not have the form of the spaces, and a sub-environment that cannot be made, raise at once.

Letters: E envs, N rows, s robot state dim, d robot action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pitune.envs.config import Reward
from pitune.envs.vector_env import EnvSpec, Observation, StepResult
from pitune.envs.workers.expert import WorkerExpert
from pitune.envs.workers.pool import Timeouts, WorkerPool
from pitune.envs.workers.sub_envs import Factory
from pitune.envs.workers.tasks import TaskTable, check_reward, time_limit

MAX_FAILURES = 10
"""Episodes in a row that one environment may fail, by default."""
logger = logging.getLogger(__name__)
DEFAULT_CONTROL_HZ = 20.0
"""Used if the duration of an environment's step is unknown [Hz]."""


class WorkerEnv:
    """E sub-environments of one Gymnasium environment, in worker processes or in this one.

    The observation of a sub-environment is a Box, which becomes `state`, or a Dict of `state` and
    `image/<camera>` (and `task_id`, an index into `tasks`). `info["success"]` is its success
    signal, and a method `expert_action() -> (d,)` is its expert. If it has a method
    `draw_pictures() -> {"image/<camera>": (Y, X, C)}`, its observations leave out these keys, and
    it is called only where the pictures are read.

    Example:
        >>> import functools, gymnasium
        >>> env = WorkerEnv(
        ...     functools.partial(gymnasium.make, "Pendulum-v1"),
        ...     id="pendulum",
        ...     num_envs=2,
        ...     num_workers=0,
        ...     max_episode_steps=200,
        ...     simulator="gymnasium",
        ... )
        >>> env.reset(torch.tensor([0, 1]))["state"].shape
        torch.Size([2, 3])

    Args:
        factory: Makes one sub-environment. It is pickled, so use a module-level function or a
            `functools.partial` of one.
        id: The name of the environment.
        num_envs: E.
        num_workers: Processes, at most E. 0 runs the sub-environments in this process.
        max_episode_steps: Time limit, applied here. None for that of the sub-environment.
        tasks: Instructions in words. Empty for those that the sub-environment gives.
        control_hz: Steps per simulated second [Hz], for a sub-environment that states none.
        simulator: Package and version of the simulator.
        deterministic_reset: Whether the seed alone fixes the initial state. A probe verifies it.
        reward: `sparse` is 1 on success and else 0. Otherwise it is that of the sub-environment.
        probe: Whether a further sub-environment is played with for the spec. See `WorkerPool`.
        timeouts: The longest times to wait for a worker.
        max_failures: Episodes in a row that one environment may fail.
        spec_fields: Further fields of the spec, e.g. `seeded_tasks` and `num_starts`.

    Raises:
        ValueError: a number or a space is not usable, the factory cannot be pickled, or the reward
            is sparse and there is no success signal.
        RuntimeError: a sub-environment could not be made.
    """

    def __init__(
        self,
        factory: Factory,
        *,
        id: str,
        num_envs: int,
        num_workers: int,
        max_episode_steps: int | None,
        tasks: tuple[str, ...] = (),
        control_hz: float | None = None,
        simulator: str,
        deterministic_reset: bool = True,
        reward: Reward = "dense",
        probe: bool = True,
        timeouts: Timeouts | None = None,
        max_failures: int = MAX_FAILURES,
        **spec_fields: Any,
    ) -> None:
        if num_envs < 1 or num_workers < 0:
            raise ValueError(f"{num_envs=} must be at least 1 and {num_workers=} at least 0")
        if max_failures < 1:
            raise ValueError(f"{max_failures=} must be at least 1")

        # workers
        num_workers = min(num_workers, num_envs)
        self._pool = WorkerPool(factory, id, num_envs, num_workers, timeouts, probe=probe)
        sub_env = self._pool.spec
        try:
            limit = time_limit(id, max_episode_steps, sub_env.max_episode_steps)
            self._tasks = TaskTable(id, tasks, sub_env.instructions, sub_env.num_tasks)
            check_reward(id, reward, sub_env.success_signal)
        except ValueError:
            self.close()
            raise
        if deterministic_reset and not sub_env.seeded_starts:
            logger.warning(
                "%s: two resets with one seed gave different starts, so evaluations of it do not "
                "share their starts; draw every start from the seed of reset()",
                id,
            )
        self._is_sparse, self._max_failures = reward == "sparse", max_failures
        self.spec = EnvSpec(
            id=id,
            num_envs=num_envs,
            state_dim=sub_env.state_dim,
            action_low=sub_env.action_low,
            action_high=sub_env.action_high,
            max_episode_steps=limit,
            control_hz=sub_env.control_hz or control_hz or DEFAULT_CONTROL_HZ,
            tasks=self._tasks.tasks,
            cameras=sub_env.cameras,
            simulator=simulator,
            deterministic_reset=deterministic_reset and sub_env.seeded_starts,
            success_signal=sub_env.success_signal,
            **spec_fields,
        )

        # state of the episodes (E,)
        self._running = np.zeros(num_envs, bool)
        self._num_steps = np.zeros(num_envs, np.int64)
        self._task_id = np.zeros(num_envs, np.int64)
        self._num_failures = np.zeros(num_envs, np.int64)

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        """Start new episodes and return the observation of all E environments.

        An environment before its first reset shows zeros.

        Args:
            seed: One seed in [0, 2^31) per environment that is reset (N,) int64.
            env_idx: Environments to reset (N,) int64. All E by default.

        A start that fails twice shows the last observation of its environment, and its first step
        reports an invalid episode.

        Raises:
            ValueError: an instruction is not in the table, or an observation has a wrong form.
        """
        rows = np.arange(self.spec.num_envs) if env_idx is None else env_idx.numpy()
        seeds = seed.numpy()
        # until they are reset, which may raise
        self._running[rows] = False
        # an earlier breakdown concerns the old episode, one from now on the new one
        for row in rows.tolist():
            self._pool.lost.pop(row, None)
        result = self._pool.exchange("reset", rows, seeds)
        failed, words = result.failed, result.words
        if failed:
            # The second try uses new sub-environments.
            retried = np.isin(rows, list(failed))
            result = self._pool.exchange("reset", rows[retried], seeds[retried])
            failed, words = result.failed, words | result.words
        for row in rows.tolist():
            if row not in failed:
                self._task_id[row] = self._tasks.index(words.get(row))
        if self.spec.seeded_tasks:  # also where an episode could not begin
            self._pool.obs["task_id"][rows] = seeds % len(self.spec.tasks)

        # new episodes
        self._running[rows] = True
        self._num_steps[rows] = 0
        self._pool.lost |= failed
        return self._copy_obs()

    def step(self, action: Tensor, active: Tensor, pictures: Tensor | None = None) -> StepResult:
        """Advance the active environments by one control step.

        Args:
            action: (E, d) [robot units], inside the bounds.
            active: (E,) bool.
            pictures: Those whose pictures are read (E,) bool, see `DrawsOnRequest.step`.

        Raises:
            ValueError: an active environment has ended or was never reset.
            RuntimeError: an environment broke down too often in a row.
        """
        mask = active.numpy()
        waiting = np.flatnonzero(mask & ~self._running).tolist()
        if waiting:
            raise ValueError(
                f"{self.spec.id}: active environments {waiting} have no running episode; "
                "reset them first, or leave them out of active"
            )

        # step, without the rows whose worker was replaced
        active_rows = np.flatnonzero(mask)
        rows = np.array([row for row in active_rows if row not in self._pool.lost], np.int64)
        self._num_steps[rows] += 1
        timed_out = mask & (self._num_steps >= self.spec.max_episode_steps)
        read = timed_out | (mask if pictures is None else pictures.numpy())
        result = self._pool.exchange("step", rows, action.numpy()[rows], read[rows])

        if result.reports_success and not self.spec.success_signal:
            self.spec = replace(self.spec, success_signal=True)

        # breakdowns, including those of workers that were replaced since the last step
        for row in active_rows.tolist():
            if row in self._pool.lost:
                result.failed[row] = self._pool.lost.pop(row)
        invalid = np.zeros_like(mask)
        invalid[list(result.failed)] = True

        # ends
        result.truncated |= (timed_out & ~result.terminated) | invalid
        ended = result.terminated | result.truncated
        self._running[ended] = False
        self._num_failures[ended & ~invalid] = 0
        self._count_failures(result.failed)
        reward = result.success.astype(np.float32) if self._is_sparse else result.reward
        return StepResult(
            self._copy_obs(),
            torch.from_numpy(reward),
            torch.from_numpy(result.terminated),
            torch.from_numpy(result.truncated),
            {"success": torch.from_numpy(result.success), "invalid": torch.from_numpy(invalid)},
        )

    def announce(self, chunk: Tensor, active: Tensor) -> None:
        """Let workers on other machines take the steps of a chunk. See `CheckedEnv.announce`."""
        if self._pool.plans_ahead:
            may_step = active.numpy() & self._running
            may_step[list(self._pool.lost)] = False
            left = self.spec.max_episode_steps - self._num_steps
            self._pool.announce(np.flatnonzero(may_step), chunk.numpy(), left)

    def render(self) -> Tensor:
        """Return one picture of every environment (E, Y, X, 3) uint8, black before its reset.

        Raises:
            RuntimeError: this machine or simulator cannot render, or nothing was reset yet.
        """
        pictures = [picture for part in self._pool.call_all("render") for picture in part]
        example = next((picture for picture in pictures if picture is not None), None)
        if example is None:
            raise RuntimeError(f"{self.spec.id} has nothing to render yet; reset it first")
        black = np.zeros_like(example)
        stack = np.stack([black if picture is None else picture for picture in pictures])
        return torch.from_numpy(stack)

    def expert(self) -> WorkerExpert:
        """Return a new expert for these environments.

        Raises:
            ValueError: the environment has no `expert_action` method.
        """
        if not self._pool.spec.expert:
            raise ValueError(
                f"{self.spec.id} has no expert; give the environment a method "
                "expert_action() -> (d,), or use an environment that has one"
            )
        return WorkerExpert(self._pool)

    def close(self) -> None:
        """End the worker processes. Closing twice is the same as closing once."""
        self._pool.close()

    def _count_failures(self, failed: dict[int, str]) -> None:
        """Raise when an environment fails too often in a row."""
        for row, reason in failed.items():
            self._num_failures[row] += 1
            if self._num_failures[row] >= self._max_failures:
                raise RuntimeError(
                    f"{self.spec.id}: environment {row} broke down {self._max_failures} times in a "
                    f"row (max_failures), the last time because: {reason}"
                )

    def _copy_obs(self) -> Observation:
        """Return the last observation of all E environments in tensors of its own."""
        obs = {key: torch.from_numpy(value.copy()) for key, value in self._pool.obs.items()}
        return obs if self._tasks.is_observed else obs | {"task_id": torch.tensor(self._task_id)}
