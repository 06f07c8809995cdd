"""The layout of positions and velocities in MuJoCo's arrays, for the physics in C and in Warp.

Positions (qpos) are the x, y and z slides, the left and the right finger, and 7 numbers for each
cube. Velocities (qvel) are 5 and then 6 for each cube. See `model.build_model`.

Letters: E envs, N rows.
"""

from __future__ import annotations

from einops import rearrange

from pitune.envs.tabletop.arrays import Array, choose, library_of, upward
from pitune.envs.tabletop.model import (
    FINGER_CLOSED,
    FINGER_OPEN,
    PHYSICS_STEP,
    SLIDE_HIGH,
    SLIDE_LOW,
    TOOL_HOME_HEIGHT,
)
from pitune.envs.tabletop.starts import Starts, goal_on_cube
from pitune.envs.tabletop.tasks import Scene

DISPLACEMENT_SCALE = 0.06
"""Displacement of a slide's target by one unit of action [m]."""
PHYSICS_STEPS = 10
"""Physics steps in one control step."""
CONTROL_HZ = 1 / (PHYSICS_STEPS * PHYSICS_STEP)
"""Control steps per second [Hz]: 20."""
NUM_SLIDES, NUM_JOINTS = 3, 5


def scene_of(positions: Array, velocities: Array, goals: Array) -> Scene:
    """Return the true state of E scenes, as views of the arguments.

    Args:
        positions: MuJoCo's qpos (E, 5 + 7 * cubes), float64.
        velocities: MuJoCo's qvel (E, 5 + 6 * cubes), float64.
        goals: Targets of cube 0 (E, 3) [m]. With two cubes the goal is on the second one instead.
    """
    cubes = rearrange(positions[:, NUM_JOINTS:], "E (cubes n) -> E cubes n", n=7)
    spins = rearrange(velocities[:, NUM_JOINTS:], "E (cubes n) -> E cubes n", n=6)
    centers = cubes[:, :, :3]
    return Scene(
        tool=positions[:, :NUM_SLIDES] + TOOL_HOME_HEIGHT * upward(positions),
        tool_velocity=velocities[:, :NUM_SLIDES],
        fingers=positions[:, NUM_SLIDES:NUM_JOINTS],
        cubes=centers,
        cube_quaternions=cubes[:, :, 3:],
        cube_velocities=spins[:, :, :3],
        goal=goal_on_cube(centers) if centers.shape[1] > 1 else goals,
    )


def start_positions(starts: Starts) -> Array:
    """Return MuJoCo's qpos (N, 5 + 7 * cubes) of N starts. The velocities are 0."""
    xp = library_of(starts.tool)
    zeros = xp.zeros_like(starts.tool)  # (N, 2)
    parts = [starts.tool, zeros[:, :1], zeros + FINGER_OPEN]
    # each cube's position, and its quaternion w x y z
    for cube in range(starts.cubes.shape[1]):
        parts += [starts.cubes[:, cube], zeros[:, :1] + 1.0, zeros, zeros[:, :1]]
    return xp.concatenate(parts, axis=1)


def controls_of(positions: Array, action: Array) -> Array:
    """Return the targets of the five actuators (N, 5) [m].

    Args:
        positions: MuJoCo's qpos (N, 5 + 7 * cubes).
        action: (N, 4), clipped to [-1, 1].
    """
    action = action.clip(-1, 1)
    # Relative to the slides and not to their last target: a blocked slide has no windup.
    slides = positions[:, :NUM_SLIDES] + DISPLACEMENT_SCALE * action[:, :3]
    columns = [
        slides[:, axis : axis + 1].clip(low, high)
        for axis, (low, high) in enumerate(zip(SLIDE_LOW, SLIDE_HIGH, strict=True))
    ]
    finger = choose(action[:, 3:] > 0, FINGER_OPEN, FINGER_CLOSED)
    return library_of(positions).concatenate([*columns, finger, finger], axis=1)
