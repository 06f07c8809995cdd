"""The starts of episodes: a seed gives eight uniform numbers, and these give a start.

The second step is arithmetic for many episodes at once, with numpy or torch. The first one is
`draw_uniforms` here, or on an accelerator `warp.uniforms`, with equal results bit for bit.

Letters: N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from pitune.envs.tabletop.arrays import Array, library_of, upward
from pitune.envs.tabletop.model import CUBE_HALF_SIZE

NUM_UNIFORMS = 8
"""Random numbers of one start. No task needs all of them."""


@dataclass(frozen=True, kw_only=True)
class Starts:
    """The starts of N episodes.

    Example:
        >>> from pitune.envs.tabletop.tasks import TASKS
        >>> task = TASKS["PickCube"]
        >>> starts = draw_starts(draw_uniforms([0, 1]), task.num_cubes, task.goal_of)
        >>> starts.tool.shape, starts.cubes.shape, starts.goal.shape
        ((2, 2), (2, 1, 3), (2, 3))
    """

    tool: Array
    """Position of the open gripper (N, 2) [m], at its home height."""
    cubes: Array
    """Centers (N, cubes, 3) [m]."""
    goal: Array
    """Target of cube 0 (N, 3) [m]."""


def draw_uniforms(seeds: Iterable[int]) -> np.ndarray:
    """Return the random numbers in [0, 1) of N seeds (N, 8), each row from its own seed alone.

    Example:
        >>> draw_uniforms([7, 7]).shape
        (2, 8)
    """
    rows = [np.random.default_rng(seed).random(NUM_UNIFORMS) for seed in seeds]
    return np.array(rows).reshape(-1, NUM_UNIFORMS)


def draw_starts(
    uniforms: Array, num_cubes: int, goal_of: Callable[[Array, Array], Array]
) -> Starts:
    """Return the starts of N episodes.

    Args:
        uniforms: Random numbers (N, 8).
        num_cubes: Number of cubes.
        goal_of: Gives the goals (N, 3) [m] from the numbers (N, 3) that the rest of the start does
            not use, and the cubes' centers (N, cubes, 3) [m].
    """
    # cube 1 lies 10 cm from cube 0
    first = between(-0.12, 0.12, uniforms[:, 2:4])
    plane = [first, first + 0.1 * directions(uniforms[:, 4])][:num_cubes]
    centers = [_at_height(position, CUBE_HALF_SIZE) for position in plane]
    cubes = library_of(uniforms).stack(centers, 1)  # (N, cubes, 3)
    tool = between(-0.03, 0.03, uniforms[:, 0:2])
    return Starts(tool=tool, cubes=cubes, goal=goal_of(uniforms[:, 5:], cubes))


def between(low: float, high: float, uniforms: Array) -> Array:
    """Return numbers in [low, high) from numbers in [0, 1), as numpy's generators do."""
    return low + (high - low) * uniforms


def directions(uniforms: Array) -> Array:
    """Return unit vectors (N, 2) from numbers (N,)."""
    xp = library_of(uniforms)
    angle = between(0.0, 2 * np.pi, uniforms)
    return xp.stack([xp.cos(angle), xp.sin(angle)], 1)


def push_goal(uniforms: Array, cubes: Array) -> Array:
    """Return goals on the table (N, 3), 8 to 15 cm from cube 0 [m]."""
    distance = between(0.08, 0.15, uniforms[:, 0])
    position = cubes[:, 0, :2] + distance[:, None] * directions(uniforms[:, 1])
    return _at_height(position.clip(-0.2, 0.2), CUBE_HALF_SIZE)


def pick_goal(uniforms: Array, cubes: Array) -> Array:
    """Return goals above the table (N, 3) [m]."""
    xp = library_of(uniforms)
    plane = between(-0.12, 0.12, uniforms[:, :2])
    return xp.concatenate([plane, between(0.06, 0.2, uniforms[:, 2:3])], axis=1)


def goal_on_cube(cubes: Array) -> Array:
    """Return the position on top of cube 1 (..., 3) [m], given centers (..., cubes, 3) [m]."""
    return cubes[..., 1, :] + 2 * CUBE_HALF_SIZE * upward(cubes)


def stack_goal(uniforms: Array, cubes: Array) -> Array:
    """Return goals on top of cube 1 (N, 3) [m]."""
    return goal_on_cube(cubes)


def _at_height(plane: Array, height: float) -> Array:
    """Return positions (N, 3) over positions in the plane (N, 2) [m]."""
    heights = library_of(plane).full_like(plane[:, :1], height)
    return library_of(plane).concatenate([plane, heights], axis=1)
