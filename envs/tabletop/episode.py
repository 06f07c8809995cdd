"""Observations, ends and rewards of the tabletop, for the physics in C and in Warp.

Letters: E envs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from einops import rearrange

from pitune.envs.tabletop.arrays import Array, library_of
from pitune.envs.tabletop.registration import ObsMode
from pitune.envs.tabletop.tasks import Scene, Task, dense_reward

GRIPPER_DIM = 8
"""Dimensions of the gripper's state: position, velocity and fingers."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of a task's episodes.

    Example:
        >>> from pitune.envs.tabletop.tasks import TASKS
        >>> rules = Rules(task=TASKS["PickCube"], reward="sparse", max_episode_steps=60)
        >>> rules.state_dim
        20
    """

    task: Task
    reward: Literal["sparse", "dense"]
    """`sparse` is 1 on success and 0 before. `dense` adds a progress before the success."""
    max_episode_steps: int
    """Steps after which an episode is truncated."""
    obs_mode: ObsMode = "state"
    """`state` is the full state, `rgb` the state of the gripper alone."""

    @property
    def state_dim(self) -> int:
        """Dimensions of the observed state."""
        return GRIPPER_DIM if self.obs_mode == "rgb" else 11 + 9 * self.task.num_cubes

    def state_of(self, scene: Scene) -> Array:
        """Return the observed state of all E scenes (E, s), float64. See `env.Tabletop`."""
        xp = library_of(scene.tool)
        parts = [scene.tool, scene.tool_velocity, scene.fingers]
        if self.obs_mode == "state":
            # (E, cubes, 3) and (E, cubes, 3) -> (E, cubes, 6)
            poses = xp.concatenate([scene.cubes, scene.cube_quaternions[:, :, 1:]], axis=2)
            # (E, cubes, 3), seen from the tool
            relative = scene.cubes - scene.tool[:, None]
            parts += [rearrange(part, "E cubes n -> E (cubes n)") for part in (poses, relative)]
            parts += [scene.error]
        # (E, 11 + 9 * cubes), or (E, 8)
        return xp.concatenate(parts, axis=1)

    def judge(
        self, scene: Scene, step_counts: Array, active: Array, failed: Array
    ) -> tuple[Array, Array, Array]:
        """Return the successes (E,) bool, truncations (E,) bool and rewards (E,) of one step.

        Args:
            scene: The scenes after the step.
            step_counts: Steps of each episode so far (E,).
            active: Environments that took the step (E,) bool.
            failed: Those among them whose simulation broke down (E,) bool.
        """
        success = active & ~failed & self.task.success(scene)
        timed_out = active & (step_counts >= self.max_episode_steps)
        truncated = (timed_out & ~success) | failed
        reward = success + 0.0 * scene.tool[:, 0]  # float64
        if self.reward == "dense":
            progress = dense_reward(self.task, scene) / self.max_episode_steps
            on_the_way = active & ~failed & ~success
            reward = reward + library_of(reward).where(on_the_way, progress, 0.0)
        return success, truncated, reward
