"""The tabletop tasks on MuJoCo Warp, many scenes at once on an accelerator.

State, observations, rewards and resets are tensors on the device. Neither a step nor a reset copies
anything to the host. A reset copies the seeds to the device if they are not there yet, and computes
the starts there.

Nothing in a step waits for the device. So a mistake of the caller cannot raise an error in it: an
action that is not finite, and a step of an environment that has ended, make the row invalid.

Letters: E envs, N rows.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pitune.envs.tabletop.env import RENDER_HEIGHT, RENDER_WIDTH
from pitune.envs.tabletop.episode import Rules
from pitune.envs.tabletop.experts import TabletopExpert
from pitune.envs.tabletop.layout import CONTROL_HZ
from pitune.envs.tabletop.model import RENDER_CAMERA
from pitune.envs.tabletop.render import SceneRenderer
from pitune.envs.tabletop.starts import draw_starts
from pitune.envs.tabletop.tasks import Scene, find_task
from pitune.envs.tabletop.warp.physics import WarpPhysics, version
from pitune.envs.tabletop.warp.uniforms import draw_device_uniforms
from pitune.envs.vector_env import EnvSpec, Observation, StepResult


class WarpTabletop:
    """One of the tabletop tasks as a `VectorEnv` on one device, without cameras.

    Observation, rewards and starts are those of `env.Tabletop`.

    Example:
        >>> env = WarpTabletop("PickCube", 2, device=torch.device("cpu"))  # doctest: +SKIP
        >>> env.reset(torch.tensor([0, 1]))["state"].shape  # doctest: +SKIP
        torch.Size([2, 20])

    Args:
        task: A key of `tasks.TASKS`.
        num_envs: E.
        device: Device of the physics and of all tensors.
        reward: See `env.Tabletop`.
        max_episode_steps: Steps after which an episode is truncated.

    Raises:
        ValueError: the task is unknown.
    """

    def __init__(
        self,
        task: str,
        num_envs: int,
        *,
        device: torch.device,
        reward: Literal["sparse", "dense"] = "sparse",
        max_episode_steps: int = 60,
    ) -> None:
        self.task = find_task(task)
        self._rules = Rules(task=self.task, reward=reward, max_episode_steps=max_episode_steps)
        self.spec = EnvSpec(
            id=f"mujoco/{task}",
            num_envs=num_envs,
            state_dim=self._rules.state_dim,
            action_low=(-1.0,) * 4,
            action_high=(1.0,) * 4,
            max_episode_steps=max_episode_steps,
            control_hz=CONTROL_HZ,
            tasks=(self.task.instruction,),
            simulator=version(),
            device=device,
        )
        device = self.spec.device  # with its index
        # scenes and their episodes (E,)
        self.physics = WarpPhysics(self.task, num_envs, device)
        self._step_counts = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._episode_counts = torch.zeros_like(self._step_counts)
        # no episode runs before the first reset
        self._running = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self._renderer: SceneRenderer | None = None

    @property
    def scene(self) -> Scene:
        """The true state of all E scenes, for experts."""
        return self.physics.scene

    @property
    def step_counts(self) -> Tensor:
        """Steps since the last reset of each scene (E,)."""
        return self._step_counts

    @property
    def episode_counts(self) -> Tensor:
        """Resets of each scene so far (E,), by which an expert recognizes a new episode."""
        return self._episode_counts

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        """Start new episodes. See `VectorEnv.reset`.

        Raises:
            ValueError: the number of seeds differs from the number of environments to reset.
        """
        device = self.spec.device
        if env_idx is None:
            env_idx = torch.arange(self.spec.num_envs, device=device)
        if seed.shape != env_idx.shape:
            raise ValueError(
                f"seed has shape {tuple(seed.shape)}; {len(env_idx)} environments are reset, "
                f"so it must be ({len(env_idx)},): pass one seed for each"
            )
        rows = env_idx.to(device)
        uniforms = draw_device_uniforms(seed.to(device))
        self.physics.set_starts(rows, draw_starts(uniforms, self.task.num_cubes, self.task.goal_of))
        self._step_counts = self._step_counts.index_fill(0, rows, 0)
        self._episode_counts = self._episode_counts.index_add(0, rows, torch.ones_like(rows))
        self._running = self._running.index_fill(0, rows, True)
        return self._observation(self.scene)

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        """Advance the active environments. See `VectorEnv.step`. Actions are clipped to the bounds.

        Raises:
            ValueError: a shape is wrong.
        """
        num_envs, action_dim = self.spec.num_envs, self.spec.action_dim
        if action.shape != (num_envs, action_dim) or active.shape != (num_envs,):
            raise ValueError(
                f"action has shape {tuple(action.shape)} and active {tuple(active.shape)}; "
                f"they must be ({num_envs}, {action_dim}) and ({num_envs},)"
            )
        # physics
        is_valid = self._running & action.isfinite().all(1)
        action = torch.where((active & is_valid)[:, None], action, 0.0)
        failed = self.physics.advance(active & is_valid, action) | (active & ~is_valid)
        self._step_counts = self._step_counts + active

        # ends and reward (E,)
        scene = self.scene
        success, truncated, reward = self._rules.judge(scene, self._step_counts, active, failed)
        self._running = self._running & ~(success | truncated)
        return StepResult(
            obs=self._observation(scene),
            reward=reward.float(),
            terminated=success,
            truncated=truncated,
            info={"success": success.clone(), "invalid": failed},
        )

    def render(self) -> Tensor:
        """Return a picture of every environment (E, 240, 320, 3) uint8. See `VectorEnv.render`.

        The pictures are drawn by MuJoCo, from a copy of the state on the host.
        """
        if self._renderer is None:
            self._renderer = SceneRenderer(
                self.physics.model, RENDER_HEIGHT, RENDER_WIDTH, shadows=True
            )
        positions, velocities = self.physics.positions.cpu(), self.physics.velocities.cpu()
        # a state is the time, the positions and the velocities
        states = np.concatenate([np.zeros((len(positions), 1)), positions, velocities], axis=1)
        goals = self.physics.goals.cpu().numpy()
        pictures = [
            self._renderer.picture(state, goal, RENDER_CAMERA)
            for state, goal in zip(states, goals, strict=True)
        ]
        return torch.from_numpy(np.stack(pictures)).to(self.spec.device)

    def expert(self) -> TabletopExpert:
        """Return a new scripted expert for the task."""
        return TabletopExpert(self, self.spec.id.removeprefix("mujoco/"))

    def close(self) -> None:
        """Free the renderer. The environment cannot be used afterwards."""
        if self._renderer is not None:
            self._renderer.close()

    def _observation(self, scene: Scene) -> Observation:
        """Return the observation of all E scenes."""
        state = self._rules.state_of(scene).float()
        task_id = torch.zeros(len(state), dtype=torch.int64, device=state.device)
        return {"state": state, "task_id": task_id}
