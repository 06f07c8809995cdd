"""A task that needs a memory: the goal is shown only in the first observation of an episode.

In `mock/Recall` a point waits in the middle of a square until the gate opens, and then moves to one
of the goals on a circle. The direction of the right one is a part of the first observation, and
zeros stand there later. While the gate is closed, actions have no effect, so the position holds no
trace of the goal. The first goal that the point comes near ends the episode. A policy without a
memory, whose decisions execute at most `WAIT` actions, can only guess: it solves one episode in
`num_goals`, whatever it has learned.

Letters: E envs, Y, X image pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pitune.envs.vector_env import EnvSpec, Expert, Observation, StepResult

STEP = 0.1
"""Displacement of a full action [m]."""
RADIUS = 0.1
"""Distance below which a goal is reached [m]."""
DISTANCE = 0.35
"""Distance from the middle to each goal [m]."""
WAIT = 8
"""Steps at the beginning of an episode that have no effect."""


class Recall:
    """A point that must move to the goal which only the first observation shows.

    State: point (2) [m], direction of the goal (2), and 1 where the next action moves the point.

    Example:
        >>> env = Recall(2)
        >>> env.reset(torch.tensor([0, 1]))["state"].shape
        torch.Size([2, 5])

    Args:
        num_envs: E.
        num_goals: Number of goals.
        max_episode_steps: Time limit.
    """

    def __init__(self, num_envs: int, *, num_goals: int = 4, max_episode_steps: int = 16) -> None:
        self.spec = EnvSpec(
            id="mock/Recall",
            num_envs=num_envs,
            state_dim=5,
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            max_episode_steps=max_episode_steps,
            control_hz=10.0,
            tasks=("reach the goal that was shown",),
            simulator="none",
        )
        angle = 2 * math.pi * torch.arange(num_goals) / num_goals
        self.directions = torch.stack([angle.cos(), angle.sin()], dim=1)  # (goals, 2)
        self.goals = 0.5 + DISTANCE * self.directions
        self.point = torch.full((num_envs, 2), 0.5)
        self.chosen = torch.zeros(num_envs, dtype=torch.int64)
        """The goal of each episode (E,)."""
        self.steps = torch.zeros(num_envs, dtype=torch.int64)

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        env_idx = torch.arange(self.spec.num_envs) if env_idx is None else env_idx
        # the seed fixes the goal
        for env, number in zip(env_idx.tolist(), seed.tolist(), strict=True):
            generator = torch.Generator().manual_seed(number)
            self.chosen[env] = torch.randint(len(self.goals), (), generator=generator)
        self.point[env_idx] = 0.5
        self.steps[env_idx] = 0
        return self._obs()

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        # move where the gate is open
        moves = active & (self.steps >= WAIT)
        next_point = (self.point + STEP * action).clamp(0, 1)
        self.point = torch.where(moves[:, None], next_point, self.point)
        self.steps = self.steps + active
        # (E, 1, 2) - (goals, 2) -> (E, goals)
        # the first goal that is near ends the episode, and only the right one is a success
        near = ((self.point[:, None] - self.goals).norm(dim=-1) < RADIUS) & active[:, None]
        success = near[torch.arange(len(near)), self.chosen]
        terminated = near.any(1)
        truncated = (self.steps >= self.spec.max_episode_steps) & active & ~terminated
        info = {"success": success, "invalid": torch.zeros_like(success)}
        return StepResult(self._obs(), success.float(), terminated, truncated, info)

    def render(self) -> Tensor:
        """Return pictures (E, 64, 64, 3) uint8: a white point, and the right goal in green."""
        pictures = torch.zeros(self.spec.num_envs, 64, 64, 3, dtype=torch.uint8)
        envs = torch.arange(self.spec.num_envs)
        for goal, (x, y) in enumerate((self.goals * 63).round().long().tolist()):
            is_right = (self.chosen == goal)[:, None]  # (E, 1)
            colors = torch.tensor([[255, 0, 0], [0, 255, 0]], dtype=torch.uint8)
            pictures[:, y, x] = torch.where(is_right, colors[1], colors[0])
        x, y = (self.point * 63).round().long().unbind(-1)
        pictures[envs, y, x] = 255
        return pictures

    def expert(self) -> Expert:
        return RecallExpert(self)

    def close(self) -> None:
        """Nothing to free."""

    def _obs(self) -> Observation:
        # the direction is shown once, zeros stand there later
        is_first = (self.steps == 0)[:, None]
        shown = torch.where(is_first, self.directions[self.chosen], 0.0)  # (E, 2)
        opened = (self.steps >= WAIT).float()[:, None]
        state = torch.cat([self.point, shown, opened], dim=1)
        return {"state": state, "task_id": torch.zeros_like(self.chosen)}


class RecallExpert:
    """Waits until the gate opens, and moves straight to the right goal.

    Example:
        >>> env = Recall(2)
        >>> obs = env.reset(torch.tensor([0, 1]))
        >>> RecallExpert(env).act().tolist()
        [[0.0, 0.0], [0.0, 0.0]]

    Args:
        env: The environment to act in.
    """

    def __init__(self, env: Recall) -> None:
        self.env = env

    def act(self) -> Tensor:
        env = self.env
        # a common factor for both entries, so that the limit does not turn the direction
        offset = (env.goals[env.chosen] - env.point) / STEP
        action = offset / offset.abs().max(dim=-1, keepdim=True).values.clamp(min=1)
        return torch.where((env.steps >= WAIT)[:, None], action, 0.0)
