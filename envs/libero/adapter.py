"""LIBERO's tasks in worker processes, single or as a suite that is told by words.

State (8): position of the gripper (3) [m], its axis-angle (3) [rad], positions of the fingers (2)
[m]. Action (7), in [-1, 1]: displacement (3) [0.05 m] and rotation (3) [0.5 rad] of the gripper,
and its fingers (1): +1 closes, -1 opens. 20 steps per second. The cameras `image` and
`wrist_image` are named, turned and sized as in openpi's pipelines `pi0_libero` and `pi05_libero`.

Source: Liu et al. 2023, "LIBERO"; Zhou et al. 2025, "LIBERO-PRO"; openpi `examples/libero/main.py`.
Differs from openpi's client: the place of the furniture is a function of the start, where it
depends there on the episodes before.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Sequence

from pitune.envs.config import EnvConfig
from pitune.envs.libero.conversion import CAMERAS
from pitune.envs.libero.package import PACKAGE, require_package
from pitune.envs.libero.registration import LiberoOptions
from pitune.envs.libero.suites import NUM_STARTS, TIME_LIMITS, LiberoFiles, task_named
from pitune.envs.libero.task import CONTROL_HZ, LiberoTask, spaces_of
from pitune.envs.rendering.cameras import check_cameras
from pitune.envs.suite.sub_env import MemberSpaces, SuiteSubEnv
from pitune.envs.workers.env import WorkerEnv
from pitune.envs.workers.expert import WorkerExpert
from pitune.envs.workers.pool import Timeouts
from pitune.envs.workers.sub_envs import Factory


class LiberoEnv(WorkerEnv):
    """E simulators of LIBERO.

    Example:
        >>> from pitune import envs
        >>> env = envs.make(envs.config_for("libero/goal/7", num_envs=2))  # doctest: +SKIP
        >>> env.spec.tasks  # doctest: +SKIP
        ('turn on the stove',)
    """

    def expert(self) -> WorkerExpert:
        """Raise ValueError, because LIBERO has none."""
        raise ValueError(
            f"{self.spec.id} has no expert: LIBERO's demonstrations were recorded by people and "
            "are no part of its package; use a dataset of them, or a mujoco/ or metaworld/ task"
        )


def make_libero(name: str, config: EnvConfig) -> LiberoEnv:
    """Return a batch of one task.

    Args:
        name: Suite, slash, and the number or the name of a task.
        config: Its options are `LiberoOptions`.

    Raises:
        ImportError: LIBERO is not installed.
        ValueError: the suite, the task, a camera or the perturbation is unknown.
    """
    (task,) = _tasks((name,), config)
    return _workers(_factory(task, config), (task,), config)


def make_libero_suite(members: tuple[str, ...], config: EnvConfig) -> LiberoEnv:
    """Return a batch in which the seed of an episode chooses one of several tasks.

    Each environment holds the simulators of the tasks that it played last
    (`LiberoOptions.held_tasks`).

    Args:
        members: Names as in `make_libero`.
        config: Its options are `LiberoOptions`.

    Raises:
        ImportError: LIBERO is not installed.
        ValueError: a suite, a task, a camera or the perturbation is unknown.
    """
    tasks, options = _tasks(members, config), config.typed_options(LiberoOptions)
    observation, action = spaces_of(config.cameras, options.render_size)
    suite = functools.partial(
        SuiteSubEnv,
        config.id,
        {task.id: _factory(task, config) for task in tasks},
        MemberSpaces(observation=observation, action=action, control_hz=CONTROL_HZ),
        options.held_tasks,
    )
    return _workers(suite, tasks, config)


def _tasks(names: Sequence[str], config: EnvConfig) -> tuple[LiberoFiles, ...]:
    """Return the tasks of some names, after a check of the settings."""
    require_package(config.id)
    check_cameras(config.id, config.cameras, CAMERAS)
    options = config.typed_options(LiberoOptions)
    tasks = []
    for name in names:
        suite, _, task = name.partition("/")
        tasks.append(task_named(suite, task, options.perturbation))
    return tuple(tasks)


def _time_limit(task: LiberoFiles, config: EnvConfig) -> int:
    return config.time_limit(TIME_LIMITS[task.suite])


def _factory(task: LiberoFiles, config: EnvConfig) -> functools.partial[LiberoTask]:
    """Return the factory of one simulator."""
    options = config.typed_options(LiberoOptions)
    limit = _time_limit(task, config)
    return functools.partial(LiberoTask, task, limit, config.cameras, options.render_size)


def _workers(factory: Factory, tasks: Sequence[LiberoFiles], config: EnvConfig) -> LiberoEnv:
    packages = (PACKAGE, "robosuite", "mujoco")
    return LiberoEnv(
        factory,
        id=config.id,
        num_envs=config.num_envs,
        num_workers=config.num_workers,
        max_episode_steps=max(_time_limit(task, config) for task in tasks),
        tasks=tuple(task.instruction for task in tasks),
        simulator=", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        probe=False,  # its own tests hold what a probe would find out
        timeouts=Timeouts.of_config(config),
        max_failures=config.max_failures,
        num_starts=NUM_STARTS,
        shared_starts=config.typed_options(LiberoOptions).starts == "all",
        seeded_tasks=len(tasks) > 1,
        task_names=tuple(task.id for task in tasks),
    )
