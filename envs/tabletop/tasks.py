"""The tabletop tasks: their goals, their success and their dense reward.

Everything here is arithmetic on the true state of E scenes at once, and independent of the
simulator. A scene of the physics in C consists of numpy arrays, and one of the physics in Warp of
tensors on its device. Cube 0 is the one to move.

Letters: E envs.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from pitune.envs.tabletop.arrays import Array, library_of, norm
from pitune.envs.tabletop.model import CUBE_HALF_SIZE
from pitune.envs.tabletop.starts import pick_goal, push_goal, stack_goal


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
    goal_of: Callable[[Array, Array], Array]
    """Gives the goals (N, 3) [m] of starts, as `starts.draw_starts` requests them."""
    success: Callable[[Scene], Array]
    """Whether each scene is solved (E,) bool."""


def dense_reward(task: Task, scene: Scene) -> Array:
    """Return the progress of each scene (E,) in [0, 1): reach the cube, hold it, move it.

    `Tabletop` combines it with the reward of 1 for success.
    """
    reach = _closeness(norm(scene.cubes[:, 0] - scene.tool))
    move = _closeness(norm(scene.error))
    if task.goal_marker == "disc":  # a push needs no grasp
        return 0.3 * reach + 0.6 * move
    between = norm(scene.cubes[:, 0] - scene.tool) < CUBE_HALF_SIZE
    held = between & (scene.fingers.mean(-1) < CUBE_HALF_SIZE + 0.005)
    # A cube at its target still counts after the gripper has released it.
    counted = held | (norm(scene.error) < CUBE_HALF_SIZE)
    return 0.2 * reach + counted * (0.2 + 0.5 * move)


def _closeness(distance: Array) -> Array:
    """Return 1 at distance 0, about one half at 7 cm, and less beyond."""
    return 1 - library_of(distance).tanh(8 * distance)


def _is_pushed(scene: Scene) -> Array:
    return norm(scene.error[:, :2]) < 0.025


def _is_picked(scene: Scene) -> Array:
    speed = norm(scene.cube_velocities[:, 0])
    return (norm(scene.error) < 0.02) & (speed < 0.15)


def _is_stacked(scene: Scene) -> Array:
    aligned = norm(scene.error[:, :2]) < 0.02
    resting = norm(scene.cube_velocities[:, 0]) < 0.05
    released = scene.fingers[:, 0] > 0.025
    return aligned & (abs(scene.error[:, 2]) < 0.008) & released & resting


TASKS = {
    "PushCube": Task(
        instruction="push the red cube onto the green disc",
        num_cubes=1,
        goal_marker="disc",
        goal_of=push_goal,
        success=_is_pushed,
    ),
    "PickCube": Task(
        instruction="pick up the red cube and hold it at the green sphere",
        num_cubes=1,
        goal_marker="sphere",
        goal_of=pick_goal,
        success=_is_picked,
    ),
    "StackCube": Task(
        instruction="stack the red cube on the blue cube and let go of it",
        num_cubes=2,
        goal_marker=None,
        goal_of=stack_goal,
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
