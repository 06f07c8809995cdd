"""`metaworld/<task>`: Meta-World's tasks of a Sawyer arm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pitune.envs.config import EnvConfig, EnvOptions
from pitune.envs.metaworld.tasks import INSTRUCTIONS, SUITES
from pitune.envs.registry import register
from pitune.envs.vector_env import VectorEnv
from pitune.ranges import PositiveInt

Camera = Literal[
    "topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV"
]
ObsMode = Literal["state", "rgb"]


@dataclass(frozen=True, kw_only=True)
class MetaWorldOptions(EnvOptions):
    """Options of `metaworld/<task>`.

    Example:
        >>> from pitune import envs
        >>> config = envs.config_for(
        ...     "metaworld/reach-v3", options=MetaWorldOptions(camera="topview")
        ... )
        >>> config.options.camera
        'topview'
    """

    obs_mode: ObsMode = "state"
    """`state` is the full state of the scene, beside the pictures of `cameras` if there are any.
    `rgb` is the pictures and the state of the gripper alone, without objects and goal."""
    camera: Camera = "corner2"
    """Camera of `render` and of films. `cameras` are those of the observation."""
    render_size: PositiveInt = 256
    """Height and width of the pictures of `render` [pixels]."""
    held_tasks: PositiveInt = 1
    """Simulators that each environment of a suite keeps (30 MB each). Beyond it, the one that was
    used longest ago is closed, and its next episode makes it again, which takes 0.4 s."""


def make_metaworld_env(task: str, config: EnvConfig) -> VectorEnv:
    """Return a batch of one Meta-World task.

    Raises:
        ImportError: Meta-World is not installed.
        ValueError: the task or a camera is unknown, or the environment cannot honor a setting.
        RuntimeError: cameras are requested and this machine cannot render.
    """
    from pitune.envs.metaworld.adapter import make_metaworld

    return make_metaworld(task, config)


def make_metaworld_suite_env(members: tuple[str, ...], config: EnvConfig) -> VectorEnv:
    """Return a suite of Meta-World tasks.

    Raises:
        ImportError: Meta-World is not installed.
        ValueError: a task or a camera is unknown, or the environment cannot honor a setting.
        RuntimeError: cameras are requested and this machine cannot render.
    """
    from pitune.envs.metaworld.adapter import make_metaworld_suite

    return make_metaworld_suite(members, config)


register(
    "metaworld",
    make_metaworld_env,
    MetaWorldOptions,
    tasks=lambda: INSTRUCTIONS,
    suites=lambda: SUITES,
    suite_factory=make_metaworld_suite_env,
)
