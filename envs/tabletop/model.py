"""The tabletop scene as MuJoCo XML: a gripper on three slides, cubes, a table, lights and cameras.

Physics and appearance are separate. Geoms that collide have a mass and friction. Geoms for the
pictures belong to the class `visual`, which has no mass and does not collide. So the appearance can
change without changing any result.

World frame: z up, the table's surface at z = 0, lengths in meters, masses in kilograms.

Letters: Y, X image pixels.
"""

from __future__ import annotations

import mujoco
import numpy as np

PHYSICS_STEP = 0.005
"""Duration of one physics step [s]."""
SOLVER_ITERATIONS, LINE_SEARCH_ITERATIONS = 100, 50
"""Limits of MuJoCo's contact solver, its own defaults. With lower limits it may stop too early when
the gripper hits a cube hard. The cube then flies off at several m/s, which a learner exploits."""
CUBE_HALF_SIZE = 0.02
"""Half the edge of a cube [m], also the height of its center when it lies on the table."""
CUBE_MASS = 0.06
"""Mass of a cube [kg]."""
TOOL_HOME_HEIGHT = 0.25
"""Height of the tool center point, between the fingertips, if the slides are at 0 [m]."""
SLIDE_LOW = (-0.3, -0.3, -0.235)
"""Lowest targets of the x, y and z slides [m]. At the lowest z the fingers clear the table."""
SLIDE_HIGH = (0.3, 0.3, 0.15)
"""Highest targets of the x, y and z slides [m]."""
FINGER_OPEN = 0.04
"""Target of a finger's slide when the gripper is open [m]: half the gap between the fingers."""
FINGER_CLOSED = -0.01
"""Target when it closes [m]: below contact, which determines the force of the grasp."""
CUBE_COLORS = ("0.85 0.16 0.13 1", "0.16 0.38 0.78 1")
"""Red and blue, in the order of the cubes (RGBA)."""
CAMERAS = ("front", "wrist")
"""`front` shows the whole table. `wrist` is mounted on the gripper and shows its fingertips."""
RENDER_CAMERA = "beauty"
"""The camera of `render`, for people only. Its view is wider than that of `front`."""

GOAL_MARKERS = {
    "sphere": 'type="sphere" size="0.024"',
    "disc": 'type="cylinder" size="0.025 0.001" pos="0 0 -0.019"',
}
"""Shapes of the goal's marker, a site, which does not collide. `pos` is relative to the goal."""


def build_model(num_cubes: int, goal_marker: str | None) -> mujoco.MjModel:
    """Compile the scene.

    Positions (qpos) are the x, y and z slides, the left and the right finger, and then 7 numbers
    for each cube (position, quaternion w x y z). Velocities (qvel) are 5 and then 6 for each cube.

    Example:
        >>> build_model(num_cubes=2, goal_marker="disc").nq
        19

    Args:
        num_cubes: Number of cubes, at most 2.
        goal_marker: A key of `GOAL_MARKERS`, or None for no marker.
    """
    model = mujoco.MjModel.from_xml_string(scene_xml(num_cubes, goal_marker))
    texture = model.texture("wood").id
    start = model.tex_adr[texture]
    pixels = wood_pixels(model.tex_height[texture], model.tex_width[texture])
    model.tex_data[start : start + pixels.size] = pixels.ravel()
    return model


