"""A `gymnasium.vector.VectorEnv`, such as a batched simulator, behind this package's contract.

A vector environment steps all of its E environments or none, while the contract steps some. So:

- An environment that ended is stepped along, with the middle of its action bounds, until its
  reset. What comes out of that is dropped: its last observation stays what it was. Where ended
  environments must be reset before the next step (`AutoresetMode.DISABLED`), they are, to a start
  that nobody sees.
- An environment whose episode runs cannot be held still: leaving it out of `active` is refused.
- With `AutoresetMode.SAME_STEP` the last observation of an episode comes from `info["final_obs"]`.
  `SyncVectorEnv` keeps no copy there: an environment that reuses its observation's memory has
  overwritten it by then, and needs `AutoresetMode.DISABLED`.
- A reset of some environments is Gymnasium's `reset_mask`; whether it left the others alone is
  checked. `SyncVectorEnv` and `AsyncVectorEnv` take one seed per environment with it. Other classes
  need not: for these a reset of all gets the first seed, a reset of some gets none, and the spec
  says `deterministic_reset=False`.

Letters: E envs, A action dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from torch import Tensor

from pitune.envs.gym.spaces import Arrays, empty_obs, read_spaces, success_of, write_row
from pitune.envs.vector_env import EnvSpec, Expert, Observation, StepResult
from pitune.envs.workers.env import DEFAULT_CONTROL_HZ


class GymnasiumVector:
    """E environments of one `gymnasium.vector.VectorEnv`.

    Args:
        env: Made with `AutoresetMode.DISABLED` or `SAME_STEP`.
        id: Name for records and messages.
        max_episode_steps: Time limit, applied besides the environment's own; that one by default.
        tasks: Instructions in words.
        control_hz: Steps per simulated second [Hz]; what the environment says by default.
        simulator: Package and version of the simulator.

    Raises:
        ValueError: it resets in another way, has no time limit, or its spaces are not usable.
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
        limit = max_episode_steps or (env.spec.max_episode_steps if env.spec else None)
        if limit is None:
            raise ValueError(f"{id} has no time limit of its own; pass max_episode_steps")
        known = read_spaces(id, env.single_observation_space, env.single_action_space)
        self._env, self._num_envs = env, env.num_envs
        self._takes_seeds = isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        self._middle = (np.array(known["action_low"]) + np.array(known["action_high"])) / 2
        self._obs = empty_obs(known["state_dim"], known["cameras"], env.num_envs)
        self._running = np.zeros(env.num_envs, bool)
        self._num_steps = np.zeros(env.num_envs, np.int64)
        # Ended as the vector environment sees it, which would refuse to step them.
        self._stale = np.zeros(env.num_envs, bool)
        self.spec = EnvSpec(
            id=id,
            num_envs=env.num_envs,
            max_episode_steps=limit,
            control_hz=control_hz or env.metadata.get("render_fps") or DEFAULT_CONTROL_HZ,
            tasks=tasks,
            simulator=simulator,
            deterministic_reset=self._takes_seeds,
            success_signal=self._has_success(),
            **known,
        )

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        """Start new episodes and return the observation of all E environments.

        Args:
            seed: One seed in [0, 2^31) per environment that is reset (n,) int64.
            env_idx: Which environments to reset (n,) int64; all E by default.

        Raises:
            RuntimeError: the vector environment reset others as well.
        """
        rows = np.arange(self._num_envs) if env_idx is None else env_idx.numpy()
        mask = np.zeros(self._num_envs, bool)
        mask[rows] = True
        fresh = self._reset(mask, dict(zip(rows.tolist(), seed.tolist(), strict=True)))
        others = self._running & ~mask
        for key, value in fresh.items():
            if (value[others] != self._obs[key][others]).any():
                raise RuntimeError(
                    f"{self.spec.id}: a reset of environments {rows.tolist()} changed others too; "
                    "a vector environment is needed that honors options['reset_mask']"
                )
            self._obs[key][mask] = value[mask]
        self._running |= mask
        self._num_steps[mask] = 0
        return self._fresh_obs()

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        """Advance the active environments by one control step.

        Args:
            action: (E, A) [robot units], inside the bounds.
            active: (E,) bool; all environments whose episode runs, and no others.

        Raises:
            ValueError: `active` is something else.
        """
        wanted = active.numpy()
        if (wanted != self._running).any():
            raise ValueError(
                f"{self.spec.id}: active environments {np.flatnonzero(wanted).tolist()} must be "
                f"{np.flatnonzero(self._running).tolist()}, whose episodes run: a vector "
                "environment can hold no other still; use WorkerEnv to step some of them"
            )
        if self._stale.any():
            self._reset(self._stale.copy(), {})
        values = np.where(wanted[:, None], action.numpy(), self._middle)
        fresh, reward, terminated, truncated, success = self._step(values)
        invalid = ~(np.isfinite(fresh["state"]).all(1) & np.isfinite(reward))
        for key, value in fresh.items():
            kept = wanted & ~invalid
            self._obs[key][kept] = value[kept]
        reward[invalid], terminated[invalid], success[invalid] = 0.0, False, False
        self._num_steps[wanted] += 1
        out_of_time = self._num_steps >= self.spec.max_episode_steps
        truncated |= (out_of_time & ~terminated) | invalid
        self._running[terminated | truncated] = False
        flags = (terminated, truncated, success, invalid)
        ended, cut, solved, broken = (torch.from_numpy(flag & wanted) for flag in flags)
        return StepResult(
            self._fresh_obs(),
            torch.from_numpy(np.where(wanted, reward, 0.0).astype(np.float32)),
            ended,
            cut,
            {"success": solved, "invalid": broken},
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

    def expert(self) -> Expert:
        """Refuse: a vector environment has no expert.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.spec.id} has no expert; use an environment that has one")

    def close(self) -> None:
        """Free what the vector environment holds."""
        self._env.close()

    def _has_success(self) -> bool:
        """Return whether `info` tells of success; only a step shows it."""
        self._env.reset(seed=0)
        _, _, terminated, truncated, info = self._env.step(self._native(self._middle))
        self._note_ends(terminated | truncated)
        return success_of(info) is not None or success_of(info.get("final_info", {})) is not None

    def _reset(self, mask: np.ndarray, seeds: dict[int, int]) -> Arrays:
        """Reset the environments in `mask` (E,) and return the observation of all E.

        Args:
            mask: (E,) bool.
            seeds: Environment -> its seed; those without one start anywhere.
        """
        options = None if mask.all() else {"reset_mask": mask.copy()}
        seed: Any
        if self._takes_seeds:
            seed = [seeds.get(row) for row in range(self._num_envs)]
        else:
            seed = next(iter(seeds.values()), None) if mask.all() else None
        raw, _ = self._env.reset(seed=seed, options=options)
        self._stale[mask] = False
        return self._batched(raw)

    def _step(
        self, values: np.ndarray
    ) -> tuple[Arrays, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step all E environments with `values` (E, A) [robot units].

        Returns:
            Observation, reward, terminated, truncated and success (E,) of this step, before any
            reset that follows within it.
        """
        raw, reward, terminated, truncated, info = self._env.step(self._native(values))
        ended = np.asarray(terminated) | np.asarray(truncated)
        self._note_ends(ended)
        obs, success = self._batched(raw), self._flags(success_of(info))
        if self._mode is AutoresetMode.SAME_STEP and ended.any():
            final = info["final_obs"]
            for row in np.flatnonzero(ended).tolist():
                parts = isinstance(final, Mapping)
                one = {key: value[row] for key, value in final.items()} if parts else final[row]
                write_row(obs, row, one)
            success[ended] = self._flags(success_of(info.get("final_info", {})))[ended]
        return obs, np.array(reward), np.array(terminated), np.array(truncated), success

    def _flags(self, value: Any) -> np.ndarray:
        """Return what `info` holds under one name as (E,) bool; missing is False."""
        if value is None:
            return np.zeros(self._num_envs, bool)
        return np.array([bool(one) for one in value])

    def _note_ends(self, ended: np.ndarray) -> None:
        """Remember which environments may not be stepped before a reset (E,) bool."""
        if self._mode is AutoresetMode.DISABLED:
            self._stale = np.array(ended)

    def _native(self, values: np.ndarray) -> np.ndarray:
        """Return actions (E, A) or one for all (A,) in the shape and dtype of the environment."""
        space = self._env.action_space
        shape = (self._num_envs, values.shape[-1])
        return np.broadcast_to(values, shape).reshape(space.shape or shape).astype(space.dtype)

    def _batched(self, raw: Any) -> Arrays:
        """Return copies of the parts of an observation of all E environments."""
        parts = raw if isinstance(raw, Mapping) else {"state": raw}
        batch: Arrays = {}
        for key in self._obs.keys() & parts.keys():
            like, value = self._obs[key], np.asarray(parts[key])
            value = value.transpose(0, 3, 1, 2) if key.startswith("image/") else value
            batch[key] = np.array(value, dtype=like.dtype).reshape(like.shape)
        return batch

    def _fresh_obs(self) -> Observation:
        """Return the last observation of all E environments in tensors that nobody else holds."""
        return {key: torch.from_numpy(value.copy()) for key, value in self._obs.items()}
