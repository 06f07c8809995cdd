"""The embedded simulator: a gripper over a table with cubes, many scenes at once on CPU threads.

The tasks are `mujoco/PushCube`, `mujoco/PickCube` and `mujoco/StackCube`, with real contacts, no
assets and no download. MuJoCo's `rollout` steps all scenes in C++ threads. Every step starts from
the scene's stored state and a cold solver (no warm start is carried), so what happens in a scene
depends on its seed and its actions alone, bit for bit: not on its neighbours, on which of them are
active, or on the number of threads.

Action (4): the tool's displacement in x, y and z in units of 6 cm, relative to where the tool now
is, and the gripper, which opens above 0 and closes otherwise. All in [-1, 1].
"""

from __future__ import annotations

import difflib
import os
from typing import Literal

import mujoco
import numpy as np
import torch
from mujoco.rollout import Rollout
from torch import Tensor

from envs import tabletop_model as model_parts
from envs.tabletop_experts import TabletopExpert
from envs.tabletop_render import SceneRenderer
from envs.tabletop_tasks import TASKS, Scene, Task, dense_reward, draw_start, goal_on_cube
from envs.vector_env import EnvSpec, Observation, StepResult

DISPLACEMENT_SCALE = 0.06
"""How far one unit of action moves the target of a slide [m]."""
PHYSICS_STEPS = 10
"""Physics steps in one control step: 10 of 5 ms make 20 Hz."""
RENDER_HEIGHT, RENDER_WIDTH = 240, 320
"""Size of the pictures of `render` [pixels]."""

_FULL_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
_NUM_SLIDES, _NUM_JOINTS = 3, 5