def scene_xml(num_cubes: int, goal_marker: str | None) -> str:
    """Return the MJCF of the scene, with the arguments of `build_model`."""
    marker = ""
    if goal_marker is not None:
        marker = f'<site name="goal" {GOAL_MARKERS[goal_marker]} rgba="0.15 0.85 0.35 0.45"/>'
    return f"""
    <mujoco model="tabletop">
      <option timestep="{PHYSICS_STEP}" integrator="implicitfast" cone="elliptic" impratio="5"
              iterations="{SOLVER_ITERATIONS}" ls_iterations="{LINE_SEARCH_ITERATIONS}"/>
      <default>
        <geom friction="1.0 0.02 0.0001" condim="4" solref="0.01 1"/>
        <default class="visual"><geom contype="0" conaffinity="0" mass="0"/></default>
      </default>
      {appearance_xml()}
      <worldbody>
        {room_xml()}
        <geom name="table" type="plane" size="1 1 0.1" group="3"/>
        {marker}
        {gripper_xml()}
        {"".join(cube_xml(index) for index in range(num_cubes))}
      </worldbody>
      <actuator>
        <position joint="x" kp="600" kv="40" ctrlrange="-0.3 0.3"/>
        <position joint="y" kp="600" kv="40" ctrlrange="-0.3 0.3"/>
        <position joint="z" kp="1500" kv="60" ctrlrange="-0.25 0.15"/>
        <position joint="left_finger" kp="400" kv="10" ctrlrange="-0.01 0.045"/>
        <position joint="right_finger" kp="400" kv="10" ctrlrange="-0.01 0.045"/>
      </actuator>
    </mujoco>"""


def gripper_xml() -> str:
    """Return the gripper: three slides in series, a palm, and two fingers that slide along y."""
    slide_inertia = '<inertial pos="0 0 0" mass="1" diaginertia="0.01 0.01 0.01"/>'
    return f"""
    <body name="x_slide" pos="0 0 {TOOL_HOME_HEIGHT}">
      <joint name="x" type="slide" axis="1 0 0" range="-0.3 0.3" damping="20"/>
      {slide_inertia}
      <body name="y_slide">
        <joint name="y" type="slide" axis="0 1 0" range="-0.3 0.3" damping="20"/>
        {slide_inertia}
        <body name="palm" gravcomp="1">
          <joint name="z" type="slide" axis="0 0 1" range="-0.25 0.15" damping="20"/>
          <geom name="palm" type="box" size="0.03 0.07 0.015" pos="0 0 0.06" mass="0.5"
                material="shell"/>
          {wrist_xml()}
          {finger_xml("left", 1)}
          {finger_xml("right", -1)}
        </body>
      </body>
    </body>"""


def finger_xml(name: str, side: int) -> str:
    """Return one finger with its rubber pad.

    Args:
        name: `left` or `right`.
        side: 1 for the finger that opens towards +y, -1 for the other.
    """
    return f"""
    <body name="{name}_finger" gravcomp="1">
      <joint name="{name}_finger" type="slide" axis="0 {side} 0" range="0 0.045" damping="5"/>
      <geom name="{name}_finger" type="box" size="0.012 0.008 0.03" pos="0 {0.008 * side} 0.012"
            mass="0.1" friction="2 0.05 0.0001" material="metal"/>
      <geom class="visual" type="box" size="0.0122 0.002 0.011" pos="0 {0.0019 * side} -0.0072"
            material="rubber"/>
    </body>"""


def cube_xml(index: int) -> str:
    """Return cube number `index`, free to move."""
    return f"""
    <body name="cube{index}" pos="{0.15 * index} 0 {CUBE_HALF_SIZE}">
      <freejoint/>
      <geom name="cube{index}" type="box" mass="{CUBE_MASS}" material="cube{index}"
            size="{CUBE_HALF_SIZE} {CUBE_HALF_SIZE} {CUBE_HALF_SIZE}"/>
    </body>"""


def wrist_xml() -> str:
    """Return the visual parts on the palm (mast, collar) and the wrist camera."""
    return f"""
    <geom class="visual" type="cylinder" size="0.026 0.008" pos="0 0 0.083" material="accent"/>
    <geom class="visual" type="cylinder" size="0.018 0.25" pos="0 0 0.34" material="shell"/>
    <camera name="wrist" pos="0.12 0 0.06" {look_at((0.12, 0, 0.06), (0, 0, -0.02))} fovy="60"/>"""


