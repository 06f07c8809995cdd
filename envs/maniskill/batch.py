"""One ManiSkill simulation of E environments behind the contract, on a GPU, or alone on the CPU.

ManiSkill steps all E environments or none, and writes into the same buffers again and again:

- Everything that is returned is a copy. An environment that ended is stepped along until its reset,
  but what comes out of that is dropped: it keeps its last observation.
- An environment whose episode runs cannot be held still: leaving it out of `active` is refused,
  unless nothing is active.

Two things of ManiSkill's reset are set right, for a seed alone to fix what an episode starts with:

- ManiSkill seeds torch with the first seed of a reset and draws all starts from that. So every
  environment gets a reset of its own, which costs time in large batches (`exact_seeds`).
- Contact forces are those of the last physics step, and the new episode's first observation would
  say that the cube is grasped if the old episode ended so.

Letters: E envs, n rows asked about, S state dim, A action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from gymnasium.spaces import Box
from torch import Tensor

from pitune.envs.maniskill.experts import ManiSkillExpert
from pitune.envs.maniskill.without_vulkan import DRIVER_NEEDED
from pitune.envs.vector_env import EnvSpec, Observation, StepResult


class ManiSkillBatch:
    """E environments of one ManiSkill task that are simulated together.

    Args:
        simulation: ManiSkill's environment, without wrappers.
        task: Its name, e.g. `PickCube-v1`.
        max_episode_steps: Time limit.
        instruction: The task in words.
        cameras: Cameras whose pictures enter the observation.
        dense_reward: Take the simulator's reward instead of 1 on success.
        exact_seeds: Reset one environment after the other, each with its seed. Otherwise a reset is
            one call, its first seed seeds all its starts, and equal seeds are not equal starts.
        deterministic_reset: Whether the seed alone fixes an initial state; for the spec.

    Raises:
        ValueError: there is no such camera, the action space is not a Box, or the reward is to be
            that of success and the task does not tell it.
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
        deterministic_reset: bool = True,
    ) -> None:
        self._simulation, self._task = simulation, task
        self._dense_reward, self._exact_seeds = dense_reward, exact_seeds
        space = simulation.single_action_space
        if not isinstance(space, Box):
            raise ValueError(
                f"maniskill/{task} has action_space={space}; only a Box is supported, choose a "
                "task of one robot"
            )
        tells_success = "success" in simulation.get_info()
        if not (tells_success or dense_reward):
            raise ValueError(
                f"reward='sparse' needs a signal of success, which maniskill/{task} does not tell; "
                "use 'dense'"
            )
        raw = simulation.get_obs()
        _check_cameras(task, cameras, raw)
        self._cameras = cameras
        self._obs = {key: torch.zeros_like(value) for key, value in self._read(raw).items()}
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
            cameras={name: _picture_shape(self._obs[f"image/{name}"]) for name in cameras},
            simulator=simulator_version(),
            device=state.device,
            deterministic_reset=deterministic_reset and (exact_seeds or len(state) == 1),
            success_signal=tells_success,
        )
        self._running = torch.zeros(len(state), dtype=torch.bool, device=state.device)
        self._num_steps = torch.zeros(len(state), dtype=torch.int64, device=state.device)

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        """Start new episodes and return the observation of all E environments.

        Environments that were never reset show zeros.

        Args:
            seed: One seed in [0, 2^31) per environment that is reset (n,) int64.
            env_idx: Which environments to reset (n,) int64; all E by default.
        """
        rows = torch.arange(self.spec.num_envs) if env_idx is None else env_idx
        rows, seeds = rows.to(self.spec.device), seed.tolist()
        if self._exact_seeds:
            for row, number in zip(rows.split(1), seeds, strict=True):
                raw = self._start(row, [number] * self.spec.num_envs)
        else:
            # The first entry seeds torch, so it must be a new one even if environment 0 goes on.
            every = [seeds[0]] * self.spec.num_envs
            for index, number in zip(rows.tolist(), seeds, strict=True):
                every[index] = number
            raw = self._start(rows, every)
        started = torch.zeros_like(self._running)
        started[rows] = True
        self._running = self._running | started
        self._num_steps = torch.where(started, 0, self._num_steps)
        self._keep(self._read(raw), started)
        return self._fresh_obs()

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        """Advance the active environments by one control step.

        Args:
            action: (E, A) [robot units], inside the bounds. Rows that are not active are ignored.
            active: (E,) bool.

        Raises:
            ValueError: an active environment waits for its reset, or a running one is left out.
        """
        if not active.any():
            none = torch.zeros_like(self._running)
            info = {"success": none.clone(), "invalid": none.clone()}
            return StepResult(self._fresh_obs(), none.float(), none.clone(), none, info)
        self._check_active(active)
        # What a row that ended is sent must be finite, for it is stepped along.
        action = torch.where(active[:, None], action, torch.zeros_like(action))
        raw, reward, terminated, _, info = self._simulation.step(action)
        obs = self._read(raw)
        success = info["success"].bool() if self.spec.success_signal else ~active
        reward = (reward if self._dense_reward else success).float()
        sound = obs["state"].isfinite().all(dim=-1) & reward.isfinite()
        counted = active & sound
        self._keep(obs, counted)
        self._num_steps = self._num_steps + active
        terminated = terminated.bool() & counted
        out_of_time = self._num_steps >= self.spec.max_episode_steps
        truncated = active & ~terminated & (out_of_time | ~sound)
        self._running = self._running & ~(terminated | truncated)
        reward = torch.where(counted, reward, torch.zeros_like(reward))
        flags = {"success": success & counted, "invalid": active & ~sound}
        return StepResult(self._fresh_obs(), reward, terminated, truncated, flags)

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
            ValueError: nobody has written an expert for this task or control mode.
        """
        mode = self._simulation.control_mode
        return ManiSkillExpert(self._simulation, self._task, mode, lambda: self._num_steps)

    def close(self) -> None:
        """Free the simulation."""
        self._simulation.close()

    def _start(self, rows: Tensor, seeds: list[int]) -> Any:
        """Reset some rows (n,) with one seed per environment; return ManiSkill's observation."""
        simulation, options = self._simulation, {"env_idx": rows}
        if self.spec.num_envs > 1:
            with without_contacts(simulation.scene, rows, self.spec.num_envs):
                return simulation.reset(seed=seeds, options=options)[0]
        raw, info = simulation.reset(seed=seeds, options=options)
        if not info["reconfigure"]:
            # A physics step from the new start replaces all contacts of the old episode, also
            # those that the physics engine keeps for itself; then the start is set once more.
            simulation.scene.step()
            raw, _ = simulation.reset(seed=seeds, options=options)
        return raw

    def _check_active(self, active: Tensor) -> None:
        """Raise unless exactly the running environments are active."""
        waiting = (active & ~self._running).nonzero().flatten().tolist()
        if waiting:
            raise ValueError(
                f"{self.spec.id}: active environments {waiting} have no running episode; "
                "reset them first, or leave them out of active"
            )
        held = (self._running & ~active).nonzero().flatten().tolist()
        if held:
            raise ValueError(
                f"{self.spec.id}: environments {held} run and are not active, but ManiSkill "
                "cannot hold them still; step all that run, or none"
            )

    def _read(self, raw: Any) -> Observation:
        """Return ManiSkill's observation under our names."""
        if not isinstance(raw, Mapping):
            state, pictures = raw, {}
        else:
            state = flat({"agent": raw["agent"], "extra": raw["extra"]})
            pictures = raw["sensor_data"]
        task_id = torch.zeros(len(state), dtype=torch.int64, device=state.device)
        images = {f"image/{n}": pictures[n]["rgb"].permute(0, 3, 1, 2) for n in self._cameras}
        return {"state": state.float(), **images, "task_id": task_id}

    def _keep(self, obs: Observation, rows: Tensor) -> None:
        """Take over the rows (E,) bool of an observation, by copying: its buffers are reused."""
        for key, value in obs.items():
            mask = rows.reshape(-1, *[1] * (value.ndim - 1))
            self._obs[key] = torch.where(mask, value, self._obs[key])

    def _fresh_obs(self) -> Observation:
        """Return the last observation of all E environments in tensors that nobody else holds."""
        return {key: value.clone() for key, value in self._obs.items()}


