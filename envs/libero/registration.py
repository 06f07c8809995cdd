"""`libero/<suite>/<task>`: LIBERO's tasks of a Panda arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pitune.envs.config import EnvConfig, EnvOptions, require_default
from pitune.envs.registry import register
from pitune.envs.vector_env import VectorEnv
from pitune.ranges import PositiveInt

Perturbation = Literal["none", "object", "position", "language", "environment", "task"]

NUM_TASKS: Mapping[str, int] = {"spatial": 10, "object": 10, "goal": 10, "10": 10, "90": 90}
"""Tasks of each suite."""


@dataclass(frozen=True, kw_only=True)
class LiberoOptions(EnvOptions):
    """Options of `libero/<suite>/<task>` and of `libero/<suite>`.

    Example:
        >>> from pitune import envs
        >>> config = envs.config_for(
        ...     "libero/goal/turn_on_the_stove", options=LiberoOptions(perturbation="language")
        ... )
        >>> config.options.render_size
        256
    """

    perturbation: Perturbation = "none"
    """Change of LIBERO-PRO to every task: another look of the object, exchanged positions, other
    words, another environment, another goal."""
    starts: Literal["split", "all"] = "split"
    """Recorded starts of each task. `split` keeps those of training, validation and test apart.
    `all` takes all 50 for each of them, as published tables of evaluations do."""
    render_size: PositiveInt = 256
    """Height and width of the pictures of cameras and videos [pixels]. openpi's checkpoints for
    LIBERO were trained on pictures of 256 pixels."""
    held_tasks: PositiveInt = 1
    """Simulators that each environment of a suite keeps. Beyond it, the one that was used longest
    ago is closed, and its next episode makes it again."""


def make_libero_env(name: str, config: EnvConfig) -> VectorEnv:
    """Return a batch of one task of LIBERO.

    Raises:
        ImportError: LIBERO is not installed.
        ValueError: the suite or the task is unknown, or the environment cannot honor a setting.
    """
    _check_settings(config)
    from pitune.envs.libero.adapter import make_libero

    return make_libero(name, config)


def make_libero_suite_env(members: tuple[str, ...], config: EnvConfig) -> VectorEnv:
    """Return a suite of LIBERO's tasks.

    Raises:
        ImportError: LIBERO is not installed.
        ValueError: a suite or a task is unknown, or the environment cannot honor a setting.
    """
    _check_settings(config)
    from pitune.envs.libero.adapter import make_libero_suite

    return make_libero_suite(members, config)


def _check_settings(config: EnvConfig) -> None:
    size = "pass --env.options.render-size, which is 256 by default"
    require_default(config, "image_size", config.id, size)
    require_default(config, "reward", config.id, "use a mujoco/, maniskill/ or metaworld/ task")


def list_suites() -> Mapping[str, tuple[str, ...]]:
    """Return the tasks of each suite, by number."""
    return {
        suite: tuple(f"{suite}/{index}" for index in range(num_tasks))
        for suite, num_tasks in NUM_TASKS.items()
    }


def list_tasks() -> tuple[str, ...]:
    """Return the tasks by suite and number, without importing LIBERO."""
    return tuple(name for members in list_suites().values() for name in members)


register(
    "libero",
    make_libero_env,
    LiberoOptions,
    tasks=list_tasks,
    suites=list_suites,
    suite_factory=make_libero_suite_env,
)
