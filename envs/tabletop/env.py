"""The embedded simulator: a gripper over a table with cubes, many scenes at once on CPU threads.

The tasks are `mujoco/PushCube`, `mujoco/PickCube` and `mujoco/StackCube`. They have real contacts
and need no assets and no download. A scene depends on its seed and its actions alone, bit for bit:
not on its neighbors, on which of them are active, or on the number of threads.

Action (4), all in [-1, 1]: displacement of the tool's target in x, y and z, in units of 6 cm from
the current position, and the gripper, which opens above 0 and closes otherwise. The tool lags
behind its target. A full action moves it by 2.4 cm a step in x and y and by 3.9 cm in z while it is
in motion, and by less from rest.

Letters: E envs, s robot state dim, Y, X image pixels.
"""

from __future__ import annotations

from typing import Literal

import mujoco
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from pitune.envs.rendering.cameras import check_cameras
from pitune.envs.tabletop.episode import Rules
from pitune.envs.tabletop.experts import TabletopExpert
from pitune.envs.tabletop.layout import CONTROL_HZ
from pitune.envs.tabletop.model import CAMERAS, RENDER_CAMERA
from pitune.envs.tabletop.physics import TabletopPhysics
from pitune.envs.tabletop.registration import ObsMode
from pitune.envs.tabletop.render import SceneRenderer
from pitune.envs.tabletop.starts import draw_starts, draw_uniforms
from pitune.envs.tabletop.tasks import Scene, find_task
from pitune.envs.vector_env import EnvSpec, Observation, StepResult

RENDER_HEIGHT, RENDER_WIDTH = 240, 320
"""Size of the pictures of `render` [pixels]."""