def room_xml() -> str:
    """Return the table top, the floor below it, the lights and the fixed cameras."""
    front, beauty = (0.52, 0.0, 0.42), (0.72, 0.40, 0.50)
    return f"""
    <light directional="true" pos="0.25 0.3 1.5" dir="-0.2 -0.22 -1" diffuse="0.6 0.59 0.56"
           specular="0.3 0.3 0.3"/>
    <light directional="true" pos="0.8 -0.6 1" dir="-0.8 0.6 -0.5" diffuse="0.22 0.23 0.26"
           castshadow="false"/>
    <camera name="front" pos="{_vector(front)}" {look_at(front, (0, 0, 0.1))} fovy="38"/>
    <camera name="{RENDER_CAMERA}" pos="{_vector(beauty)}" {look_at(beauty, (0, 0, 0.11))}
            fovy="30"/>
    <geom class="visual" type="box" size="0.34 0.34 0.015" pos="0 0 -0.0152" material="wood"/>
    <geom class="visual" type="box" size="0.05 0.05 0.3" pos="0 0 -0.33" material="shell"/>
    <geom class="visual" type="plane" size="6 6 0.1" pos="0 0 -0.6" material="tiles"/>"""


def appearance_xml() -> str:
    """Return the textures, materials and rendering quality."""
    return f"""
    <visual>
      <global offwidth="1280" offheight="960"/>
      <quality shadowsize="2048" offsamples="4"/>
      <headlight ambient="0.42 0.42 0.44" diffuse="0.22 0.22 0.22" specular="0 0 0"/>
      <map znear="0.02" zfar="40" shadowclip="0.6"/>
    </visual>
    <asset>
      <texture type="skybox" builtin="gradient" rgb1="0.80 0.86 0.92" rgb2="0.42 0.50 0.60"
               width="64" height="384"/>
      <texture name="tiles" type="2d" builtin="checker" rgb1="0.60 0.64 0.69"
               rgb2="0.50 0.54 0.60" width="256" height="256"/>
      <material name="tiles" texture="tiles" texrepeat="3 3" texuniform="true" specular="0.1"/>
      <texture name="wood" type="2d" builtin="flat" width="512" height="512"/>
      <material name="wood" texture="wood" specular="0.15" shininess="0.3"/>
      <material name="shell" rgba="0.92 0.92 0.94 1" specular="0.5" shininess="0.6"/>
      <material name="metal" rgba="0.55 0.57 0.60 1" specular="0.8" shininess="0.8"/>
      <material name="rubber" rgba="0.12 0.12 0.13 1" specular="0.1"/>
      <material name="accent" rgba="0.95 0.55 0.12 1" specular="0.4"/>
      <material name="cube0" rgba="{CUBE_COLORS[0]}" specular="0.3" shininess="0.4"/>
      <material name="cube1" rgba="{CUBE_COLORS[1]}" specular="0.3" shininess="0.4"/>
    </asset>"""


def wood_pixels(height: int, width: int) -> np.ndarray:
    """Return a picture of planks (Y, X, 3) uint8, computed so that no picture file is needed."""
    row, column = np.mgrid[0:height, 0:width] / height
    plank = np.floor(8 * row)
    tone = np.sin(37.0 * plank) * 0.05
    wave = 0.01 * np.sin(9 * column + 5 * plank) + 0.004 * np.sin(31 * column + 2 * plank)
    grain = 0.035 * np.sin(2 * np.pi * 40 * (row + wave)) + 0.02 * np.sin(560 * (row + 0.5 * wave))
    seam = np.where(np.abs(8 * row - np.round(8 * row)) < 0.015, -0.22, 0.0)
    brightness = 1 + tone + grain + seam
    color = np.array([196, 158, 116]) * brightness[:, :, None]
    return np.clip(color, 0, 255).astype(np.uint8)


def look_at(position: tuple[float, float, float], target: tuple[float, float, float]) -> str:
    """Return the `xyaxes` attribute of a camera at `position` that looks at `target` [m]."""
    backward = np.subtract(position, target)
    right = np.cross((0.0, 0.0, 1.0), backward)
    up = np.cross(backward, right)
    return f'xyaxes="{_vector(right)} {_vector(up)}"'


def _vector(values: tuple[float, ...] | np.ndarray) -> str:
    """Return numbers as an attribute of MJCF."""
    return " ".join(f"{value:.9g}" for value in values)
