"""`mujoco/<task>`: the embedded tabletop simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pitune.envs.config import EnvConfig, EnvOptions, require_default
from pitune.envs.registry import register
from pitune.envs.suite.aligned import AlignedEnv, common_layout
from pitune.envs.suite.env import make_suite
from pitune.envs.suite.members import check_members
from pitune.envs.vector_env import VectorEnv
from pitune.extras import install_command
from pitune.ranges import DeviceName, Threads

TASKS = ("PushCube", "PickCube", "StackCube")
"""All names after `mujoco/`, listed here so that MuJoCo need not be imported."""


SUITES = {"Tabletop": TASKS}
"""Named suites with their members."""

Backend = Literal["c", "warp"]
ObsMode = Literal["state", "rgb"]


@dataclass(frozen=True, kw_only=True)
class TabletopOptions(EnvOptions):
    """Options of `mujoco/<task>`.

    Example:
        >>> from pitune import envs
        >>> config = envs.config_for("mujoco/PickCube", options=TabletopOptions(num_threads=4))
        >>> config.options.num_threads
        4
    """

    backend: Backend = "c"
    """Physics engine. `c` is MuJoCo on threads of the CPU. `warp` is MuJoCo Warp, which steps many
    environments at once on a CUDA device and needs the extra `warp`."""
    device: DeviceName | None = None
    """Device of the backend `warp` and of all its tensors. By default CUDA if torch finds it, and
    else the CPU, where this backend is slow."""
    obs_mode: ObsMode = "state"
    """`state` is the full state of the scene, beside the pictures of `cameras` if there are any.
    `rgb` is the pictures and the state of the gripper alone, without cubes and goal."""
    num_threads: Threads | None = None
    """Threads that step the physics. By default `num_workers`, and at least 1."""
    shadows: bool = False
    """Draw shadows in the pictures of `cameras`. They take most of the time of a small picture."""


def make_tabletop(task: str, config: EnvConfig) -> VectorEnv:
    """Return a batch of one tabletop task.

    Raises:
        ImportError: the backend is `warp`, and MuJoCo Warp cannot be imported.
        ValueError: the task or a camera is unknown, a number is too small, a setting does not exist
            for the backend, or shadows or the observation mode `rgb` are requested without cameras.
        RuntimeError: cameras are requested and this machine cannot render.
    """
    options = config.typed_options(TabletopOptions)
    if options.backend == "warp":
        return _make_warp(task, config, options)

    from pitune.envs.tabletop.env import Tabletop

    require_default(options, "device", f"{config.id} with backend='c'", "use backend='warp'")
    if not config.cameras:
        for name in ("shadows", "obs_mode"):
            require_default(options, name, f"{config.id} without cameras", "name its cameras")
    # threads of the physics take the place of worker processes
    num_threads = options.num_threads
    return Tabletop(
        task,
        config.num_envs,
        reward=config.reward,
        cameras=config.cameras,
        image_size=config.image_size,
        max_episode_steps=config.time_limit(60),
        num_threads=max(1, config.num_workers) if num_threads is None else num_threads,
        shadows=options.shadows,
        obs_mode=options.obs_mode,
    )


def _make_warp(task: str, config: EnvConfig, options: TabletopOptions) -> VectorEnv:
    """Return a batch of one tabletop task on MuJoCo Warp."""
    name = f"{config.id} with backend='warp'"
    require_default(config, "cameras", name, "use backend='c'")
    for field in ("num_threads", "shadows", "obs_mode"):
        require_default(options, field, name, "use backend='c'")
    try:
        from pitune.envs.tabletop.warp.env import WarpTabletop
    except ImportError as error:
        raise ImportError(
            f"backend='warp' of {config.id} needs MuJoCo Warp, which cannot be imported ({error}); "
            f"run {install_command('warp')}"
        ) from error
    import torch

    return WarpTabletop(
        task,
        config.num_envs,
        device=torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu")),
        reward=config.reward,
        max_episode_steps=config.time_limit(60),
    )


def make_tabletop_suite(members: tuple[str, ...], config: EnvConfig) -> VectorEnv:
    """Return a suite of tabletop tasks, whose states have places for the cubes of all tasks.

    The places of a cube that a task lacks are 0.

    Raises:
        ValueError: a task is unknown, or a setting cannot be honored.
    """
    check_members(config.id, members, (*TASKS, *SUITES))
    from pitune.envs.tabletop.tasks import find_task

    # parts of each task's state by name; beside pictures in the mode `rgb` there is one part
    layouts: dict[str, dict[str, int]] = {}
    for member in members:
        cubes = range(find_task(member).num_cubes)
        poses = {f"cube {cube}": 6 for cube in cubes}
        relative = {f"cube {cube} from the tool": 3 for cube in cubes}
        layouts[member] = {"gripper": 8, **poses, **relative, "goal from cube 0": 3}
    if config.typed_options(TabletopOptions).obs_mode == "rgb":
        return make_suite(make_tabletop, members, config)
    common = common_layout(config.id, layouts)
    return make_suite(
        lambda task, member: AlignedEnv(make_tabletop(task, member), layouts[task], common),
        members,
        config,
    )


register(
    "mujoco",
    make_tabletop,
    TabletopOptions,
    tasks=lambda: TASKS,
    suites=lambda: SUITES,
    suite_factory=make_tabletop_suite,
)
