"""A task with two equally good solutions, which needs a policy with two modes.

In `mock/TwoGoals` a point starts between two goals. To reach either one is success, and the time
suffices only for a straight way. The mean of the two ways leads to neither goal. So a Gaussian
policy fails when it is cloned from an expert that uses both ways, and a flow policy does not. Tests
use the task to check that fine-tuning keeps both modes.

Letters: E envs, Y, X image pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pitune.envs.vector_env import EnvSpec, Expert, Observation, StepResult

STEP = 0.1
"""Displacement of a full action [m]."""
RADIUS = 0.08
"""Distance below which a goal is reached [m]."""
DISTANCE = 0.35
"""Distance from the middle to each goal [m]."""
GOALS = torch.tensor([[0.5 - DISTANCE, 0.5], [0.5 + DISTANCE, 0.5]])
"""Left and right (2, 2) [m]."""
JITTER = 0.02
"""Largest distance of a start from the middle along each axis [m]."""


class TwoGoals:
    """A point between two goals. The state is its position alone (2) [m].

    Example:
        >>> env = TwoGoals(2)
        >>> env.reset(torch.tensor([0, 1]))["state"].shape
        torch.Size([2, 2])

    Args:
        num_envs: E.
        max_episode_steps: Time limit.
    """

    def __init__(self, num_envs: int, *, max_episode_steps: int = 4) -> None:
        self.spec = EnvSpec(
            id="mock/TwoGoals",
            num_envs=num_envs,
            state_dim=2,
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            max_episode_steps=max_episode_steps,
            control_hz=10.0,
            tasks=("reach either goal",),
            simulator="none",
        )
        self.goals = GOALS.clone()
        self.point = torch.zeros(num_envs, 2)
        self.chosen = torch.zeros(num_envs, dtype=torch.int64)
        """The goal of the expert (E,). Nothing else depends on it."""
        self.steps = torch.zeros(num_envs, dtype=torch.int64)

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        env_idx = torch.arange(self.spec.num_envs) if env_idx is None else env_idx
        for env, number in zip(env_idx.tolist(), seed.tolist(), strict=True):
            generator = torch.Generator().manual_seed(number)
            self.point[env] = 0.5 + JITTER * (2 * torch.rand(2, generator=generator) - 1)
            self.chosen[env] = torch.randint(2, (), generator=generator)
        self.steps[env_idx] = 0
        return self._obs()

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        next_point = (self.point + STEP * action).clamp(0, 1)
        self.point = torch.where(active[:, None], next_point, self.point)
        self.steps = self.steps + active
        success = (self.reached() >= 0) & active
        truncated = (self.steps >= self.spec.max_episode_steps) & active & ~success
        info = {"success": success, "invalid": torch.zeros_like(success)}
        return StepResult(self._obs(), success.float(), success, truncated, info)

    def reached(self) -> Tensor:
        """Return the goal that each point has reached (E,) int64: 0 left, 1 right, -1 neither."""
        return reached_goal(self.point)

    def render(self) -> Tensor:
        """Return pictures (E, 64, 64, 3) uint8."""
        pictures = torch.zeros(self.spec.num_envs, 64, 64, 3, dtype=torch.uint8)
        envs = torch.arange(self.spec.num_envs)
        for goal in self.goals:
            x, y = (goal * 63).round().long().tolist()
            pictures[:, y, x] = torch.tensor([0, 255, 0], dtype=torch.uint8)
        x, y = (self.point * 63).round().long().unbind(-1)
        pictures[envs, y, x] = 255
        return pictures

    def expert(self) -> Expert:
        return TwoGoalsExpert(self)

    def close(self) -> None:
        """Nothing to free."""

    def _obs(self) -> Observation:
        return {"state": self.point.clone(), "task_id": torch.zeros_like(self.chosen)}


def reached_goal(point: Tensor) -> Tensor:
    """Return the goal that points (E, 2) [m] have reached (E,) int64: 0 left, 1 right, -1 neither.

    Example:
        >>> reached_goal(torch.tensor([[0.15, 0.5], [0.5, 0.5]])).tolist()
        [0, -1]
    """
    # (E, 1, 2) - (2, 2) -> (E, 2, 2) -> (E, 2)
    near = (point[:, None] - GOALS).norm(dim=-1) < RADIUS
    return torch.where(near.any(1), near.long().argmax(1), -1)


class TwoGoalsExpert:
    """Moves straight to the goal that the episode's seed chose.

    Example:
        >>> env = TwoGoals(2)
        >>> obs = env.reset(torch.tensor([0, 1]))
        >>> TwoGoalsExpert(env).act().shape
        torch.Size([2, 2])

    Args:
        env: The environment to act in.
    """

    def __init__(self, env: TwoGoals) -> None:
        self.env = env

    def act(self) -> Tensor:
        offset = (self.env.goals[self.env.chosen] - self.env.point) / STEP
        return offset / offset.abs().max(dim=-1, keepdim=True).values.clamp(min=1)
