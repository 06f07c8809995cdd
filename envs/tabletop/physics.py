"""The physics of E tabletop scenes in MuJoCo's C++ threads, without episodes or rewards.

Every control step starts from the stored state of the scene and a contact solver without warm
start. Nothing else remains from the previous step or from the thread that ran it. So the next state
of a scene is a function of its own state and action, bit for bit.

Letters: E envs, N rows.
"""

from __future__ import annotations

import os

import mujoco
import numpy as np
from einops import repeat
from mujoco.rollout import Rollout

from pitune.envs.tabletop.model import (
    FINGER_CLOSED,
    FINGER_OPEN,
    PHYSICS_STEP,
    SLIDE_HIGH,
    SLIDE_LOW,
    TOOL_HOME_HEIGHT,
    build_model,
)
from pitune.envs.tabletop.tasks import Array, Scene, Start, Task, goal_on_cube

DISPLACEMENT_SCALE = 0.06
"""Displacement of a slide's target by one unit of action [m]."""
PHYSICS_STEPS = 10
"""Physics steps in one control step."""
CONTROL_HZ = 1 / (PHYSICS_STEPS * PHYSICS_STEP)
"""Control steps per second [Hz]: 20."""

_FULL_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS  # time, positions, velocities, but no contacts
_NUM_SLIDES, _NUM_JOINTS = 3, 5


class TabletopPhysics:
    """The physics of E scenes.

    Example:
        >>> from pitune.envs.tabletop.tasks import TASKS
        >>> physics = TabletopPhysics(TASKS["PickCube"], num_envs=2, num_threads=1)
        >>> physics.scene.tool.shape
        (2, 3)

    Args:
        task: Determines the number of cubes and the goal marker.
        num_envs: E.
        num_threads: Number of threads. By default one for each available core.
    """

    def __init__(self, task: Task, num_envs: int, num_threads: int | None) -> None:
        self.model = build_model(task.num_cubes, task.goal_marker)
        self.states = np.zeros((num_envs, mujoco.mj_stateSize(self.model, _FULL_STATE)))
        self.goals = np.zeros((num_envs, 3))
        num_threads = min(num_threads or _available_cores(), num_envs)
        self._rollout = Rollout(nthread=num_threads if num_threads > 1 else 0)
        self._thread_data = [mujoco.MjData(self.model) for _ in range(num_threads)]

    @property
    def scene(self) -> Scene:
        """The true state of all scenes, as a copy."""
        # a state is the time, the positions and the velocities
        num_envs, num_positions = len(self.states), self.model.nq
        positions = self.states[:, 1 : 1 + num_positions].copy()
        velocities = self.states[:, 1 + num_positions :][:, : self.model.nv].copy()
        cubes = positions[:, _NUM_JOINTS:].reshape(num_envs, -1, 7)  # (E, cubes, 7)
        centers = cubes[:, :, :3]
        on_cube = centers.shape[1] > 1  # with two cubes the goal is on the second one
        return Scene(
            tool=positions[:, :_NUM_SLIDES] + np.array([0.0, 0.0, TOOL_HOME_HEIGHT]),
            tool_velocity=velocities[:, :_NUM_SLIDES],
            fingers=positions[:, _NUM_SLIDES:_NUM_JOINTS],
            cubes=centers,
            cube_quaternions=cubes[:, :, 3:],
            cube_velocities=velocities[:, _NUM_JOINTS:].reshape(num_envs, -1, 6)[:, :, :3],
            goal=goal_on_cube(centers) if on_cube else self.goals.copy(),
        )

    def set_start(self, row: int, start: Start) -> None:
        """Set scene `row` to its start, at rest."""
        positions = np.zeros(self.model.nq)
        positions[:2] = start.tool
        positions[_NUM_SLIDES:_NUM_JOINTS] = FINGER_OPEN
        cubes = positions[_NUM_JOINTS:].reshape(-1, 7)  # a view: position, quaternion w x y z
        cubes[:, :3] = start.cubes
        cubes[:, 3] = 1
        self.states[row] = 0
        self.states[row, 1 : 1 + self.model.nq] = positions
        self.goals[row] = start.goal

    def advance(self, rows: Array, action: Array) -> Array:
        """Advance some scenes by one control step and return which broke down (N,) bool.

        A scene that breaks down keeps its last state.

        Args:
            rows: These scenes (N,).
            action: (N, 4), clipped to [-1, 1].
        """
        if not len(rows):
            return np.zeros(0, dtype=bool)
        before = self.states[rows]
        # (N, 5) -> (N, PHYSICS_STEPS, 5)
        controls = repeat(self._controls(rows, action), "n u -> n steps u", steps=PHYSICS_STEPS)
        # (N, PHYSICS_STEPS, state)
        trajectory, _ = self._rollout.rollout(self.model, self._thread_data, before, controls)
        after = trajectory[:, -1]
        # MuJoCo resets a scene that diverges, or stops it early. Its clock (entry 0) reveals both.
        expected = before[:, 0] + PHYSICS_STEPS * PHYSICS_STEP
        failed = ~np.isfinite(after).all(axis=1) | (np.abs(after[:, 0] - expected) > 1e-6)
        self.states[rows[~failed]] = after[~failed]
        return failed

    def close(self) -> None:
        """End the threads."""
        self._rollout.close()

    def _controls(self, rows: Array, action: Array) -> Array:
        """Return the targets of the five actuators (N, 5) [m]."""
        action = np.clip(action, -1, 1)
        # Relative to the slides and not to their last target: a blocked slide has no windup.
        slides = self.states[rows, 1 : 1 + _NUM_SLIDES] + DISPLACEMENT_SCALE * action[:, :3]
        slides = np.clip(slides, SLIDE_LOW, SLIDE_HIGH)
        finger = np.where(action[:, 3:] > 0, FINGER_OPEN, FINGER_CLOSED)
        return np.concatenate([slides, finger, finger], axis=1)


def _available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
