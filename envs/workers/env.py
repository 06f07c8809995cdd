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

import numpy as np
import torch
from torch import Tensor

from pitune.envs.vector_env import EnvSpec, Observation, StepResult
from pitune.envs.workers.pool import WorkerPool
from pitune.envs.workers.sub_envs import Factory

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
        num_workers = min(num_workers, num_envs)
        self._pool = WorkerPool(factory, id, num_envs, num_workers, start_timeout, step_timeout)
        copy = self._pool.spec
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
        self._running = np.zeros(num_envs, bool)
        self._num_steps = np.zeros(num_envs, np.int64)
        self._num_breakdowns = np.zeros(num_envs, np.int64)

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
        failed = self._pool.exchange("reset", rows, seeds).failed
        if failed:
            # What failed is made anew by now, so a second try is worth it.
            again = np.isin(rows, list(failed))
            failed = self._pool.exchange("reset", rows[again], seeds[again]).failed
        for row, reason in failed.items():
            raise RuntimeError(f"{self.spec.id}: environment {row} failed to reset twice: {reason}")
        self._running[rows] = True
        self._num_steps[rows] = 0
        for row in rows.tolist():
            self._pool.lost.pop(row, None)
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
                f"{self.spec.id}: active environments {waiting} have no running episode; "
                "reset them first, or leave them out of active"
            )
        rows = np.array(
            [row for row in np.flatnonzero(wanted) if row not in self._pool.lost], np.int64
        )
        reply = self._pool.exchange("step", rows, action.numpy()[rows])
        self._num_steps[rows] += 1
        for row in np.flatnonzero(wanted).tolist():
            if row in self._pool.lost:
                reply.failed[row] = self._pool.lost.pop(row)
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
            torch.from_numpy(reply.reward),
            torch.from_numpy(reply.terminated),
            torch.from_numpy(reply.truncated),
            {"success": torch.from_numpy(reply.success), "invalid": torch.from_numpy(invalid)},
        )

    def render(self) -> Tensor:
        """Return one picture of every environment (E, Y, X, 3) uint8; black before its reset.

        Raises:
            RuntimeError: this machine or simulator cannot render, or nothing was reset yet.
        """
        pictures = [picture for part in self._pool.ask_all("render") for picture in part]
        shown = next((picture for picture in pictures if picture is not None), None)
        if shown is None:
            raise RuntimeError(f"{self.spec.id} has nothing to render yet; reset it first")
        black = np.zeros_like(shown)
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
                "expert_action() -> (A,), or use an environment that has one"
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

    def _fresh_obs(self) -> Observation:
        """Return the last observation of all E environments in tensors that nobody else holds."""
        return {key: torch.from_numpy(value.copy()) for key, value in self._pool.obs.items()}


class WorkerExpert:
    """The copies' own `expert_action`, for all of them at once.

    Args:
        env: Whose present state it looks at.
    """

    def __init__(self, env: WorkerEnv) -> None:
        self._env = env

    def act(self) -> Tensor:
        """Return the expert's action (E, A) [robot units]; zeros before an environment's reset."""
        action = np.concatenate(self._env._pool.ask_all("expert"))
        return torch.from_numpy(action)
