"""`gym/<id>`: environments that are registered in Gymnasium."""

from __future__ import annotations

from dataclasses import dataclass, field

from pitune.envs.config import EnvConfig, EnvOptions, require_default
from pitune.envs.registry import register
from pitune.envs.vector_env import VectorEnv

TASKS = (
    "Ant-v5",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "Pusher-v5",
    "Reacher-v5",
    "Swimmer-v5",
    "Walker2d-v5",
)
"""Gymnasium's own environments with bounded continuous actions and numbers as observations."""


@dataclass(frozen=True, kw_only=True)
class GymOptions(EnvOptions):
    """Options of `gym/<id>`.

    Example:
        >>> from pitune import envs
        >>> options = GymOptions(kwargs={"g": 1.62})  # on the moon
        >>> config = envs.EnvConfig(
        ...     id="gym/Pendulum-v1",
        ...     num_envs=1,
        ...     num_workers=0,
        ...     reward="dense",
        ...     options=options,
        ... )
        >>> envs.make(config).spec.state_dim
        3
    """

    kwargs: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Keyword arguments of the environment. On the command line pairs, as in
    `--env.options.kwargs g 1.62 render_mode rgb_array`."""
    instructions: tuple[str, ...] = ()
    """All instructions that the environment may give, for one that gives too many to find them
    in its first episodes, or one for each value of `task_id`."""


def make_gym(name: str, config: EnvConfig) -> VectorEnv:
    """Return a batch of a Gymnasium environment.

    Raises:
        ValueError: the id is not registered, the environment cannot be used, or it cannot honor a
            setting.
    """
    from pitune.envs.gym.adapter import make_gymnasium

    require_default(
        config,
        "cameras",
        config.id,
        "use a mujoco/, maniskill/ or mock/ environment; a gym/ environment shows the cameras "
        "that its Dict observation holds under image/<camera>",
    )
    require_default(
        config, "image_size", config.id, "let the environment return pictures of this size"
    )
    return make_gymnasium(name, config)


register("gym", make_gym, GymOptions, tasks=lambda: TASKS)
