"""E single CPU simulators as one `VectorEnv`, spread over worker processes.

Each worker holds several sub-environments and gets one message per step. A fault ends the episodes
that it affects and no others:

- A sub-environment that raises, or returns numbers that are not finite, is discarded. Its episode
  is reported as `truncated` and `invalid`, and the next reset makes it again.
- A worker that is killed, or sends no reply in time, is replaced, and all its episodes end so.

Both are logged as warnings. An environment that breaks down `MAX_BREAKDOWNS` times without a
regular end of an episode in between has a bug: then `step` raises with the simulator's traceback.
A sub-environment that cannot be made, and a reset that fails twice, raise at once.

Letters: E envs, N rows, s robot state dim, d robot action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pitune.envs.vector_env import EnvSpec, Observation, StepResult
from pitune.envs.workers.pool import WorkerPool
from pitune.envs.workers.sub_envs import Factory

MAX_BREAKDOWNS = 3
"""Breakdowns in a row of one environment that end the run."""
DEFAULT_CONTROL_HZ = 20.0
"""Used if the duration of an environment's step is unknown [Hz]."""


class WorkerEnv:
    """E sub-environments of one Gymnasium environment, in worker processes or in this one.

    The observation of a sub-environment is a Box, which becomes `state`, or a Dict of `state` and
    `image/<camera>` (and `task_id`, an index into `tasks`). `info["success"]` is its success
    signal, and a method `expert_action() -> (d,)` is its expert.

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
        tasks: Instructions in words.
        control_hz: Steps per simulated second [Hz]. None for that of the sub-environment.
        simulator: Package and version of the simulator.
        deterministic_reset: Whether the seed alone fixes the initial state.
        start_timeout: Longest time for a worker to make its sub-environments [s].
        step_timeout: Longest time for any other reply of a worker [s].

    Raises:
        ValueError: a number or a space is not usable, or the factory cannot be pickled.
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
        tasks: tuple[str, ...] = ("",),
        control_hz: float | None = None,
        simulator: str,
        deterministic_reset: bool = True,
        start_timeout: float = 180.0,
        step_timeout: float = 120.0,
    ) -> None:
        if num_envs < 1 or num_workers < 0:
            raise ValueError(f"{num_envs=} must be at least 1 and {num_workers=} at least 0")

        # workers
        num_workers = min(num_workers, num_envs)
        self._pool = WorkerPool(factory, id, num_envs, num_workers, start_timeout, step_timeout)
        sub_env = self._pool.spec

        # time limit
        limit = sub_env.max_episode_steps if max_episode_steps is None else max_episode_steps
        if limit is None or limit < 1:
            self.close()
            raise ValueError(
                f"{id}: {max_episode_steps=} must be at least 1, and may be None only for an "
                "environment with a time limit of its own; pass max_episode_steps"
            )
        self.spec = EnvSpec(
            id=id,
            num_envs=num_envs,
            state_dim=sub_env.state_dim,
            action_low=sub_env.action_low,
            action_high=sub_env.action_high,
            max_episode_steps=limit,
            control_hz=control_hz or sub_env.control_hz or DEFAULT_CONTROL_HZ,
            tasks=tasks,
            cameras=sub_env.cameras,
            simulator=simulator,
            deterministic_reset=deterministic_reset,
            success_signal=sub_env.success_signal,
        )

        # state of the episodes (E,)
        self._running = np.zeros(num_envs, bool)
        self._num_steps = np.zeros(num_envs, np.int64)
        self._num_breakdowns = np.zeros(num_envs, np.int64)

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        """Start new episodes and return the observation of all E environments.

        An environment before its first reset shows zeros.

        Args:
            seed: One seed in [0, 2^31) per environment that is reset (N,) int64.
            env_idx: Environments to reset (N,) int64. All E by default.

        Raises:
            RuntimeError: an environment failed to reset twice.
        """
        rows = np.arange(self.spec.num_envs) if env_idx is None else env_idx.numpy()
        seeds = seed.numpy()
        # an environment that fails to reset is not running
        self._running[rows] = False
        failed = self._pool.exchange("reset", rows, seeds).failed
        if failed:
            # The second try uses new sub-environments.
            retried = np.isin(rows, list(failed))
            failed = self._pool.exchange("reset", rows[retried], seeds[retried]).failed
        for row, reason in failed.items():
            raise RuntimeError(f"{self.spec.id}: environment {row} failed to reset twice: {reason}")

        # new episodes
        self._running[rows] = True
        self._num_steps[rows] = 0
        # an earlier breakdown concerns the old episode
        for row in rows.tolist():
            self._pool.lost.pop(row, None)
        return self._copy_obs()

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        """Advance the active environments by one control step.

        Args:
            action: (E, d) [robot units], inside the bounds.
            active: (E,) bool.

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
        result = self._pool.exchange("step", rows, action.numpy()[rows])
        self._num_steps[rows] += 1

        if result.reports_success and not self.spec.success_signal:
            self.spec = replace(self.spec, success_signal=True)

        # breakdowns, including those of workers that were replaced since the last step
        for row in active_rows.tolist():
            if row in self._pool.lost:
                result.failed[row] = self._pool.lost.pop(row)
        invalid = np.zeros_like(mask)
        invalid[list(result.failed)] = True

        # ends
        timed_out = mask & (self._num_steps >= self.spec.max_episode_steps)
        result.truncated |= (timed_out & ~result.terminated) | invalid
        ended = result.terminated | result.truncated
        self._running[ended] = False
        self._num_breakdowns[ended & ~invalid] = 0
        self._count_breakdowns(result.failed)
        return StepResult(
            self._copy_obs(),
            torch.from_numpy(result.reward),
            torch.from_numpy(result.terminated),
            torch.from_numpy(result.truncated),
            {"success": torch.from_numpy(result.success), "invalid": torch.from_numpy(invalid)},
        )

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
        return WorkerExpert(self)

    def close(self) -> None:
        """End the worker processes. Closing twice is the same as closing once."""
        self._pool.close()

    def _count_breakdowns(self, failed: dict[int, str]) -> None:
        """Raise when an environment breaks down too often in a row."""
        for row, reason in failed.items():
            self._num_breakdowns[row] += 1
            if self._num_breakdowns[row] >= MAX_BREAKDOWNS:
                raise RuntimeError(
                    f"{self.spec.id}: environment {row} broke down {MAX_BREAKDOWNS} times in a "
                    f"row, the last time because: {reason}"
                )

    def _copy_obs(self) -> Observation:
        """Return the last observation of all E environments in tensors of its own."""
        return {key: torch.from_numpy(value.copy()) for key, value in self._pool.obs.items()}


class WorkerExpert:
    """The `expert_action` of all sub-environments.

    Example:
        >>> import gymnasium
        >>> class Coasting(gymnasium.Wrapper):
        ...     def expert_action(self):
        ...         return np.zeros(1, np.float32)
        >>> env = WorkerEnv(
        ...     lambda: Coasting(gymnasium.make("Pendulum-v1")),
        ...     id="pendulum",
        ...     num_envs=2,
        ...     num_workers=0,
        ...     max_episode_steps=200,
        ...     simulator="gymnasium",
        ... )
        >>> obs = env.reset(torch.tensor([0, 1]))
        >>> WorkerExpert(env).act().shape  # (E, d)
        torch.Size([2, 1])

    Args:
        env: The environment to act in.
    """

    def __init__(self, env: WorkerEnv) -> None:
        self._env = env

    def act(self) -> Tensor:
        """Return the expert's action (E, d) [robot units], zeros before the first reset."""
        action = np.concatenate(self._env._pool.call_all("expert"))
        return torch.from_numpy(action)
