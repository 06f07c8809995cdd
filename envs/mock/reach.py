"""Environments without a simulator: a task with a known optimum, and scripted episode ends.

In `mock/Reach` a point must come near a goal in the plane. Along the straight line this takes
ceil((distance - radius) / step) steps. The corners of the action box sometimes save one. It has
cameras, and with two goals the instruction names the right one. The state of `mock/Script` is
(environment, episode seed, time), and its episodes end at fixed times. Tests use it to follow
single frames through the bookkeeping.

Letters: E envs, Y, X image pixels.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from pitune.envs.vector_env import EnvSpec, Expert, Observation, StepResult

STEP = 0.1
"""Displacement of a full action [m]."""
RADIUS = 0.05
"""Distance below which the goal is reached [m]."""


class Reach:
    """A point in the unit square moves to one of its goals.

    State: point, then each goal (2 numbers each) [m]. Action: step direction in [-1, 1]^2.

    Example:
        >>> env = Reach(3, num_tasks=2, cameras=("top",), image_size=8)
        >>> obs = env.reset(torch.tensor([0, 1, 2]))
        >>> (obs["state"].shape, obs["image/top"].shape)
        (torch.Size([3, 6]), torch.Size([3, 3, 8, 8]))

    Args:
        num_envs: E.
        num_tasks: Number of goals, 1 or 2. With 2 the instruction names one of them.
        cameras: Names of cameras, each of which shows the whole square.
        image_size: Y = X [pixels].
        reward: `sparse` is 1 on success, `dense` also subtracts the distance at each step.
        max_episode_steps: Time limit.

    Raises:
        ValueError: there are not 1 or 2 tasks.
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
            raise ValueError(f"num_tasks={num_tasks} of mock/Reach must be 1 or {len(tasks)}")
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

        # state of the episodes (E, ...)
        self.dense = reward == "dense"
        self.point = torch.zeros(num_envs, 2)
        self.goals = torch.zeros(num_envs, num_tasks, 2)
        self.task_id = torch.zeros(num_envs, dtype=torch.int64)
        self.steps = torch.zeros(num_envs, dtype=torch.int64)
        self.images = {
            camera: torch.zeros(num_envs, *shape, dtype=torch.uint8)
            for camera, shape in self.spec.cameras.items()
        }

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        env_idx = torch.arange(self.spec.num_envs) if env_idx is None else env_idx
        for env, number in zip(env_idx.tolist(), seed.tolist(), strict=True):
            generator = torch.Generator().manual_seed(number)
            positions = torch.rand(1 + len(self.spec.tasks), 2, generator=generator)
            self.point[env], self.goals[env] = positions[0], positions[1:]
            self.task_id[env] = torch.randint(len(self.spec.tasks), (), generator=generator)
        self.steps[env_idx] = 0
        self._update_images(env_idx)
        return self._obs()

    def step(self, action: Tensor, active: Tensor, pictures: Tensor | None = None) -> StepResult:
        next_point = (self.point + STEP * action).clamp(0, 1)
        self.point = torch.where(active[:, None], next_point, self.point)
        self.steps = self.steps + active
        distance = (self.point - self._goal()).norm(dim=-1)
        success = (distance < RADIUS) & active
        truncated = (self.steps >= self.spec.max_episode_steps) & active & ~success
        reward = success.float() - (distance * active if self.dense else 0.0)
        info = {"success": success, "invalid": torch.zeros_like(success)}
        read = active if pictures is None else pictures
        self._update_images((active & (read | success | truncated)).nonzero().flatten())
        return StepResult(self._obs(), reward, success, truncated, info)

    def render(self) -> Tensor:
        """Return pictures (E, 64, 64, 3) uint8."""
        return rearrange(self._pictures(64), "E C Y X -> E Y X C")

    def expert(self) -> Expert:
        return ReachExpert(self)

    def close(self) -> None:
        """Nothing to free."""

    def optimal_steps(self) -> Tensor:
        """Return the steps from the current point to the goal along the line (E,) int64."""
        offset = (self._goal() - self.point).abs()
        straight = offset.norm(dim=-1)
        # A full step in the goal's direction moves STEP along the longer axis.
        longest = STEP * straight / offset.max(dim=-1).values
        return ((straight - RADIUS) / longest).ceil().clamp(min=1).to(torch.int64)

    def _goal(self) -> Tensor:
        """Return the goal that the instruction names (E, 2) [m]."""
        return self.goals[torch.arange(self.spec.num_envs), self.task_id]

    def _obs(self) -> Observation:
        obs = {
            "state": torch.cat([self.point, self.goals.flatten(1)], dim=1),
            "task_id": self.task_id.clone(),
        }
        return obs | {f"image/{camera}": image.clone() for camera, image in self.images.items()}

    def _update_images(self, rows: Tensor) -> None:
        """Draw the pictures of some environments (N,) again."""
        for camera, (_, size, _) in self.spec.cameras.items():
            self.images[camera][rows] = self._pictures(size)[rows]

    def _pictures(self, size: int) -> Tensor:
        """Return the square (E, 3, Y, X) uint8 with green and red goals and a white point."""
        pictures = torch.zeros(self.spec.num_envs, 3, size, size, dtype=torch.uint8)
        envs = torch.arange(self.spec.num_envs)
        colors = torch.tensor([[0, 255, 0], [255, 0, 0]], dtype=torch.uint8)
        for goal in range(len(self.spec.tasks)):
            x, y = (self.goals[:, goal] * (size - 1)).round().long().unbind(-1)  # (E,) each
            pictures[envs, :, y, x] = colors[goal]
        x, y = (self.point * (size - 1)).round().long().unbind(-1)
        pictures[envs, :, y, x] = 255
        return pictures


