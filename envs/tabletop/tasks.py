"""What the tabletop tasks ask for: their starts, their success and their dense reward.

Everything here is arithmetic on the scene's true state, for E environments at once, and knows
nothing of the simulator. Letters: E environments, N cubes. Cube 0 is the one to move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pitune.envs.tabletop.model import CUBE_HALF_SIZE

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The true state of E scenes, in metres and seconds; all float64, in the world frame."""

    tool: Array
    """Tool center point, between the fingertips (E, 3) [m]."""
    tool_velocity: Array
    """(E, 3) [m/s]."""
    fingers: Array
    """How far each finger is from the middle (E, 2) [m]; 0 is closed."""
    cubes: Array
    """Centers (E, N, 3) [m]."""
    cube_quaternions: Array
    """Orientations, w x y z (E, N, 4) [-]."""
    cube_velocities: Array
    """Of the centers (E, N, 3) [m/s]."""
    goal: Array
    """Where cube 0 shall be (E, 3) [m]."""

    @property
    def error(self) -> Array:
        """From cube 0 to the goal (E, 3) [m]."""
        return self.goal - self.cubes[:, 0]


@dataclass(frozen=True, kw_only=True)
class Start:
    """The start of one episode."""

    tool: Array
    """Where the gripper hangs (2,) [m], at its home height and open."""
    cubes: Array
    """Centers (N, 3) [m]."""
    goal: Array
    """Where cube 0 shall be (3,) [m]."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task."""

    instruction: str
    """The task in words."""
    num_cubes: int
    """N."""
    goal_marker: str | None
    """Shape that shows the goal, a key of `tabletop_model.GOAL_MARKERS`."""
    draw_goal: Callable[[np.random.Generator, Array], Array]
    """From the cubes' centers (N, 3) [m] to the goal (3,) [m]."""
    success: Callable[[Scene], Array]
    """Whether each scene is solved (E,) bool."""


def draw_start(task: Task, rng: np.random.Generator) -> Start:
    """Draw the start of one episode; consumes nothing but `rng`."""
    tool = rng.uniform(-0.03, 0.03, 2)
    first = rng.uniform(-0.12, 0.12, 2)
    centers = [first, first + 0.1 * _direction(rng)][: task.num_cubes]
    cubes = np.array([[x, y, CUBE_HALF_SIZE] for x, y in centers])
    return Start(tool=tool, cubes=cubes, goal=task.draw_goal(rng, cubes))


def goal_on_cube(cubes: Array) -> Array:
    """Return the place on top of cube 1 (..., 3) [m] from the cubes' centers (..., N, 3) [m]."""
    return cubes[..., 1, :] + np.array([0.0, 0.0, 2 * CUBE_HALF_SIZE])


def dense_reward(task: Task, scene: Scene) -> Array:
    """Return how far along each scene is (E,) in [0, 1): reach the cube, hold it, bring it.

    A success is worth 1 whatever this says; see `Tabletop` for how the two are combined.
    """
    reach = _closeness(np.linalg.norm(scene.cubes[:, 0] - scene.tool, axis=1))
    bring = _closeness(np.linalg.norm(scene.error, axis=1))
    if task.goal_marker == "disc":  # a push needs no grasp
        return 0.3 * reach + 0.6 * bring
    between = np.linalg.norm(scene.cubes[:, 0] - scene.tool, axis=1) < CUBE_HALF_SIZE
    held = between & (scene.fingers.mean(axis=1) < CUBE_HALF_SIZE + 0.005)
    # A cube that lies in its place stays credited when the gripper lets go of it.
    credited = held | (np.linalg.norm(scene.error, axis=1) < CUBE_HALF_SIZE)
    return 0.2 * reach + credited * (0.2 + 0.5 * bring)


def _closeness(distance: Array) -> Array:
    return 1 - np.tanh(8 * distance)  # 8/m: one half at 7 cm


def _direction(rng: np.random.Generator) -> Array:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def _push_goal(rng: np.random.Generator, cubes: Array) -> Array:
    distance = rng.uniform(0.08, 0.15)
    x, y = np.clip(cubes[0, :2] + distance * _direction(rng), -0.2, 0.2)
    return np.array([x, y, CUBE_HALF_SIZE])


def _pick_goal(rng: np.random.Generator, cubes: Array) -> Array:
    x, y = rng.uniform(-0.12, 0.12, 2)
    return np.array([x, y, rng.uniform(0.06, 0.2)])


def _stack_goal(rng: np.random.Generator, cubes: Array) -> Array:
    return goal_on_cube(cubes)


def _pushed(scene: Scene) -> Array:
    return np.linalg.norm(scene.error[:, :2], axis=1) < 0.025


def _picked(scene: Scene) -> Array:
    speed = np.linalg.norm(scene.cube_velocities[:, 0], axis=1)
    return (np.linalg.norm(scene.error, axis=1) < 0.02) & (speed < 0.15)


def _stacked(scene: Scene) -> Array:
    aligned = np.linalg.norm(scene.error[:, :2], axis=1) < 0.02
    resting = np.linalg.norm(scene.cube_velocities[:, 0], axis=1) < 0.05
    released = scene.fingers[:, 0] > 0.025
    return aligned & (np.abs(scene.error[:, 2]) < 0.008) & released & resting


TASKS = {
    "PushCube": Task(
        instruction="push the red cube onto the green disc",
        num_cubes=1,
        goal_marker="disc",
        draw_goal=_push_goal,
        success=_pushed,
    ),
    "PickCube": Task(
        instruction="pick up the red cube and hold it at the green sphere",
        num_cubes=1,
        goal_marker="sphere",
        draw_goal=_pick_goal,
        success=_picked,
    ),
    "StackCube": Task(
        instruction="stack the red cube on the blue cube and let go of it",
        num_cubes=2,
        goal_marker=None,
        draw_goal=_stack_goal,
        success=_stacked,
    ),
}
"""The tasks by name."""
