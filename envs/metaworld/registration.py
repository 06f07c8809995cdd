"""`metaworld/<task>`: Meta-World's tasks of a Sawyer arm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pitune.envs.config import EnvConfig, EnvOptions, require_default
from pitune.envs.metaworld.tasks import INSTRUCTIONS, SUITES
from pitune.envs.registry import register
from pitune.envs.vector_env import VectorEnv
from pitune.ranges import PositiveInt

Camera = Literal[
    "topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV"
]


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

    camera: Camera = "corner2"
    """Camera of `render` and of videos. The observation holds no pictures."""
    render_size: PositiveInt = 256
    """Height and width of the pictures of `render` [pixels]."""
    held_tasks: PositiveInt = 1
    """Simulators that each environment of a suite keeps (30 MB each). Beyond it, the one that was
    used longest ago is closed, and its next episode makes it again, which takes 0.4 s."""


def make_metaworld_env(task: str, config: EnvConfig) -> VectorEnv:
    """Return a batch of one Meta-World task.

    Raises:
        ImportError: Meta-World is not installed.
        ValueError: the task is unknown, or the environment cannot honor a setting.
    """
    from pitune.envs.metaworld.adapter import make_metaworld

    require_default(
        config, "cameras", config.id, "use a mujoco/, maniskill/ or mock/Reach environment"
    )
    return make_metaworld(task, config)


def make_metaworld_suite_env(members: tuple[str, ...], config: EnvConfig) -> VectorEnv:
    """Return a suite of Meta-World tasks.

    Raises:
        ImportError: Meta-World is not installed.
        ValueError: a task is unknown, or the environment cannot honor a setting.
    """
    from pitune.envs.metaworld.adapter import make_metaworld_suite

    require_default(
        config, "cameras", config.id, "use a mujoco/, maniskill/ or mock/Reach environment"
    )
    return make_metaworld_suite(members, config)


register(
    "metaworld",
    make_metaworld_env,
    MetaWorldOptions,
    tasks=lambda: INSTRUCTIONS,
    suites=lambda: SUITES,
    suite_factory=make_metaworld_suite_env,
)
