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

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from torch import Tensor

from pitune.envs.success import MAX_PROBE_STEPS, read_successes
from pitune.envs.vector_env import EnvSpec, Expert, Observation, StepResult
from pitune.envs.workers.env import DEFAULT_CONTROL_HZ
from pitune.envs.workers.spaces import (
    Arrays,
    batch_action,
    copy_batch,
    empty_obs,
    read_spaces,
    write_row,
)


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
        tasks: Instructions in words.
        control_hz: Steps per simulated second [Hz]. The environment's frame rate by default.
        simulator: Package and version of the simulator.

    Raises:
        ValueError: its autoreset mode is not usable, it has no time limit, or its spaces are not
            usable.
    """

    def __init__(
        self,
        env: GymnasiumVectorEnv,
        *,
        id: str,
        max_episode_steps: int | None = None,
        tasks: tuple[str, ...] = ("",),
        control_hz: float | None = None,
        simulator: str = "",
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
        space_fields = read_spaces(id, env.single_observation_space, env.single_action_space)
        low, high = np.array(space_fields["action_low"]), np.array(space_fields["action_high"])

        # buffers and state of the episodes (E, ...)
        self._env, self._num_envs = env, env.num_envs
        self._takes_seeds = isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        self._middle = (low + high) / 2
        self._obs = empty_obs(space_fields["state_dim"], space_fields["cameras"], env.num_envs)
        self._running = np.zeros(env.num_envs, bool)
        self._num_steps = np.zeros(env.num_envs, np.int64)
        # Ended according to the vector environment, which would raise if they were stepped.
        self._stale = np.zeros(env.num_envs, bool)
        self.spec = EnvSpec(
            id=id,
            num_envs=env.num_envs,
            max_episode_steps=limit,
            control_hz=control_hz or env.metadata.get("render_fps") or DEFAULT_CONTROL_HZ,
            tasks=tasks,
            simulator=simulator,
            deterministic_reset=self._takes_seeds,
            success_signal=self._has_success(id, limit),
            **space_fields,
        )

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        """Start new episodes and return the observation of all E environments.

        Args:
            seed: One seed in [0, 2^31) per environment that is reset (N,) int64.
            env_idx: Environments to reset (N,) int64. All E by default.

        Raises:
            RuntimeError: the vector environment changed others as well.
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
            self._obs[key][mask] = value[mask]
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
        invalid = ~(np.isfinite(new_obs["state"]).all(1) & np.isfinite(reward))
        valid = mask & ~invalid
        for key, value in new_obs.items():
            self._obs[key][valid] = value[valid]
        reward[invalid], terminated[invalid], success[invalid] = 0.0, False, False

        # ends
        self._num_steps[mask] += 1
        timed_out = self._num_steps >= self.spec.max_episode_steps
        truncated |= (timed_out & ~terminated) | invalid
        self._running[terminated | truncated] = False
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
        pictures = self._env.render()
        if pictures is None or any(picture is None for picture in pictures):
            raise RuntimeError(
                f"{self.spec.id} returned no pictures; make it with render_mode='rgb_array'"
            )
        return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))

    def abandon(self) -> None:
        """Give up all running episodes, so that none of them must be stepped."""
        self._running[:] = False

    def expert(self) -> Expert:
        """Raise, because a vector environment has no expert.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.spec.id} has no expert; use an environment that has one")

    def close(self) -> None:
        """Close the vector environment."""
        self._env.close()

    def _has_success(self, id: str, limit: int) -> bool:
        """Return whether `info` reports success in an episode. Some do only at its last step."""
        self._env.reset(seed=0)
        for _ in range(min(limit, MAX_PROBE_STEPS)):
            step = self._env.step(batch_action(self._middle, self._env))
            ended = np.asarray(step[2]) | np.asarray(step[3])
            self._mark_stale(ended)
            if read_successes(step[4], self._num_envs, id) is not None:
                return True
            if ended.any():
                break
        return False

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
        raw, _ = self._env.reset(seed=seed, options=options)
        self._stale[mask] = False
        return copy_batch(raw, self._obs)

    def _step(
        self, values: np.ndarray
    ) -> tuple[Arrays, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step all E environments with `values` (E, d) [robot units].

        Returns:
            Observation, reward, terminated, truncated and success (E,) of this step, before any
            reset that follows within it.
        """
        raw, reward, terminated, truncated, info = self._env.step(batch_action(values, self._env))
        ended = np.asarray(terminated) | np.asarray(truncated)
        self._mark_stale(ended)
        obs = copy_batch(raw, self._obs)
        reported = read_successes(info, self._num_envs, self.spec.id)
        success = np.zeros(self._num_envs, bool) if reported is None else reported
        if reported is not None and not self.spec.success_signal:
            self.spec = replace(self.spec, success_signal=True)

        # in this mode `obs` belongs to the next episode, and the last one is in `info`
        if self._mode is AutoresetMode.SAME_STEP and ended.any():
            final_obs = info["final_obs"]
            for row in np.flatnonzero(ended).tolist():
                if isinstance(final_obs, Mapping):
                    write_row(obs, row, {key: value[row] for key, value in final_obs.items()})
                else:
                    write_row(obs, row, final_obs[row])
        return obs, np.array(reward), np.array(terminated), np.array(truncated), success

    def _mark_stale(self, ended: np.ndarray) -> None:
        """Remember the environments that must be reset before the next step (E,) bool."""
        if self._mode is AutoresetMode.DISABLED:
            self._stale = np.array(ended)

    def _copy_obs(self) -> Observation:
        """Return the last observation of all E environments in tensors of its own."""
        return {key: torch.from_numpy(value.copy()) for key, value in self._obs.items()}
