"""The tabletop tasks: their starts, their success and their dense reward.

Everything here is arithmetic on the scene's true state, for E environments at once, and independent
of the simulator. Cube 0 is the one to move.

Letters: E envs.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pitune.envs.tabletop.model import CUBE_HALF_SIZE

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The true state of E scenes, in meters and seconds, float64, in the world frame.

    Example:
        >>> from pitune.envs.tabletop.env import Tabletop
        >>> env = Tabletop("StackCube", 3)
        >>> env.scene.cubes.shape
        (3, 2, 3)
    """

    tool: Array
    """Tool center point, between the fingertips (E, 3) [m]."""
    tool_velocity: Array
    """(E, 3) [m/s]."""
    fingers: Array
    """Distance of each finger from the middle (E, 2) [m]. 0 is closed."""
    cubes: Array
    """Centers (E, cubes, 3) [m]."""
    cube_quaternions: Array
    """Orientations, w x y z (E, cubes, 4) [-]."""
    cube_velocities: Array
    """Velocities of the centers (E, cubes, 3) [m/s]."""
    goal: Array
    """Target of cube 0 (E, 3) [m]."""

    @property
    def error(self) -> Array:
        """Vector from cube 0 to the goal (E, 3) [m]."""
        return self.goal - self.cubes[:, 0]


@dataclass(frozen=True, kw_only=True)
class Start:
    """The start of one episode.

    Example:
        >>> start = draw_start(TASKS["PickCube"], np.random.default_rng(0))
        >>> start.tool.shape, start.cubes.shape, start.goal.shape
        ((2,), (1, 3), (3,))
    """

    tool: Array
    """Position of the open gripper (2,) [m], at its home height."""
    cubes: Array
    """Centers (cubes, 3) [m]."""
    goal: Array
    """Target of cube 0 (3,) [m]."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    Example:
        >>> TASKS["PickCube"].instruction
        'pick up the red cube and hold it at the green sphere'
    """

    instruction: str
    """The task in words."""
    num_cubes: int
    """Number of cubes."""
    goal_marker: str | None
    """Shape of the goal's marker, a key of `model.GOAL_MARKERS`, or None."""
    draw_goal: Callable[[np.random.Generator, Array], Array]
    """Draws the goal (3,) [m] from a generator and the cubes' centers (cubes, 3) [m]."""
    success: Callable[[Scene], Array]
    """Whether each scene is solved (E,) bool."""


def draw_start(task: Task, rng: np.random.Generator) -> Start:
    """Draw the start of one episode, a function of `task` and `rng` alone."""
    tool = rng.uniform(-0.03, 0.03, 2)
    first = rng.uniform(-0.12, 0.12, 2)
    centers = [first, first + 0.1 * _direction(rng)][: task.num_cubes]
    cubes = np.array([[x, y, CUBE_HALF_SIZE] for x, y in centers])
    return Start(tool=tool, cubes=cubes, goal=task.draw_goal(rng, cubes))


def goal_on_cube(cubes: Array) -> Array:
    """Return the position on top of cube 1 (..., 3) [m], given centers (..., cubes, 3) [m]."""
    return cubes[..., 1, :] + np.array([0.0, 0.0, 2 * CUBE_HALF_SIZE])


def dense_reward(task: Task, scene: Scene) -> Array:
    """Return the progress of each scene (E,) in [0, 1): reach the cube, hold it, move it.

    `Tabletop` combines it with the reward of 1 for success.
    """
    reach = _closeness(np.linalg.norm(scene.cubes[:, 0] - scene.tool, axis=1))
    move = _closeness(np.linalg.norm(scene.error, axis=1))
    if task.goal_marker == "disc":  # a push needs no grasp
        return 0.3 * reach + 0.6 * move
    between = np.linalg.norm(scene.cubes[:, 0] - scene.tool, axis=1) < CUBE_HALF_SIZE
    held = between & (scene.fingers.mean(axis=1) < CUBE_HALF_SIZE + 0.005)
    # A cube at its target still counts after the gripper has released it.
    counted = held | (np.linalg.norm(scene.error, axis=1) < CUBE_HALF_SIZE)
    return 0.2 * reach + counted * (0.2 + 0.5 * move)


def _closeness(distance: Array) -> Array:
    """Return 1 at distance 0, about one half at 7 cm, and less beyond."""
    return 1 - np.tanh(8 * distance)


def _direction(rng: np.random.Generator) -> Array:
    """Draw a unit vector (2,)."""
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


def _is_pushed(scene: Scene) -> Array:
    return np.linalg.norm(scene.error[:, :2], axis=1) < 0.025


def _is_picked(scene: Scene) -> Array:
    speed = np.linalg.norm(scene.cube_velocities[:, 0], axis=1)
    return (np.linalg.norm(scene.error, axis=1) < 0.02) & (speed < 0.15)


def _is_stacked(scene: Scene) -> Array:
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
        success=_is_pushed,
    ),
    "PickCube": Task(
        instruction="pick up the red cube and hold it at the green sphere",
        num_cubes=1,
        goal_marker="sphere",
        draw_goal=_pick_goal,
        success=_is_picked,
    ),
    "StackCube": Task(
        instruction="stack the red cube on the blue cube and let go of it",
        num_cubes=2,
        goal_marker=None,
        draw_goal=_stack_goal,
        success=_is_stacked,
    ),
}
"""The tasks by name."""


def find_task(name: str) -> Task:
    """Return a task by its name.

    Raises:
        ValueError: the name is unknown. The message suggests the nearest one.
    """
    if name in TASKS:
        return TASKS[name]
    by_lower = {task.lower(): task for task in TASKS}  # most slips are in the capitals
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f"; did you mean {by_lower[near[0]]!r}?" if near else ";"
    raise ValueError(f"unknown tabletop task {name!r}{hint} valid: {list(TASKS)}")
