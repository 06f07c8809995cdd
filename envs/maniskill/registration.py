"""`maniskill/<task>`: ManiSkill 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pitune.envs.config import EnvConfig, EnvOptions
from pitune.envs.maniskill.tasks import INSTRUCTIONS
from pitune.envs.registry import register
from pitune.envs.vector_env import VectorEnv
from pitune.ranges import PositiveInt, Range

ObsMode = Literal["auto", "state", "rgb", "rgb+state"]
Backend = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class ManiSkillOptions(EnvOptions):
    """Options of `maniskill/<task>`.

    Example:
        >>> from pitune import envs
        >>> options = ManiSkillOptions(control_mode="pd_joint_delta_pos", backend="cpu")
        >>> envs.config_for("maniskill/PickCube-v1", options=options).options.backend
        'cpu'
    """

    control_mode: str = "pd_ee_delta_pos"
    """ManiSkill's name for the meaning of the actions. The choices depend on the robot."""
    obs_mode: ObsMode = "auto"
    """`state` is the full state of the simulation, without cameras. `rgb` is the pictures of the
    cameras and a state without the poses of objects. `rgb+state` is the pictures and the full
    state. `auto` is `rgb` with cameras and `state` without."""
    backend: Backend = "auto"
    """Device of the simulation. `auto` is CUDA if torch finds it."""
    gpu: Annotated[int, Range(low=0, high=1023)] = 0
    """Number of the CUDA device of the simulation and of its pictures."""
    exact_seeds: bool = True
    """On CUDA, start each episode by its own seed, as on the CPU. `num_workers` processes make the
    starts. Otherwise the first seed of a reset determines all its starts. On the CPU the seeds are
    always exact."""
    held_tasks: PositiveInt = 1
    """Simulators that each environment of a suite keeps. Beyond it, the one that was used longest
    ago is closed, and its next episode makes it again."""


def make_maniskill_env(task: str, config: EnvConfig) -> VectorEnv:
    """Return a batch of one ManiSkill task.

    Raises:
        ImportError: ManiSkill is not installed.
        ValueError: the task, camera, control mode or reward is unknown, or a setting contradicts
            another one.
        RuntimeError: cameras are requested and this machine cannot render.
    """
    from pitune.envs.maniskill.adapter import make_maniskill

    return make_maniskill(task, config)


def make_maniskill_suite_env(members: tuple[str, ...], config: EnvConfig) -> VectorEnv:
    """Return a suite of ManiSkill tasks, see `make_maniskill_env` for the errors."""
    from pitune.envs.maniskill.suite import make_maniskill_suite

    return make_maniskill_suite(members, config)


register(
    "maniskill",
    make_maniskill_env,
    ManiSkillOptions,
    tasks=lambda: INSTRUCTIONS,
    suite_factory=make_maniskill_suite_env,
)
