"""Environments without a simulator: a task with a known optimum, and scripted episode ends.

`mock/Reach` is a point that must come near a goal in the plane. Along the straight line that takes
ceil((distance - radius) / step) steps; the corners of the action box save one now and then. It can
show itself to cameras and, with two goals, takes its instruction from the prompt. `mock/Script`
shows (environment, episode seed, time) as its state and ends when its script says so: it exists to
trace frames through the bookkeeping.

Letters: E envs, C, Y, X image channels and pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pitune.envs.vector_env import EnvSpec, Expert, Observation, StepResult

STEP = 0.1
"""Distance that a full action moves the point [m]."""
RADIUS = 0.05
"""Distance at which the goal counts as reached [m]."""


class Reach:
    """A point in the unit square moves to one of its goals.

    State: point, then each goal (2 numbers each) [m]. Action: step direction in [-1, 1]^2.

    Args:
        num_envs: E.
        num_tasks: 1, or 2 goals of which the prompt names one.
        cameras: Names of cameras, each of which sees the whole square.
        image_size: Y = X [pixels].
        reward: 1 on success, or also the (negative) distance at each step.
        max_episode_steps: Time limit.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        num_tasks: int = 1,
        cameras: tuple[str, ...] = (),
        image_size: int = 16,
        reward: str = "sparse",
        max_episode_steps: int = 20,
    ) -> None:
        tasks = ("reach the green goal", "reach the red goal")
        if not 1 <= num_tasks <= len(tasks):
            raise ValueError(f"num_tasks={num_tasks} must be 1 or {len(tasks)}")
        self.spec = EnvSpec(
            id="mock/Reach",
            num_envs=num_envs,
            state_dim=2 + 2 * num_tasks,
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            max_episode_steps=max_episode_steps,
            control_hz=10.0,
            tasks=tasks[:num_tasks],
            cameras=dict.fromkeys(cameras, (3, image_size, image_size)),
            simulator="none",
        )
        self.dense = reward == "dense"
        self.point = torch.zeros(num_envs, 2)
        self.goals = torch.zeros(num_envs, num_tasks, 2)
        self.task_id = torch.zeros(num_envs, dtype=torch.int64)
        self.steps = torch.zeros(num_envs, dtype=torch.int64)

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        env_idx = torch.arange(self.spec.num_envs) if env_idx is None else env_idx
        for env, number in zip(env_idx.tolist(), seed.tolist(), strict=True):
            generator = torch.Generator().manual_seed(number)
            places = torch.rand(1 + len(self.spec.tasks), 2, generator=generator)
            self.point[env], self.goals[env] = places[0], places[1:]
            self.task_id[env] = torch.randint(len(self.spec.tasks), (), generator=generator)
        self.steps[env_idx] = 0
        return self._obs()

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        moved = (self.point + STEP * action).clamp(0, 1)
        self.point = torch.where(active[:, None], moved, self.point)
        self.steps = self.steps + active
        distance = (self.point - self._goal()).norm(dim=-1)
        success = (distance < RADIUS) & active
        truncated = (self.steps >= self.spec.max_episode_steps) & active & ~success
        reward = success.float() - (distance * active if self.dense else 0.0)
        info = {"success": success, "invalid": torch.zeros_like(success)}
        return StepResult(self._obs(), reward, success, truncated, info)

    def render(self) -> Tensor:
        return self._pictures(64).permute(0, 2, 3, 1)

    def expert(self) -> Expert:
        return ReachExpert(self)

    def close(self) -> None:
        """Nothing to free."""

    def optimal_steps(self) -> Tensor:
        """Return how many steps along the straight line the goal needs from here (E,) int64."""
        offset = (self._goal() - self.point).abs()
        straight = offset.norm(dim=-1)
        longest = STEP * straight / offset.max(dim=-1).values  # a full step in the goal's direction
        return ((straight - RADIUS) / longest).ceil().clamp(min=1).to(torch.int64)

    def _goal(self) -> Tensor:
        return self.goals[torch.arange(self.spec.num_envs), self.task_id]

    def _obs(self) -> Observation:
        obs = {
            "state": torch.cat([self.point, self.goals.flatten(1)], dim=1),
            "task_id": self.task_id.clone(),
        }
        for camera, (_, size, _) in self.spec.cameras.items():
            obs[f"image/{camera}"] = self._pictures(size)
        return obs

    def _pictures(self, size: int) -> Tensor:
        """Return the square from above (E, 3, size, size): goals green and red, the point white."""
        pictures = torch.zeros(self.spec.num_envs, 3, size, size, dtype=torch.uint8)
        envs = torch.arange(self.spec.num_envs)
        colors = torch.tensor([[0, 255, 0], [255, 0, 0]], dtype=torch.uint8)
        for goal in range(len(self.spec.tasks)):
            x, y = (self.goals[:, goal] * (size - 1)).round().long().unbind(-1)
            pictures[envs, :, y, x] = colors[goal]
        x, y = (self.point * (size - 1)).round().long().unbind(-1)
        pictures[envs, :, y, x] = 255
        return pictures


