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
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from torch import Tensor

from pitune.envs.config import Reward
from pitune.envs.vector_env import EnvSpec, Expert, Observation, StepResult
from pitune.envs.workers.env import DEFAULT_CONTROL_HZ, MAX_FAILURES
from pitune.envs.workers.observation import INSTRUCTION_KEYS, Arrays, ObsReader, empty_obs
from pitune.envs.workers.spaces import (
    as_flags,
    batch_action,
    control_rate,
    read_actions,
    read_success,
)
from pitune.envs.workers.surroundings import BreakdownError, Surroundings, user_code
from pitune.envs.workers.tasks import TaskTable, as_words, check_reward

logger = logging.getLogger(__name__)
NUM_LOOKS = 8
"""Resets in which instructions are collected."""


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
        control_hz: Steps per simulated second [Hz]. The environment's own by default.
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
        self._mode = env.metadata.get("autoreset_mode")
        if self._mode not in (AutoresetMode.DISABLED, AutoresetMode.SAME_STEP):
            raise ValueError(
                f"{id}: autoreset_mode={self._mode} is not usable, because the step after an end "
                "ignores its action; make the vector environment with "
                "autoreset_mode=AutoresetMode.DISABLED, which gymnasium.make_vec takes in "
                "vector_kwargs"
            )

        # time limit and spaces
        limit = max_episode_steps or (env.spec.max_episode_steps if env.spec else None)
        if limit is None:
            raise ValueError(f"{id} has no time limit of its own; pass max_episode_steps")
        bounds = read_actions(id, env.single_action_space)
        low, high = np.array(bounds["action_low"]), np.array(bounds["action_high"])
        self._reader = ObsReader.of(id, env.single_observation_space)

        # buffers and state of the episodes (E, ...)
        self._env, self._num_envs, self._id = env, env.num_envs, id
        self._surroundings = Surroundings(1, shared=True)
        self._takes_seeds = isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        self._middle = (low + high) / 2
        self._obs = empty_obs(self._reader.state_dim, self._reader.cameras, env.num_envs)
        self._running = np.zeros(env.num_envs, bool)
        self._lost = np.zeros(env.num_envs, bool)  # with a start that is not finite
        self._num_steps = np.zeros(env.num_envs, np.int64)
        self._num_failures = np.zeros(env.num_envs, np.int64)
        self._max_failures, self._is_sparse = max_failures, reward == "sparse"
        # Ended according to the vector environment, which would raise if they were stepped.
        self._stale = np.zeros(env.num_envs, bool)

        # signals, found out by playing
        self._words: list[str | None] = [None] * env.num_envs
        has_success = self._has_success()
        check_reward(id, reward, has_success)
        given = self._instructions()
        num_tasks = int(self._reader.task_ids.n) if self._reader.task_ids is not None else 1
        self._tasks = TaskTable(id, tasks, given, num_tasks)
        self.spec = EnvSpec(
            id=id,
            num_envs=env.num_envs,
            state_dim=self._reader.state_dim,
            **bounds,
            max_episode_steps=limit,
            control_hz=control_rate(env) or control_hz or DEFAULT_CONTROL_HZ,
            tasks=self._tasks.tasks,
            cameras=self._reader.cameras,
            simulator=simulator,
            deterministic_reset=self._takes_seeds and self._is_repeated(),
            success_signal=has_success,
        )

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        """Start new episodes and return the observation of all E environments.

        Args:
            seed: One seed in [0, 2^31) per environment that is reset (N,) int64.
            env_idx: Environments to reset (N,) int64. All E by default.

        Raises:
            RuntimeError: the vector environment raised, or changed others as well.
            ValueError: an observation or an instruction is not one that it has declared.
        """
        rows = np.arange(self._num_envs) if env_idx is None else env_idx.numpy()
        mask = np.zeros(self._num_envs, bool)
        mask[rows] = True

        # new observations, which must not change those of running episodes
        new_obs = self._reset(mask, dict(zip(rows.tolist(), seed.tolist(), strict=True)))
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
            self._obs["task_id"][row] = self._tasks.index(self._words[row])
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
        if self._stale.any():
            self._reset(self._stale.copy(), {})
        values = np.where(mask[:, None], action.numpy(), self._middle)
        new_obs, reward, terminated, truncated, success = self._step(values)

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
        pictures: Any = self._call("render")
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
        self._call("close")

    def _call(self, method: str, *arguments: Any, number: int | None = None, **named: Any) -> Any:
        """Return the result of a method of the vector environment.

        Args:
            method: Its name.
            arguments: Those of the method.
            number: Seed of the global generators, of the sub-environments that are in this process.
            named: Further arguments of the method.

        Raises:
            RuntimeError: the method raised, or tried to end the process.
        """
        with self._surroundings.borrowed():
            self._surroundings.enter(0, number)
            try:
                with user_code():
                    return getattr(self._env, method)(*arguments, **named)
            except BreakdownError as error:
                raise RuntimeError(
                    f"{self._id}: {method}() of the vector environment raised, which concerns all "
                    f"of its environments: {error}"
                ) from error

    def _count_failures(self, invalid: np.ndarray, ended: np.ndarray) -> None:
        """Count invalid episodes in a row (E,), and raise when an environment has too many."""
        self._num_failures[ended & ~invalid] = 0
        self._num_failures[invalid] += 1
        for row in np.flatnonzero(invalid):
            logger.warning("%s: environment %d returned numbers that are not finite", self._id, row)
        if (self._num_failures >= self._max_failures).any():
            raise RuntimeError(
                f"{self._id}: environment {int(self._num_failures.argmax())} returned numbers that "
                f"are not finite in {self._max_failures} episodes in a row (max_failures)"
            )

    def _is_repeated(self) -> bool:
        """Return whether two resets with the same seeds give the same observations."""
        everything, seeds = np.ones(self._num_envs, bool), dict(enumerate(range(self._num_envs)))
        first, second = (self._reset(everything, seeds) for _ in range(2))
        same = np.array_equal(first["state"], second["state"], equal_nan=True)
        if not same:
            logger.warning(
                "%s: two resets with one seed gave different starts, so evaluations of it do not "
                "share their starts; draw every start from the seed of reset()",
                self._id,
            )
        return same

    def _instructions(self) -> tuple[str, ...]:
        """Return the instructions of several episodes, in alphabetical order."""
        found: set[str] = set()
        for look in range(NUM_LOOKS):
            self._reset(np.ones(self._num_envs, bool), {row: look for row in range(self._num_envs)})
            found |= {words for words in self._words if words}
            if not found:
                break
        return tuple(sorted(found))

    def _read_words(self, mask: np.ndarray, raw: Any, info: Any) -> None:
        """Remember the instructions of the episodes that a reset of some rows (E,) has begun."""
        parts = [info.get(key) for key in INSTRUCTION_KEYS] if isinstance(info, Mapping) else []
        for row in np.flatnonzero(mask).tolist():
            words = None
            for part in [*parts, self._reader.words(raw)]:
                value = part[row] if isinstance(part, np.ndarray | list | tuple) else part
                words = words or as_words(value)
            self._words[row] = words

    def _has_success(self) -> bool:
        """Return whether `info` has a success entry. It takes a step to find out."""
        self._call("reset", seed=0, number=0)
        action = batch_action(self._middle, self._env)
        _, _, terminated, truncated, info = self._call("step", action)
        self._mark_stale(np.asarray(terminated) | np.asarray(truncated))
        final_info = info.get("final_info", {})
        return read_success(info) is not None or read_success(final_info) is not None

    def _reset(self, mask: np.ndarray, seeds: dict[int, int]) -> Arrays:
        """Reset the environments in `mask` (E,) and return the observation of all E.

        Args:
            mask: (E,) bool.
            seeds: Environment -> its seed. An environment without one starts anywhere.
        """
        options = None if mask.all() else {"reset_mask": mask.copy()}
        seed: Any
        if self._takes_seeds:
            seed = [seeds.get(row) for row in range(self._num_envs)]
        else:
            seed = next(iter(seeds.values()), None) if mask.all() else None
        number = next(iter(seeds.values()), None)
        raw, info = self._call("reset", seed=seed, options=options, number=number)
        self._stale[mask] = False
        self._read_words(mask, raw, info)
        return self._reader.read(raw, (self._num_envs,))

    def _step(
        self, values: np.ndarray
    ) -> tuple[Arrays, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step all E environments with `values` (E, d) [robot units].

        Returns:
            Observation, reward, terminated, truncated and success (E,) of this step, before any
            reset that follows within it.
        """
        action = batch_action(values, self._env)
        raw, reward, terminated, truncated, info = self._call("step", action)
        ended = np.asarray(terminated) | np.asarray(truncated)
        self._mark_stale(ended)
        obs = self._reader.read(raw, (self._num_envs,))
        success = as_flags(read_success(info), self._num_envs)

        # in this mode `obs` belongs to the next episode, and the last one is in `info`
        if self._mode is AutoresetMode.SAME_STEP and ended.any():
            final_obs = info["final_obs"]
            for row in np.flatnonzero(ended).tolist():
                final = final_obs
                if isinstance(final, Mapping):
                    final = {key: value[row] for key, value in final.items()}
                else:
                    final = final[row]
                for key, value in self._reader.read(final).items():
                    obs[key][row] = value
            final_success = read_success(info.get("final_info", {}))
            success[ended] = as_flags(final_success, self._num_envs)[ended]
        reward, terminated, truncated = (
            np.array(value).reshape(self._num_envs) for value in (reward, terminated, truncated)
        )
        with np.errstate(over="ignore"):  # infinity is reported as invalid
            return obs, reward.astype(np.float32), terminated, truncated, success

    def _mark_stale(self, ended: np.ndarray) -> None:
        """Remember the environments that must be reset before the next step (E,) bool."""
        if self._mode is AutoresetMode.DISABLED:
            self._stale = np.array(ended)

    def _copy_obs(self) -> Observation:
        """Return the last observation of all E environments in tensors of its own."""
        return {key: torch.from_numpy(value.copy()) for key, value in self._obs.items()}