@contextlib.contextmanager
def without_contacts(scene: Any, rows: Tensor, num_envs: int) -> Iterator[None]:
    """Let contact impulses that are asked for meanwhile be zero in some environments.

    Args:
        scene: ManiSkill's scene.
        rows: In which environments (n,) int64.
        num_envs: E.
    """
    measure = scene.get_pairwise_contact_impulses

    def masked(*bodies: Any) -> Tensor:
        impulses = measure(*bodies).clone()
        # Bodies that only some environments have come without saying which.
        if len(impulses) == num_envs:
            impulses[rows] = 0
        return impulses

    scene.get_pairwise_contact_impulses = masked
    try:
        yield
    finally:
        # Uncovers the method of the class again.
        del scene.get_pairwise_contact_impulses


def flat(parts: Mapping[str, Any]) -> Tensor:
    """Return all numbers of a nested dict of (E,) and (E, n) tensors, side by side (E, S)."""
    columns = [
        flat(part) if isinstance(part, Mapping) else part.reshape(len(part), -1).float()
        for part in parts.values()
        if not isinstance(part, Mapping) or part
    ]
    return torch.cat(columns, dim=-1)


def simulator_version() -> str:
    """Return the versions of ManiSkill and its physics engine's package."""
    return ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("mani_skill", "sapien")
    )


def _picture_shape(pictures: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = pictures.shape
    return channels, height, width


def _check_cameras(task: str, cameras: tuple[str, ...], raw: Any) -> None:
    known = sorted(raw["sensor_data"]) if isinstance(raw, Mapping) else []
    unknown = sorted(set(cameras) - set(known))
    if unknown:
        raise ValueError(f"cameras={unknown} do not exist in maniskill/{task}; it has {known}")