class Tabletop:
    """One of the tabletop tasks as a `VectorEnv`.

    The observation `state` holds the tool's position and velocity, the fingers' openings, each
    cube's position and the vector part of its quaternion, each cube relative to the tool, and the
    goal relative to cube 0 [m, m/s]: s = 20, or 29 with two cubes. In the mode `rgb` it ends after
    the fingers: s = 8, and the cubes and the goal are in the pictures alone.

    Example:
        >>> env = Tabletop("PickCube", 2)
        >>> env.reset(torch.tensor([0, 1]))["state"].shape
        torch.Size([2, 20])

    Args:
        task: A key of `tasks.TASKS`.
        num_envs: E.
        reward: `sparse` is 1 on success and 0 before. `dense` is 1 on success and a progress in
            [0, 1 / max_episode_steps) before. The progress of a whole episode sums to less than
            success, so an episode that waits beside the goal never has a higher return.
        cameras: Cameras whose pictures enter the observation, of `model.CAMERAS`.
        image_size: Height and width of these pictures [pixels].
        max_episode_steps: Steps after which an episode is truncated.
        num_threads: Threads that step the physics. By default one for each available core.
        shadows: Whether these pictures have shadows, which take most of the time of a small one.
        obs_mode: `state` is the full state, `rgb` the state of the gripper alone.

    Raises:
        ValueError: the task, a camera or the reward is unknown, or a count is below 1.
        RuntimeError: cameras are requested and this machine cannot render.
    """

    def __init__(
        self,
        task: str,
        num_envs: int,
        *,
        reward: Literal["sparse", "dense"] = "sparse",
        cameras: tuple[str, ...] = (),
        image_size: int = 64,
        max_episode_steps: int = 60,
        num_threads: int | None = None,
        shadows: bool = False,
        obs_mode: ObsMode = "state",
    ) -> None:
        self.task = find_task(task)
        _check_choices(reward, cameras, obs_mode)
        check_cameras(f"mujoco/{task}", cameras, CAMERAS)
        _check_counts(
            num_envs=num_envs,
            image_size=image_size,
            max_episode_steps=max_episode_steps,
            num_threads=1 if num_threads is None else num_threads,
        )
        self._rules = Rules(
            task=self.task,
            reward=reward,
            max_episode_steps=max_episode_steps,
            obs_mode=obs_mode,
        )
        self.spec = EnvSpec(
            id=f"mujoco/{task}",
            num_envs=num_envs,
            state_dim=self._rules.state_dim,
            action_low=(-1.0,) * 4,
            action_high=(1.0,) * 4,
            max_episode_steps=max_episode_steps,
            control_hz=CONTROL_HZ,
            tasks=(self.task.instruction,),
            cameras={camera: (3, image_size, image_size) for camera in cameras},
            simulator=f"mujoco {mujoco.__version__}",
        )

        # scenes and their episodes (E,)
        self.physics = TabletopPhysics(self.task, num_envs, num_threads)
        self._step_counts = np.zeros(num_envs, dtype=np.int64)
        self._episode_counts = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.ones(num_envs, dtype=bool)  # no episode runs before the first reset

        # pictures (E, 3, Y, X)
        self._images = {
            camera: torch.zeros(num_envs, *shape, dtype=torch.uint8)
            for camera, shape in self.spec.cameras.items()
        }
        self._picture_renderer: SceneRenderer | None = None  # made by the first `render`
        self._camera_renderer: SceneRenderer | None = None
        if cameras:
            self._camera_renderer = SceneRenderer(
                self.physics.model, image_size, image_size, shadows=shadows
            )

    @property
    def scene(self) -> Scene:
        """The true state of all E scenes, for experts, as a copy."""
        return self.physics.scene

    @property
    def step_counts(self) -> np.ndarray:
        """Steps since the last reset of each scene (E,)."""
        return self._step_counts.copy()

    @property
    def episode_counts(self) -> np.ndarray:
        """Resets of each scene so far (E,), by which an expert recognizes a new episode."""
        return self._episode_counts.copy()

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        """Start new episodes. See `VectorEnv.reset`.

        Raises:
            ValueError: the number of seeds differs from the number of environments to reset.
        """
        rows = np.arange(self.spec.num_envs) if env_idx is None else env_idx.cpu().numpy()
        if seed.shape != (len(rows),):
            raise ValueError(
                f"seed has shape {tuple(seed.shape)}; {len(rows)} environments are reset, "
                f"so it must be ({len(rows)},): pass one seed for each"
            )

        # starts that depend on their own seeds only
        uniforms = draw_uniforms(seed.tolist())
        starts = draw_starts(uniforms, self.task.num_cubes, self.task.goal_of)
        self.physics.set_starts(rows, starts)
        self._step_counts[rows] = 0
        self._episode_counts[rows] += 1
        self._ended[rows] = False
        self._update_images(rows)
        return self._observation(self.scene)

    def step(self, action: Tensor, active: Tensor, pictures: Tensor | None = None) -> StepResult:
        """Advance the active environments, with actions clipped to the bounds.

        See `DrawsOnRequest.step`.

        Raises:
            ValueError: a shape is wrong, the action of an active environment is not finite, or an
                active environment has ended or was never reset.
        """
        mask = active.cpu().numpy()
        commands = action.detach().cpu().numpy().astype(np.float64)
        self._check_step(commands, mask)

        # physics
        rows = np.flatnonzero(mask)
        failed = np.zeros(self.spec.num_envs, dtype=bool)
        failed[rows] = self.physics.advance(rows, commands[rows])
        self._step_counts[rows] += 1

        # ends and reward (E,)
        scene = self.scene
        success, truncated, reward = self._rules.judge(scene, self._step_counts, mask, failed)
        self._ended |= success | truncated
        read = mask if pictures is None else pictures.cpu().numpy()
        self._update_images(np.flatnonzero(mask & (read | success | truncated)))
        return StepResult(
            obs=self._observation(scene),
            reward=torch.from_numpy(reward.astype(np.float32)),
            terminated=torch.from_numpy(success),
            truncated=torch.from_numpy(truncated),
            info={"success": torch.from_numpy(success.copy()), "invalid": torch.from_numpy(failed)},
        )

    def render(self) -> Tensor:
        """Return a picture of every environment (E, 240, 320, 3) uint8. See `VectorEnv.render`."""
        if self._picture_renderer is None:
            self._picture_renderer = SceneRenderer(
                self.physics.model, RENDER_HEIGHT, RENDER_WIDTH, shadows=True
            )
        pictures = [
            self._picture_renderer.picture(state, goal, RENDER_CAMERA)
            for state, goal in zip(self.physics.states, self.physics.goals, strict=True)
        ]
        return torch.from_numpy(np.stack(pictures))

    def expert(self) -> TabletopExpert:
        """Return a new scripted expert for the task."""
        return TabletopExpert(self, self.spec.id.removeprefix("mujoco/"))

    def close(self) -> None:
        """End the threads and free the renderers. The environment cannot be used afterwards."""
        self.physics.close()
        for renderer in (self._camera_renderer, self._picture_renderer):
            if renderer is not None:
                renderer.close()

    def _check_step(self, action: np.ndarray, mask: np.ndarray) -> None:
        num_envs, action_dim = self.spec.num_envs, self.spec.action_dim
        if action.shape != (num_envs, action_dim) or mask.shape != (num_envs,):
            raise ValueError(
                f"action has shape {action.shape} and active {mask.shape}; "
                f"they must be ({num_envs}, {action_dim}) and ({num_envs},)"
            )
        if not np.isfinite(action[mask]).all():
            raise ValueError(
                f"action of an active environment of {self.spec.id} is not finite; "
                "check the policy's output"
            )
        if self._ended[mask].any():
            ended = np.flatnonzero(mask & self._ended).tolist()
            raise ValueError(f"environments {ended} have ended; reset them before the next step")

    def _observation(self, scene: Scene) -> Observation:
        """Return the observation of all E scenes."""
        obs = {
            "state": torch.from_numpy(self._rules.state_of(scene).astype(np.float32)),
            "task_id": torch.zeros(self.spec.num_envs, dtype=torch.int64),
        }
        return obs | {f"image/{camera}": image.clone() for camera, image in self._images.items()}

    def _update_images(self, rows: np.ndarray) -> None:
        """Draw the pictures of some scenes again."""
        if self._camera_renderer is None:
            return
        for camera, images in self._images.items():
            for row in rows:
                state, goal = self.physics.states[row], self.physics.goals[row]
                picture = self._camera_renderer.picture(state, goal, camera)
                images[row] = rearrange(torch.from_numpy(picture), "Y X C -> C Y X")


def _check_choices(reward: str, cameras: tuple[str, ...], obs_mode: str) -> None:
    if reward not in ("sparse", "dense"):
        raise ValueError(f"unknown reward {reward!r}; valid: ['sparse', 'dense']")
    if obs_mode not in ("state", "rgb"):
        raise ValueError(f"unknown obs_mode {obs_mode!r}; valid: ['state', 'rgb']")
    if obs_mode == "rgb" and not cameras:
        raise ValueError("obs_mode='rgb' without cameras shows no cube; name some cameras")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1")
