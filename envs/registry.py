"""Environments by name: the part before the slash picks the adapter.

An adapter imports its simulator when it is made, so nothing is imported that is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from pitune.envs.checked import CheckedEnv
from pitune.envs.vector_env import VectorEnv


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Which environment, how many copies, and how they run."""

    id: str = "mujoco/PickCube"
    """`mujoco/<task>`, `maniskill/<task>`, `metaworld/<task>`, `gym/<id>` or `mock/<name>`."""
    num_envs: int = 100
    """Copies that step together."""
    num_workers: int = 2
    """Processes (or MuJoCo threads) that share the copies; 0 runs them in this process."""
    reward: Literal["sparse", "dense"] = "sparse"
    """1 on success only, or the simulator's shaped reward."""
    max_episode_steps: int | None = None
    """Time limit [environment steps]; the task's own by default."""
    cameras: tuple[str, ...] = ()
    """Cameras whose pictures enter the observation."""
    image_size: int = 64
    """Height and width of the pictures [pixels]."""


def make(config: EnvConfig) -> CheckedEnv:
    """Make an environment.

    Raises:
        ValueError: the prefix or the task is unknown; the message names the nearest.
        ImportError: its simulator is not installed; the message says how to.
    """
    if config.num_envs < 1:
        raise ValueError(f"num_envs={config.num_envs} must be at least 1")
    prefix, _, name = config.id.partition("/")
    if prefix not in _ADAPTERS or not name:
        nearest = get_close_matches(prefix, _ADAPTERS, n=1)
        hint = f"; did you mean {nearest[0] + '/' + (name or '...')!r}?" if nearest else ""
        raise ValueError(
            f"unknown environment id={config.id!r}{hint} valid: a prefix of {sorted(_ADAPTERS)}, "
            "a slash and a task, e.g. 'mujoco/PickCube'"
        )
    return CheckedEnv(_ADAPTERS[prefix](name, config))


def _time_limit(config: EnvConfig, default: int) -> int:
    return default if config.max_episode_steps is None else config.max_episode_steps


def _mujoco(task: str, config: EnvConfig) -> VectorEnv:
    from pitune.envs.tabletop.env import Tabletop

    return Tabletop(
        task,
        config.num_envs,
        reward=config.reward,
        cameras=config.cameras,
        image_size=config.image_size,
        max_episode_steps=_time_limit(config, 60),
        num_threads=max(1, config.num_workers),
    )


def _maniskill(task: str, config: EnvConfig) -> VectorEnv:
    from pitune.envs.maniskill.adapter import make_maniskill

    return make_maniskill(
        task,
        config.num_envs,
        num_workers=config.num_workers,
        reward=config.reward,
        cameras=config.cameras,
        image_size=config.image_size,
        max_episode_steps=config.max_episode_steps,
    )


def _metaworld(task: str, config: EnvConfig) -> VectorEnv:
    from pitune.envs.metaworld.adapter import make_metaworld

    _no_cameras(config)
    return make_metaworld(
        task,
        config.num_envs,
        num_workers=config.num_workers,
        reward=config.reward,
        max_episode_steps=_time_limit(config, 150),
    )


def _gymnasium(name: str, config: EnvConfig) -> VectorEnv:
    from pitune.envs.gym.adapter import make_gymnasium

    _no_cameras(config)
    return make_gymnasium(
        name,
        config.num_envs,
        num_workers=config.num_workers,
        max_episode_steps=config.max_episode_steps,
    )


def _mock(name: str, config: EnvConfig) -> VectorEnv:
    from pitune.envs.mock.reach import Reach, Script
    from pitune.envs.mock.two_goals import TwoGoals

    if name == "Reach":
        return Reach(
            config.num_envs,
            cameras=config.cameras,
            image_size=config.image_size,
            reward=config.reward,
            max_episode_steps=_time_limit(config, 20),
        )
    if name == "Script":
        length = _time_limit(config, 5)
        return Script(
            config.num_envs, lengths=(length,) * config.num_envs, ends=("time",) * config.num_envs
        )
    if name == "TwoGoals":
        _no_cameras(config)
        return TwoGoals(config.num_envs, max_episode_steps=_time_limit(config, 4))
    nearest = get_close_matches(name, ("Reach", "Script", "TwoGoals"), n=1, cutoff=0.3)
    hint = f"; did you mean 'mock/{nearest[0]}'?" if nearest else ""
    raise ValueError(
        f"unknown task id='mock/{name}'{hint} valid: mock/Reach, mock/Script, mock/TwoGoals"
    )


def _no_cameras(config: EnvConfig) -> None:
    if config.cameras:
        raise ValueError(
            f"cameras={config.cameras} are not supported by {config.id}; use a mujoco/, maniskill/ "
            "or mock/ environment, or give a gym/ environment Dict observations with image/<camera>"
        )


_ADAPTERS: dict[str, Callable[[str, EnvConfig], VectorEnv]] = {
    "gym": _gymnasium,
    "maniskill": _maniskill,
    "metaworld": _metaworld,
    "mock": _mock,
    "mujoco": _mujoco,
}