class Tabletop:
    """One of the tabletop tasks as a `VectorEnv`.

    The observation `state` holds the tool's position and velocity, the fingers' openings, each
    cube's position and the vector part of its quaternion, each cube relative to the tool, and the
    goal relative to cube 0 [m, m/s]: S = 20, or 29 with two cubes.

    Args:
        task: A key of `tabletop_tasks.TASKS`.
        num_envs: E.
        reward: `sparse` is 1 on success and 0 before. `dense` is 1 on success and a progress in
            [0, 1 / max_episode_steps) before: all the progress that an episode can collect is worth
            less than success, so waiting beside the goal never pays.
        cameras: Cameras to observe, of `tabletop_model.CAMERAS`.
        image_size: Height and width of an observed picture [pixels].
        max_episode_steps: Steps after which an episode is truncated.
        num_threads: Threads that step the physics; by default one for each available core.

    Raises:
        ValueError: there is no such task, camera or reward, or a count is below 1.
        RuntimeError: cameras were asked for and this machine cannot render.
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
    ) -> None:
        self.task = _find_task(task)
        _check_arguments(num_envs, reward, cameras, image_size, max_episode_steps, num_threads)
        self.reward = reward
        self.model = model_parts.build_model(self.task.num_cubes, self.task.goal_marker)
        self.spec = EnvSpec(
            id=f"mujoco/{task}",
            num_envs=num_envs,
            state_dim=11 + 9 * self.task.num_cubes,
            action_low=(-1.0,) * 4,
            action_high=(1.0,) * 4,
            max_episode_steps=max_episode_steps,
            control_hz=1 / (PHYSICS_STEPS * model_parts.PHYSICS_STEP),
            tasks=(self.task.instruction,),
            cameras={camera: (3, image_size, image_size) for camera in cameras},
            simulator=f"mujoco {mujoco.__version__}",
        )
        num_threads = min(num_threads or _available_cores(), num_envs)
        self._rollout = Rollout(nthread=num_threads if num_threads > 1 else 0)
        self._thread_data = [mujoco.MjData(self.model) for _ in range(num_threads)]
        state_size = mujoco.mj_stateSize(self.model, _FULL_STATE)
        self._states = np.zeros((num_envs, state_size))
        self._goals = np.zeros((num_envs, 3))
        self._step_counts = np.zeros(num_envs, dtype=np.int64)
        self._episode_counts = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.ones(num_envs, dtype=bool)  # nothing runs before its first reset
        self._images = {
            camera: torch.zeros(num_envs, *shape, dtype=torch.uint8)
            for camera, shape in self.spec.cameras.items()
        }
        self._renderers: dict[tuple[int, int], SceneRenderer] = {}
        if cameras:
            self._renderer(image_size, image_size)  # fails here, not in the middle of a run

    @property
    def scene(self) -> Scene:
        """The true state of all E scenes, for experts and tests; made of copies."""
        return self._scene(self._states, self._goals)

    @property
    def step_counts(self) -> np.ndarray:
        """Steps since the last reset of each scene (E,)."""
        return self._step_counts.copy()

    @property
    def episode_counts(self) -> np.ndarray:
        """Resets of each scene so far (E,); tells an expert that a new episode has begun."""
        return self._episode_counts.copy()

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        """Start new episodes; see `VectorEnv.reset`.

        Raises:
            ValueError: there is not one seed for each environment to reset.
        """
        rows = np.arange(self.spec.num_envs) if env_idx is None else env_idx.cpu().numpy()
        if seed.shape != (len(rows),):
            raise ValueError(
                f"seed has shape {tuple(seed.shape)}; {len(rows)} environments are reset, "
                f"so it must be ({len(rows)},)"
            )
        for row, episode_seed in zip(rows.tolist(), seed.tolist(), strict=True):
            self._start(row, np.random.default_rng(episode_seed))
        self._step_counts[rows] = 0
        self._episode_counts[rows] += 1
        self._ended[rows] = False
        self._update_images(rows)
        return self._observation()

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        """Advance the active environments; see `VectorEnv.step`.

        Actions outside the bounds are clipped to them.

        Raises:
            ValueError: the shapes are wrong, an active action is not finite, or an active
                environment has ended or was never reset.
        """
        num_envs = self.spec.num_envs
        mask = active.cpu().numpy()
        rows = np.flatnonzero(mask)
        self._check_step(action, mask, rows)
        targets = action.detach().cpu().numpy().astype(np.float64)[rows]
        failed = np.zeros(num_envs, dtype=bool)
        if len(rows):
            failed[rows] = self._advance(rows, self._controls(rows, targets))
        self._step_counts[rows] += 1

        scene = self.scene
        running = mask & ~failed
        success = running & self.task.success(scene)
        timed_out = mask & (self._step_counts >= self.spec.max_episode_steps)
        truncated = (timed_out & ~success) | failed
        self._ended |= success | truncated
        reward = success.astype(np.float64)
        if self.reward == "dense":
            progress = dense_reward(self.task, scene) / self.spec.max_episode_steps
            reward += running * ~success * progress
        self._update_images(rows)
        return StepResult(
            obs=self._observation(),
            reward=torch.from_numpy(reward.astype(np.float32)),
            terminated=torch.from_numpy(success),
            truncated=torch.from_numpy(truncated),
            info={"success": torch.from_numpy(success.copy()), "invalid": torch.from_numpy(failed)},
        )

    def render(self) -> Tensor:
        """Return a picture of every environment (E, 240, 320, 3) uint8; see `VectorEnv.render`."""
        renderer = self._renderer(RENDER_HEIGHT, RENDER_WIDTH)
        pictures = [
            renderer.picture(state, goal, model_parts.RENDER_CAMERA)
            for state, goal in zip(self._states, self._goals, strict=True)
        ]
        return torch.from_numpy(np.stack(pictures))

    def expert(self) -> TabletopExpert:
        """Return a new scripted expert for the task."""
        return TabletopExpert(self, self.spec.id.removeprefix("mujoco/"))

    def close(self) -> None:
        """Stop the threads and free the renderers; the environment cannot be used afterwards."""
        self._rollout.close()
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}

    def _start(self, row: int, rng: np.random.Generator) -> None:
        start = draw_start(self.task, rng)
        positions = np.zeros(self.model.nq)
        positions[:2] = start.tool
        positions[_NUM_SLIDES:_NUM_JOINTS] = model_parts.FINGER_OPEN
        cubes = positions[_NUM_JOINTS:].reshape(-1, 7)  # a view: position and quaternion
        cubes[:, :3] = start.cubes
        cubes[:, 3] = 1
        self._states[row] = 0
        self._states[row, 1 : 1 + self.model.nq] = positions
        self._goals[row] = start.goal

    def _check_step(self, action: Tensor, mask: np.ndarray, rows: np.ndarray) -> None:
        num_envs, action_dim = self.spec.num_envs, self.spec.action_dim
        if action.shape != (num_envs, action_dim) or mask.shape != (num_envs,):
            raise ValueError(
                f"action has shape {tuple(action.shape)} and active {mask.shape}; "
                f"they must be ({num_envs}, {action_dim}) and ({num_envs},)"
            )
        if not torch.isfinite(action[torch.from_numpy(rows)]).all():
            raise ValueError("action of an active environment is not finite")
        if self._ended[rows].any():
            ended = rows[self._ended[rows]].tolist()
            raise ValueError(f"environments {ended} have ended; reset them before the next step")

    def _controls(self, rows: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Return the targets of the five actuators (n, 5) [m] from actions (n, 4)."""
        action = np.clip(action, -1, 1)
        slides = self._states[rows, 1 : 1 + _NUM_SLIDES] + DISPLACEMENT_SCALE * action[:, :3]
        slides = np.clip(slides, model_parts.SLIDE_LOW, model_parts.SLIDE_HIGH)
        finger = np.where(action[:, 3:] > 0, model_parts.FINGER_OPEN, model_parts.FINGER_CLOSED)
        return np.concatenate([slides, finger, finger], axis=1)

    def _advance(self, rows: np.ndarray, controls: np.ndarray) -> np.ndarray:
        """Step the physics of `rows` (n,) and return where it broke down (n,) bool."""
        before = self._states[rows]
        trajectory, _ = self._rollout.rollout(
            self.model, self._thread_data, before, np.repeat(controls[:, None], PHYSICS_STEPS, 1)
        )
        after = trajectory[:, -1]
        # MuJoCo resets a diverged scene or stops it early; either way its clock (entry 0) shows it.
        expected = before[:, 0] + PHYSICS_STEPS * model_parts.PHYSICS_STEP
        failed = ~np.isfinite(after).all(axis=1) | (np.abs(after[:, 0] - expected) > 1e-6)
        self._states[rows[~failed]] = after[~failed]  # a broken scene keeps its last good state
        return failed

    def _scene(self, states: np.ndarray, goals: np.ndarray) -> Scene:
        num_envs, num_positions = len(states), self.model.nq
        positions = states[:, 1 : 1 + num_positions].copy()
        velocities = states[:, 1 + num_positions : 1 + num_positions + self.model.nv].copy()
        cubes = positions[:, _NUM_JOINTS:].reshape(num_envs, -1, 7)
        centres = cubes[:, :, :3]
        home = np.array([0.0, 0.0, model_parts.TOOL_HOME_HEIGHT])
        return Scene(
            tool=positions[:, :_NUM_SLIDES] + home,
            tool_velocity=velocities[:, :_NUM_SLIDES],
            fingers=positions[:, _NUM_SLIDES:_NUM_JOINTS],
            cubes=centres,
            cube_quaternions=cubes[:, :, 3:],
            cube_velocities=velocities[:, _NUM_JOINTS:].reshape(num_envs, -1, 6)[:, :, :3],
            # With two cubes the goal rides on the second one, which may be bumped.
            goal=goals.copy() if self.task.num_cubes == 1 else goal_on_cube(centres),
        )

    def _observation(self) -> Observation:
        scene = self.scene
        num_envs = self.spec.num_envs
        poses = np.concatenate([scene.cubes, scene.cube_quaternions[:, :, 1:]], axis=2)
        relative = scene.cubes - scene.tool[:, None]
        parts = [scene.tool, scene.tool_velocity, scene.fingers]
        parts += [poses.reshape(num_envs, -1), relative.reshape(num_envs, -1), scene.error]
        obs = {
            "state": torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32)),
            "task_id": torch.zeros(num_envs, dtype=torch.int64),
        }
        obs |= {f"image/{camera}": images.clone() for camera, images in self._images.items()}
        return obs

    def _update_images(self, rows: np.ndarray) -> None:
        for camera, images in self._images.items():
            renderer = self._renderer(*images.shape[2:])
            for row in rows:
                picture = renderer.picture(self._states[row], self._goals[row], camera)
                images[row] = torch.from_numpy(picture).permute(2, 0, 1)

    def _renderer(self, height: int, width: int) -> SceneRenderer:
        if (height, width) not in self._renderers:
            self._renderers[height, width] = SceneRenderer(self.model, height, width)
        return self._renderers[height, width]


def _find_task(name: str) -> Task:
    if name in TASKS:
        return TASKS[name]
    message = f"unknown tabletop task {name!r}; valid: {list(TASKS)}"
    # Case says nothing about closeness, and "pickcube" is the likeliest slip.
    folded = {task.lower(): task for task in TASKS}
    near = difflib.get_close_matches(name.lower(), folded, n=1)
    raise ValueError(f"{message}. Did you mean {folded[near[0]]!r}?" if near else message)


def _check_arguments(
    num_envs: int,
    reward: str,
    cameras: tuple[str, ...],
    image_size: int,
    max_episode_steps: int,
    num_threads: int | None,
) -> None:
    counts = {
        "num_envs": num_envs,
        "image_size": image_size,
        "max_episode_steps": max_episode_steps,
        "num_threads": 1 if num_threads is None else num_threads,
    }
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1")
    if reward not in ("sparse", "dense"):
        raise ValueError(f"unknown reward {reward!r}; valid: ['sparse', 'dense']")
    for camera in cameras:
        if camera not in model_parts.CAMERAS:
            raise ValueError(f"unknown camera {camera!r}; valid: {list(model_parts.CAMERAS)}")


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: what this process may use, not what there is
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
