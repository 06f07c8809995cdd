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

from pitune.envs.tabletop.layout import PHYSICS_STEPS, controls_of, scene_of, start_positions
from pitune.envs.tabletop.model import PHYSICS_STEP, build_model
from pitune.envs.tabletop.starts import Starts
from pitune.envs.tabletop.tasks import Scene, Task

_FULL_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS  # time, positions, velocities, but no contacts


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
        num_positions = self.model.nq
        positions = self.states[:, 1 : 1 + num_positions].copy()
        velocities = self.states[:, 1 + num_positions :][:, : self.model.nv].copy()
        return scene_of(positions, velocities, self.goals.copy())

    def set_starts(self, rows: np.ndarray, starts: Starts) -> None:
        """Set some scenes to their starts, at rest.

        Args:
            rows: These scenes (N,).
            starts: Their starts.
        """
        self.states[rows] = 0
        self.states[rows, 1 : 1 + self.model.nq] = start_positions(starts)
        self.goals[rows] = starts.goal

    def advance(self, rows: np.ndarray, action: np.ndarray) -> np.ndarray:
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
        controls = controls_of(before[:, 1 : 1 + self.model.nq], action)
        controls = repeat(controls, "n u -> n steps u", steps=PHYSICS_STEPS)
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


def _available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