class ReachExpert:
    """Moves along the straight line to the goal, as fast as the bounds allow."""

    def __init__(self, env: Reach) -> None:
        self.env = env

    def act(self) -> Tensor:
        offset = (self.env._goal() - self.env.point) / STEP
        return offset / offset.abs().max(dim=-1, keepdim=True).values.clamp(min=1)


class Script:
    """State (environment, episode seed, time); ends by a script.

    Args:
        num_envs: E.
        lengths: After how many steps each environment's episodes end (E).
        ends: How they end: "success", "failure" (terminated without success) or "time" (E).
        reuse_buffer: Return the same tensor from every step, as some simulators do.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        lengths: tuple[int, ...],
        ends: tuple[str, ...],
        reuse_buffer: bool = False,
    ) -> None:
        if not len(lengths) == len(ends) == num_envs:
            raise ValueError(
                f"lengths has {len(lengths)} and ends {len(ends)} entries; num_envs={num_envs} "
                "of each are needed"
            )
        self.spec = EnvSpec(
            id="mock/Script",
            num_envs=num_envs,
            state_dim=3,
            action_low=(-1.0,),
            action_high=(1.0,),
            max_episode_steps=max(lengths),
            control_hz=10.0,
            tasks=("follow the script",),
            simulator="none",
        )
        self.lengths = torch.tensor(lengths)
        self.ends = {kind: torch.tensor([end == kind for end in ends]) for kind in set(ends)}
        self.reuse_buffer = reuse_buffer
        self.state = torch.zeros(num_envs, 3)
        self.state[:, 0] = torch.arange(num_envs)

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        env_idx = torch.arange(self.spec.num_envs) if env_idx is None else env_idx
        self.state[env_idx, 1] = (seed % 1000).float()
        self.state[env_idx, 2] = 0
        return self._obs()

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        self.state[:, 2] += active
        ended = (self.state[:, 2] >= self.lengths) & active
        none = torch.zeros_like(ended)
        success = ended & self.ends.get("success", none)
        terminated = success | (ended & self.ends.get("failure", none))
        reward = self.state[:, 2] * active  # the time: tells which steps were counted
        info = {"success": success, "invalid": none}
        return StepResult(self._obs(), reward, terminated, ended & ~terminated, info)

    def render(self) -> Tensor:
        raise RuntimeError("mock/Script has nothing to look at; use mock/Reach")

    def expert(self) -> Expert:
        raise ValueError("mock/Script has no expert; use mock/Reach")

    def close(self) -> None:
        """Nothing to free."""

    def _obs(self) -> Observation:
        state = self.state if self.reuse_buffer else self.state.clone()
        return {"state": state, "task_id": torch.zeros(self.spec.num_envs, dtype=torch.int64)}
