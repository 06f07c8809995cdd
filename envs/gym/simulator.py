"""The calls of a `gymnasium.vector.VectorEnv`: seeds, masks, ends within a step, and its faults.

Its code runs in the trainer's process, so its generators, settings and exits are kept apart as for
sub-environments. An exception of it concerns all of its environments and ends the run.

Letters: E envs, d robot action dim.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv

from pitune.envs.success import MAX_PROBE_STEPS, read_successes
from pitune.envs.workers.observation import INSTRUCTION_KEYS, Arrays, ObsReader
from pitune.envs.workers.spaces import batch_action, read_actions
from pitune.envs.workers.surroundings import BreakdownError, Surroundings, user_code
from pitune.envs.workers.tasks import as_words

logger = logging.getLogger(__name__)
NUM_LOOKS = 8
"""Resets in which instructions are collected."""
Step = tuple[Arrays, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]
"""Observation, reward, terminated, truncated and success (E,), None where no info reported it."""


class VectorSimulator:
    """The E environments of one `gymnasium.vector.VectorEnv`, always stepped together.

    Example:
        >>> import gymnasium
        >>> env = gymnasium.make_vec("Pendulum-v1", num_envs=2, vectorization_mode="sync")
        >>> simulator = VectorSimulator(env, "pendulum")
        >>> simulator.reset(np.ones(2, bool), {0: 7, 1: 8})["state"].shape
        (2, 3)

    Args:
        env: The vector environment.
        env_id: Name for messages.

    Raises:
        ValueError: a space is not usable.
    """

    def __init__(self, env: GymnasiumVectorEnv, env_id: str) -> None:
        self._env, self._id, self._num_envs = env, env_id, env.num_envs
        self._surroundings = Surroundings(1, shared=True)
        self.bounds = read_actions(env_id, env.single_action_space)
        self.reader = ObsReader.of(env_id, env.single_observation_space)
        self.middle = (np.array(self.bounds["action_low"]) + self.bounds["action_high"]) / 2
        """Middle of the action bounds (d,) [robot units]."""
        self.takes_seeds = isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        """Whether it takes one seed per environment."""
        self.words: list[str | None] = [None] * env.num_envs
        """Instruction of each running episode."""
        self._is_disabled = env.metadata.get("autoreset_mode") is AutoresetMode.DISABLED
        # Ended according to the vector environment, which would raise if they were stepped.
        self._stale = np.zeros(env.num_envs, bool)

    @property
    def num_tasks(self) -> int:
        """Number of values of `task_id` in the observation."""
        return 1 if self.reader.task_ids is None else int(self.reader.task_ids.n)

    def reset(self, mask: np.ndarray, seeds: dict[int, int]) -> Arrays:
        """Reset the environments in `mask` (E,) and return the observation of all E.

        Args:
            mask: (E,) bool.
            seeds: Environment -> its seed. An environment without one starts anywhere.
        """
        options = None if mask.all() else {"reset_mask": mask.copy()}
        number = next(iter(seeds.values()), None)
        seed: Any
        if self.takes_seeds:
            seed = [seeds.get(row) for row in range(self._num_envs)]
        else:
            seed = number if mask.all() else None
        raw, info = self.call("reset", seed=seed, options=options, number=number)
        self._stale[mask] = False
        self._read_words(mask, raw, info)
        return self.reader.read(raw, (self._num_envs,))

    def step(self, values: np.ndarray) -> Step:
        """Step all E environments with `values` (E, d), or (d,) for all [robot units].

        Returns:
            The results of this step, before any reset that follows within it.
        """
        if self._stale.any():
            self.reset(self._stale.copy(), {})
        action = batch_action(values, self._env)
        raw, *numbers, info = self.call("step", action)
        reward, terminated, truncated = (
            np.array(value).reshape(self._num_envs) for value in numbers
        )
        ended = terminated.astype(bool) | truncated.astype(bool)
        if self._is_disabled:
            self._stale = ended.copy()
        obs = self.reader.read(raw, (self._num_envs,))
        success = read_successes(info, self._num_envs, self._id)

        # otherwise `obs` belongs to the next episode, and the last one is in `info`
        if not self._is_disabled and ended.any():
            final = info["final_obs"]
            for row in np.flatnonzero(ended).tolist():
                is_dict = isinstance(final, Mapping)
                last = {k: v[row] for k, v in final.items()} if is_dict else final[row]
                for key, value in self.reader.read(last).items():
                    obs[key][row] = value
        with np.errstate(over="ignore"):  # infinity is reported as a breakdown
            reward = reward.astype(np.float32)
        return obs, reward, terminated.astype(bool), truncated.astype(bool), success

    def plays_with_success(self, limit: int) -> bool:
        """Return whether `info` reports success in an episode. Some do only at its last step."""
        everything = np.ones(self._num_envs, bool)
        self.reset(everything, dict.fromkeys(range(self._num_envs), 0))
        for _ in range(min(limit, MAX_PROBE_STEPS)):
            _, _, terminated, truncated, success = self.step(self.middle)
            if success is not None:
                return True
            if (terminated | truncated).any():
                break
        return False

    def is_repeated(self) -> bool:
        """Return whether two resets with the same seeds give the same observations."""
        everything, seeds = np.ones(self._num_envs, bool), dict(enumerate(range(self._num_envs)))
        first, second = (self.reset(everything, seeds) for _ in range(2))
        same = np.array_equal(first["state"], second["state"], equal_nan=True)
        if not same:
            logger.warning(
                "%s: two resets with one seed gave different starts, so evaluations of it do not "
                "share their starts; draw every start from the seed of reset()",
                self._id,
            )
        return same

    def instructions(self) -> tuple[str, ...]:
        """Return the instructions of several episodes, in alphabetical order."""
        found: set[str] = set()
        for look in range(NUM_LOOKS):
            everything = np.ones(self._num_envs, bool)
            self.reset(everything, {row: row * NUM_LOOKS + look for row in range(self._num_envs)})
            found |= {words for words in self.words if words}
            if not found:
                break
        return tuple(sorted(found))

    def call(self, method: str, *arguments: Any, number: int | None = None, **named: Any) -> Any:
        """Return the result of a method of the vector environment.

        Args:
            method: Its name.
            arguments: Those of the method.
            number: Seed of the global generators, for environments in this process.
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

    def _read_words(self, mask: np.ndarray, raw: Any, info: Any) -> None:
        """Remember the instructions of the episodes that a reset of some rows (E,) has begun."""
        parts = [info.get(key) for key in INSTRUCTION_KEYS] if isinstance(info, Mapping) else []
        for row in np.flatnonzero(mask).tolist():
            words = None
            for part in [*parts, self.reader.words(raw)]:
                value = part[row] if isinstance(part, np.ndarray | list | tuple) else part
                words = words or as_words(value)
            self.words[row] = words
