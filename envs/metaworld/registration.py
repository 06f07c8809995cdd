"""`metaworld/<task>`: Meta-World's tasks of a Sawyer arm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pitune.envs.config import EnvConfig, EnvOptions, require_default
from pitune.envs.registry import register
from pitune.envs.vector_env import VectorEnv
from pitune.ranges import PositiveInt

Camera = Literal[
    "topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV"
]

TASKS = """
    assembly basketball bin-picking box-close button-press button-press-topdown
    button-press-topdown-wall button-press-wall coffee-button coffee-pull coffee-push dial-turn
    disassemble door-close door-lock door-open door-unlock drawer-close drawer-open faucet-close
    faucet-open hammer hand-insert handle-press handle-press-side handle-pull handle-pull-side
    lever-pull peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall
    plate-slide plate-slide-back plate-slide-back-side plate-slide-side push push-back push-wall
    reach reach-wall shelf-place soccer stick-pull stick-push sweep sweep-into window-close
    window-open
"""
"""Meta-World's tasks without their version, which is v3 for all of them."""


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


def list_tasks() -> Iterator[str]:
    """Yield Meta-World's names of its tasks, without importing it."""
    return (f"{task}-v3" for task in TASKS.split())


register("metaworld", make_metaworld_env, MetaWorldOptions, tasks=list_tasks)