class ReachExpert:
    """Moves along the straight line to the goal, as fast as the bounds allow.

    Example:
        >>> env = Reach(2)
        >>> obs = env.reset(torch.tensor([0, 1]))
        >>> ReachExpert(env).act().abs().max().item()
        1.0

    Args:
        env: The environment to act in.
    """

    def __init__(self, env: Reach) -> None:
        self.env = env

    def act(self) -> Tensor:
        offset = (self.env._goal() - self.env.point) / STEP
        return offset / offset.abs().max(dim=-1, keepdim=True).values.clamp(min=1)


class Script:
    """State (environment, episode seed, time). The episodes end at fixed times.

    Example:
        >>> env = Script(2, lengths=(1, 3), ends=("success", "time"))
        >>> obs = env.reset(torch.tensor([7, 8]))
        >>> result = env.step(torch.zeros(2, 1), torch.tensor([True, True]))
        >>> result.terminated.tolist()
        [True, False]

    Args:
        num_envs: E.
        lengths: Number of steps of each environment's episodes (E).
        ends: Kind of their end: "success", "failure" (terminated without success) or "time" (E).
        reuse_buffer: Return the same tensor from every step, as some simulators do.
        pays_time: The reward is the time, so that tests recognize the steps in a sum. Otherwise it
            is 1 on success.

    Raises:
        ValueError: the lengths or the ends are not E.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        lengths: tuple[int, ...],
        ends: tuple[str, ...],
        reuse_buffer: bool = False,
        pays_time: bool = True,
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

        # length and kind of end of each episode (E,)
        self.lengths = torch.tensor(lengths)
        self.ends = {kind: torch.tensor([end == kind for end in ends]) for kind in set(ends)}
        self.reuse_buffer, self.pays_time = reuse_buffer, pays_time
        # the first entry of a state is the number of its environment
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
        reward = self.state[:, 2] * active if self.pays_time else success.float()
        info = {"success": success, "invalid": none}
        return StepResult(self._obs(), reward, terminated, ended & ~terminated, info)

    def render(self) -> Tensor:
        raise RuntimeError("mock/Script has no pictures; use mock/Reach")

    def expert(self) -> Expert:
        raise ValueError("mock/Script has no expert; use mock/Reach")

    def close(self) -> None:
        """Nothing to free."""

    def _obs(self) -> Observation:
        state = self.state if self.reuse_buffer else self.state.clone()
        return {"state": state, "task_id": torch.zeros(self.spec.num_envs, dtype=torch.int64)}
