"""One ManiSkill simulation of E environments under the contract, on a GPU, or alone on the CPU.

ManiSkill steps all E environments or none, and reuses its buffers:

- Everything that is returned is a copy. An environment that ended is still stepped until its reset,
  but the results are discarded, and its last observation is kept.
- An environment whose episode runs cannot be held still: leaving it out of `active` is an error,
  unless nothing is active.

The seed alone fixes the start of an episode, which `resets` and `start_bank` bring about.

Letters: E envs, N rows, d robot action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch
from gymnasium.spaces import Box
from torch import Tensor

from pitune.envs.maniskill.experts import ManiSkillExpert
from pitune.envs.maniskill.observation import Sensors, picture_shape, read_obs
from pitune.envs.maniskill.resets import Resets
from pitune.envs.maniskill.start_bank import StartBank
from pitune.envs.rendering.vulkan import DRIVER_NEEDED
from pitune.envs.success import read_successes
from pitune.envs.vector_env import EnvSpec, Observation, StepResult
from pitune.envs.workers.env import MAX_FAILURES


class ManiSkillBatch:
    """E environments of one ManiSkill task that are simulated together.

    Example:
        >>> from pitune import envs
        >>> config = envs.config_for("maniskill/PickCube-v1")
        >>> batch = make_maniskill_batch("PickCube-v1", 1, config, "cpu")  # doctest: +SKIP

    Args:
        simulation: ManiSkill's environment, without wrappers.
        task: Its name, e.g. `PickCube-v1`.
        max_episode_steps: Time limit.
        instruction: The task in words.
        cameras: Cameras whose pictures enter the observation.
        dense_reward: Use the simulator's reward instead of 1 on success.
        exact_seeds: Whether a start depends on its own seed alone. Otherwise the first seed of a
            reset determines all its starts, and equal seeds are not equal starts.
        bank: Starts by seed, by which one call resets many environments with exact seeds. Without
            it that takes a call for each environment.
        deterministic_reset: Whether the seed alone fixes an initial state, apart from this.
        max_failures: Episodes in a row that may have numbers that are not finite.

    Raises:
        ValueError: a camera is unknown, the action space is not a Box, or the reward is sparse and
            the task reports no success.
    """

    def __init__(
        self,
        simulation: Any,
        *,
        task: str,
        max_episode_steps: int,
        instruction: str = "",
        cameras: tuple[str, ...] = (),
        dense_reward: bool = False,
        exact_seeds: bool = True,
        bank: StartBank | None = None,
        deterministic_reset: bool = True,
        max_failures: int = MAX_FAILURES,
    ) -> None:
        self._max_failures = max_failures
        self._simulation, self._task = simulation, task
        self._dense_reward = dense_reward
        self._bank = bank
        self._resets = Resets(simulation, exact_seeds=exact_seeds, bank=bank)
        # action space and success signal
        space = simulation.single_action_space
        if not isinstance(space, Box):
            raise ValueError(
                f"maniskill/{task} has action_space={space}; only a Box is supported, choose a "
                "task of one robot"
            )
        has_success = "success" in simulation.get_info()
        if not (has_success or dense_reward):
            raise ValueError(
                f"reward='sparse' needs a success signal, which maniskill/{task} does not have; "
                "use 'dense'"
            )

        # an observation, for the shapes
        self._sensors = Sensors(simulation, task, cameras)
        example = read_obs(simulation.get_obs()) | self._sensors.draw()
        self._obs = {key: torch.zeros_like(value) for key, value in example.items()}
        state = self._obs["state"]
        self.spec = EnvSpec(
            id=f"maniskill/{task}",
            num_envs=len(state),
            state_dim=state.shape[1],
            action_low=tuple(space.low.tolist()),
            action_high=tuple(space.high.tolist()),
            max_episode_steps=max_episode_steps,
            control_hz=float(simulation.control_freq),
            tasks=(instruction,),
            cameras={name: picture_shape(self._obs[f"image/{name}"]) for name in cameras},
            simulator=simulator_version(),
            device=state.device,
            deterministic_reset=deterministic_reset and (exact_seeds or len(state) == 1),
            success_signal=has_success,
        )

        # state of the episodes (E,)
        self._running = torch.zeros(len(state), dtype=torch.bool, device=state.device)
        self._num_steps = torch.zeros(len(state), dtype=torch.int64, device=state.device)
        self._lost = torch.zeros_like(self._running)  # with a start that is not finite
        self._num_failures = torch.zeros_like(self._num_steps)
        self._drawn = torch.zeros_like(self._running)  # with pictures of the present state

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        """Start new episodes and return the observation of all E environments.

        An environment before its first reset shows zeros.

        Args:
            seed: One seed in [0, 2^31) per environment that is reset (N,) int64.
            env_idx: Environments to reset (N,) int64. All E by default.
        """
        rows = torch.arange(self.spec.num_envs) if env_idx is None else env_idx
        rows, seeds = rows.to(self.spec.device), seed.tolist()
        raw = self._resets.start(rows, seeds)

        # counters of the new episodes
        started = torch.zeros_like(self._running)
        started[rows] = True
        self._running = self._running | started
        self._num_steps = torch.where(started, 0, self._num_steps)
        obs = read_obs(raw)
        is_finite = obs["state"].isfinite().all(dim=-1)
        self._lost = torch.where(started, ~is_finite, self._lost)
        self._update_obs(obs, started & is_finite)
        self._drawn = self._drawn & ~started
        self.draw(started & is_finite)
        return self._copy_obs()

    def step(self, action: Tensor, active: Tensor, pictures: Tensor | None = None) -> StepResult:
        """Advance the active environments by one control step.

        Args:
            action: (E, d) [robot units], inside the bounds. Rows that are not active are ignored.
            active: (E,) bool.
            pictures: Those whose pictures are read (E,) bool, see `DrawsOnRequest.step`. If there
                are any, one call draws all E.

        Raises:
            ValueError: an active environment has no running episode, or a running one is left out.
        """
        if not active.any():
            none = torch.zeros_like(self._running)
            info = {"success": none.clone(), "invalid": none.clone()}
            return StepResult(self._copy_obs(), none.float(), none.clone(), none, info)
        self._check_active(active)
        # Rows that ended are stepped too, and their actions must be finite.
        action = torch.where(active[:, None], action, torch.zeros_like(action))
        raw, reward, terminated, _, info = self._simulation.step(action)

        # observation, success and reward (E,)
        obs = read_obs(raw)
        success = self._success(info["success"]) if self.spec.success_signal else ~active
        reward = (reward if self._dense_reward else success).float()

        # rows with numbers that are not finite keep their last observation
        is_finite = obs["state"].isfinite().all(dim=-1) & reward.isfinite() & ~self._lost
        self._lost = self._lost & ~active
        valid, invalid = active & is_finite, active & ~is_finite
        self._update_obs(obs, valid)
        self._num_steps = self._num_steps + active

        # ends
        terminated = terminated.bool() & valid
        timed_out = self._num_steps >= self.spec.max_episode_steps
        truncated = active & ~terminated & (timed_out | invalid)
        self._running = self._running & ~(terminated | truncated)
        self._count_failures(invalid, (terminated | truncated) & valid)
        self._drawn = self._drawn & ~valid
        read = active if pictures is None else pictures
        self.draw(valid & (read | terminated | truncated))
        reward = torch.where(valid, reward, torch.zeros_like(reward))
        flags = {"success": success & valid, "invalid": invalid}
        return StepResult(self._copy_obs(), reward, terminated, truncated, flags)

    def draw(self, rows: Tensor) -> Observation:
        """Return the pictures of all E environments, after those of `rows` (E,) bool are drawn."""
        rows = rows & ~self._drawn
        if rows.any():
            self._update_obs(self._sensors.draw(), rows)
            self._drawn = self._drawn | rows
        return {key: self._obs[key].clone() for key in self._obs if key.startswith("image/")}

    def abandon(self) -> None:
        """Give up all running episodes, so that none of them must be stepped."""
        self._running = torch.zeros_like(self._running)

    def render(self) -> Tensor:
        """Return one picture of every environment (E, Y, X, 3) uint8.

        Raises:
            RuntimeError: there is no Vulkan driver, or the task has no camera for people.
        """
        if not self._simulation.scene.can_render():
            raise RuntimeError(f"{self.spec.id} cannot render: {DRIVER_NEEDED}")
        picture = self._simulation.render_rgb_array()
        if picture is None:
            raise RuntimeError(f"{self.spec.id} cannot render: it has no camera for people")
        return picture.clone()

    def expert(self) -> ManiSkillExpert:
        """Return a new expert for these environments.

        Raises:
            ValueError: there is no expert for this task or control mode.
        """
        mode = self._simulation.control_mode
        return ManiSkillExpert(self._simulation, self._task, mode, lambda: self._num_steps)

    def close(self) -> None:
        """Free the simulation, and end the processes of its bank."""
        self._simulation.close()
        if self._bank is not None:
            self._bank.close()

    def _count_failures(self, invalid: Tensor, ended: Tensor) -> None:
        """Count invalid episodes in a row (E,), and raise where there are too many."""
        self._num_failures = torch.where(ended, 0, self._num_failures + invalid.long())
        if (self._num_failures >= self._max_failures).any():
            raise RuntimeError(
                f"{self.spec.id}: environment {int(self._num_failures.argmax())} returned numbers "
                f"that are not finite in {self._max_failures} episodes in a row (max_failures)"
            )

    def _success(self, value: Any) -> Tensor:
        """Return the simulator's success flags (E,) bool, after a check unless they are bool."""
        if isinstance(value, Tensor) and value.dtype == torch.bool:
            return value
        flags = read_successes({"success": value}, self.spec.num_envs, self.spec.id)
        return torch.as_tensor(flags, device=self.spec.device)

    def _check_active(self, active: Tensor) -> None:
        """Raise unless exactly the running environments are active."""
        waiting = (active & ~self._running).nonzero().flatten().tolist()
        if waiting:
            raise ValueError(
                f"{self.spec.id}: active environments {waiting} have no running episode; "
                "reset them first, or leave them out of active"
            )
        left_out = (self._running & ~active).nonzero().flatten().tolist()
        if left_out:
            raise ValueError(
                f"{self.spec.id}: environments {left_out} run and are not active, but ManiSkill "
                "cannot hold them still; step all running environments, or none"
            )

    def _update_obs(self, obs: Observation, rows: Tensor) -> None:
        """Copy the rows (E,) bool of a new observation, because ManiSkill reuses its buffers."""
        for key, value in obs.items():
            mask = rows.reshape(-1, *[1] * (value.ndim - 1))  # (E,) -> (E, 1, ...)
            self._obs[key] = torch.where(mask, value, self._obs[key])

    def _copy_obs(self) -> Observation:
        """Return the last observation of all E environments in tensors of its own."""
        return {key: value.clone() for key, value in self._obs.items()}


def simulator_version() -> str:
    """Return the versions of ManiSkill and of its physics engine."""
    return ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("mani_skill", "sapien")
    )
