"""A `gymnasium.vector.VectorEnv`, such as a batched simulator, under this package's contract.

A vector environment steps all of its E environments or none, while the contract steps some. So:

- An environment that ended is still stepped, with the middle of its action bounds, until its reset.
  The results are discarded, and its last observation is kept. If ended environments must be reset
  before the next step (`AutoresetMode.DISABLED`), they are reset to a start that is discarded too.
- An environment whose episode runs cannot be held still: leaving it out of `active` is an error.
- With `AutoresetMode.SAME_STEP` the last observation of an episode comes from `info["final_obs"]`.
  `SyncVectorEnv` keeps no copy there. An environment that reuses the memory of its observation has
  overwritten it by then, and needs `AutoresetMode.DISABLED`.
- A reset of some environments uses Gymnasium's `reset_mask`, and it is checked that the others did
  not change. `SyncVectorEnv` and `AsyncVectorEnv` take one seed per environment with it. Other
  classes may not: there a reset of all passes the first seed, a reset of some passes none, and the
  spec has `deterministic_reset=False`.

Letters: E envs, d robot action dim, Y, X image pixels.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from torch import Tensor

from pitune.envs.config import Reward
from pitune.envs.gym.simulator import VectorSimulator
from pitune.envs.vector_env import EnvSpec, Expert, Observation, StepResult
from pitune.envs.workers.env import DEFAULT_CONTROL_HZ, MAX_FAILURES
from pitune.envs.workers.observation import empty_obs
from pitune.envs.workers.spaces import control_rate
from pitune.envs.workers.tasks import TaskTable, check_reward

logger = logging.getLogger(__name__)


class GymnasiumVector:
    """E environments of one `gymnasium.vector.VectorEnv`.

    Example:
        >>> from gymnasium.vector import AutoresetMode
        >>> import gymnasium
        >>> vector_env = gymnasium.make_vec(
        ...     "Pendulum-v1",
        ...     num_envs=2,
        ...     vectorization_mode="sync",
        ...     vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
        ... )
        >>> env = GymnasiumVector(vector_env, id="pendulum", max_episode_steps=200)
        >>> env.reset(torch.tensor([0, 1]))["state"].shape
        torch.Size([2, 3])

    Args:
        env: Made with `AutoresetMode.DISABLED` or `SAME_STEP`.
        id: Name for records and messages.
        max_episode_steps: Time limit, in addition to the environment's own, which is the default.
        tasks: Instructions in words. Empty for those that the environment gives.
        control_hz: Steps per simulated second [Hz], for an environment that states none.
        simulator: Package and version of the simulator.
        reward: `sparse` is 1 on success and else 0. Otherwise it is that of the environment.
        max_failures: Episodes in a row that one environment may fail.

    Raises:
        ValueError: its autoreset mode is not usable, it has no time limit, its spaces are not
            usable, or the reward is sparse and there is no success signal.
    """

    def __init__(
        self,
        env: GymnasiumVectorEnv,
        *,
        id: str,
        max_episode_steps: int | None = None,
        tasks: tuple[str, ...] = (),
        control_hz: float | None = None,
        simulator: str = "",
        reward: Reward = "dense",
        max_failures: int = MAX_FAILURES,
    ) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.DISABLED, AutoresetMode.SAME_STEP):
            raise ValueError(
                f"{id}: autoreset_mode={mode} is not usable, because the step after an end "
                "ignores its action; make the vector environment with "
                "autoreset_mode=AutoresetMode.DISABLED, which gymnasium.make_vec takes in "
                "vector_kwargs"
            )
        limit = max_episode_steps or (env.spec.max_episode_steps if env.spec else None)
        if limit is None:
            raise ValueError(f"{id} has no time limit of its own; pass max_episode_steps")

        # signals, found out by playing
        self._simulator = simulation = VectorSimulator(env, id)
        has_success = simulation.plays_with_success(limit)
        check_reward(id, reward, has_success)
        self._tasks = TaskTable(id, tasks, simulation.instructions(), simulation.num_tasks)
        seeded = simulation.takes_seeds and simulation.is_repeated()
        self.spec = EnvSpec(
            id=id,
            num_envs=env.num_envs,
            state_dim=simulation.reader.state_dim,
            action_low=simulation.bounds["action_low"],
            action_high=simulation.bounds["action_high"],
            max_episode_steps=limit,
            control_hz=control_rate(env) or control_hz or DEFAULT_CONTROL_HZ,
            tasks=self._tasks.tasks,
            cameras=simulation.reader.cameras,
            simulator=simulator,
            deterministic_reset=seeded,
            success_signal=has_success,
        )

        # state of the episodes (E, ...)
        self._obs = empty_obs(self.spec.state_dim, self.spec.cameras, env.num_envs)
        self._running = np.zeros(env.num_envs, bool)
        self._lost = np.zeros(env.num_envs, bool)  # with a start that is not finite
        self._num_steps = np.zeros(env.num_envs, np.int64)
        self._num_failures = np.zeros(env.num_envs, np.int64)
        self._max_failures, self._is_sparse = max_failures, reward == "sparse"

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        """Start new episodes and return the observation of all E environments.

        Args:
            seed: One seed in [0, 2^31) per environment that is reset (N,) int64.
            env_idx: Environments to reset (N,) int64. All E by default.

        Raises:
            RuntimeError: the vector environment raised, or changed others as well.
            ValueError: an observation or an instruction is not one that it has declared.
        """
        rows = np.arange(self.spec.num_envs) if env_idx is None else env_idx.numpy()
        mask = np.zeros(self.spec.num_envs, bool)
        mask[rows] = True

        # new observations, which must not change those of running episodes
        new_obs = self._simulator.reset(mask, dict(zip(rows.tolist(), seed.tolist(), strict=True)))
        others = self._running & ~mask
        for key, value in new_obs.items():
            if (value[others] != self._obs[key][others]).any():
                raise RuntimeError(
                    f"{self.spec.id}: a reset of environments {rows.tolist()} changed others too; "
                    "a vector environment is needed that honors options['reset_mask']"
                )
        finite = np.isfinite(new_obs["state"]).all(1)
        for key, value in new_obs.items():
            self._obs[key][mask & finite] = value[mask & finite]
        for row in rows.tolist() if not self._tasks.is_observed else ():
            self._obs["task_id"][row] = self._tasks.index(self._simulator.words[row])
        self._lost = np.where(mask, ~finite, self._lost)
        self._running |= mask
        self._num_steps[mask] = 0
        return self._copy_obs()

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        """Advance the active environments by one control step.

        Args:
            action: (E, d) [robot units], inside the bounds.
            active: (E,) bool, True for all environments whose episode runs and no others.

        Raises:
            ValueError: `active` is something else.
        """
        mask = active.numpy()
        if (mask != self._running).any():
            raise ValueError(
                f"{self.spec.id}: active environments {np.flatnonzero(mask).tolist()} must be "
                f"{np.flatnonzero(self._running).tolist()}, whose episodes run, because a vector "
                "environment cannot hold them still; use WorkerEnv to step some of them"
            )

        # step (E, d), with the middle of the bounds where no episode runs
        values = np.where(mask[:, None], action.numpy(), self._simulator.middle)
        new_obs, reward, terminated, truncated, solved = self._simulator.step(values)
        success = np.zeros_like(mask) if solved is None else solved
        if solved is not None and not self.spec.success_signal:
            self.spec = replace(self.spec, success_signal=True)

        # an environment that breaks down keeps its last observation
        invalid = ~(np.isfinite(new_obs["state"]).all(1) & np.isfinite(reward)) | self._lost
        self._lost &= ~mask
        valid = mask & ~invalid
        for key, value in new_obs.items():
            self._obs[key][valid] = value[valid]
        reward[invalid], terminated[invalid], success[invalid] = 0.0, False, False

        # ends
        self._num_steps[mask] += 1
        timed_out = self._num_steps >= self.spec.max_episode_steps
        truncated |= (timed_out & ~terminated) | invalid
        self._running[terminated | truncated] = False
        self._count_failures(invalid & mask, (terminated | truncated) & mask)
        reward = success if self._is_sparse else reward
        return StepResult(
            self._copy_obs(),
            torch.from_numpy(np.where(mask, reward, 0.0).astype(np.float32)),
            torch.from_numpy(terminated & mask),
            torch.from_numpy(truncated & mask),
            {
                "success": torch.from_numpy(success & mask),
                "invalid": torch.from_numpy(invalid & mask),
            },
        )

    def render(self) -> Tensor:
        """Return one picture of every environment (E, Y, X, 3) uint8.

        Raises:
            RuntimeError: the vector environment returns no pictures.
        """
        pictures: Any = self._simulator.call("render")
        if pictures is None or any(picture is None for picture in pictures):
            raise RuntimeError(
                f"{self.spec.id} returned no pictures; make it with render_mode='rgb_array'"
            )
        return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))

    def expert(self) -> Expert:
        """Raise, because a vector environment has no expert.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.spec.id} has no expert; use an environment that has one")

    def close(self) -> None:
        """Close the vector environment."""
        self._simulator.call("close")

    def abandon(self) -> None:
        """Give up all running episodes, so that none of them must be stepped."""
        self._running[:] = False

    def _count_failures(self, invalid: np.ndarray, ended: np.ndarray) -> None:
        """Count invalid episodes in a row (E,), and raise when an environment has too many."""
        self._num_failures[ended & ~invalid] = 0
        self._num_failures[invalid] += 1
        for row in np.flatnonzero(invalid):
            logger.warning(
                "%s: environment %d returned numbers that are not finite", self.spec.id, row
            )
        if (self._num_failures >= self._max_failures).any():
            worst = int(self._num_failures.argmax())
            raise RuntimeError(
                f"{self.spec.id}: environment {worst} returned numbers that are not finite in "
                f"{self._max_failures} episodes in a row (max_failures)"
            )

    def _copy_obs(self) -> Observation:
        """Return the last observation of all E environments in tensors of its own."""
        return {key: torch.from_numpy(value.copy()) for key, value in self._obs.items()}
