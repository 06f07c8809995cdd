"""Any Gymnasium environment with bounded continuous actions: `gym/<id>`.

Worker processes step E sub-environments. An id that is registered as a vector environment only is
made as one, see `pitune.envs.gym.vector`.

Letters: E envs.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec
from gymnasium.envs.registration import load_env_creator

from pitune.envs.config import EnvConfig
from pitune.envs.gym.interface import make_with_interface, takes_argument
from pitune.envs.gym.registration import GymOptions
from pitune.envs.gym.vector import GymnasiumVector
from pitune.envs.user_modules import import_user_module
from pitune.envs.vector_env import VectorEnv
from pitune.envs.workers.env import WorkerEnv
from pitune.envs.workers.pool import Timeouts
from pitune.envs.workers.sub_envs import construction_seed
from pitune.envs.workers.surroundings import Surroundings


def make_gymnasium(name: str, config: EnvConfig) -> VectorEnv:
    """Return a batch of a Gymnasium environment.

    Args:
        name: The id for `gymnasium.make`, e.g. `Reacher-v5` or `package:Name-v0`.
        config: Its options are `GymOptions`.

    Raises:
        ValueError: the id is not registered, its spaces are not usable, it rejects a keyword
            argument, or it has no time limit.
    """
    spec, options = find_spec(name), config.typed_options(GymOptions)
    kwargs: dict[str, Any] = dict(options.kwargs)
    # the time limit belongs to the config
    if "max_episode_steps" in kwargs:
        raise ValueError(
            f"kwargs={kwargs} of {config.id} must not set the time limit; "
            "set max_episode_steps of EnvConfig"
        )
    limit = spec.max_episode_steps if config.max_episode_steps is None else config.max_episode_steps
    if limit is not None:
        kwargs["max_episode_steps"] = limit

    # a vector environment with its own implementation, or workers
    tasks = options.instructions if config.instruction is None else (config.instruction,)
    if spec.entry_point is None:
        return GymnasiumVector(
            make_vector(spec, config.num_envs, kwargs),
            id=config.id,
            max_episode_steps=limit,
            tasks=tasks,
            control_hz=config.control_hz,
            simulator=simulator_version(spec),
            reward=config.reward,
            max_failures=config.max_failures,
        )
    return WorkerEnv(
        # The spec travels with the factory, because an id may be registered in this process only.
        functools.partial(make_sub_env, spec, kwargs),
        id=config.id,
        num_envs=config.num_envs,
        num_workers=config.num_workers,
        max_episode_steps=limit,
        tasks=tasks,
        control_hz=config.control_hz,
        simulator=simulator_version(spec),
        deterministic_reset=not spec.nondeterministic,
        reward=config.reward,
        timeouts=Timeouts.of_config(config),
        max_failures=config.max_failures,
    )


def find_spec(name: str) -> GymnasiumSpec:
    """Return the registered spec of an id, after importing the package that the id names, if any.

    Raises:
        ValueError: the id is not registered.
    """
    # importing a package registers its environments
    package, _, name_in_package = name.rpartition(":")
    if package:
        import_user_module(package)
    spec = gymnasium.registry.get(name_in_package)
    if spec is None:
        near = difflib.get_close_matches(name_in_package, gymnasium.registry, n=3, cutoff=0.4)
        raise ValueError(
            f"id='{name}' is not registered in Gymnasium; near it are {near}; write "
            "package:Name-v0 for an environment that its package registers when it is imported"
        )
    return spec


def make_vector(
    spec: GymnasiumSpec, num_envs: int, kwargs: Mapping[str, Any]
) -> gymnasium.vector.VectorEnv:
    """Return a vector environment of Gymnasium, made by its own entry point."""
    surroundings = Surroundings(1, shared=True)
    with surroundings.borrowed(), _named_kwargs(spec, kwargs):
        surroundings.enter(0, construction_seed(0))
        return gymnasium.make_vec(spec, num_envs, vectorization_mode="vector_entry_point", **kwargs)


def make_sub_env(spec: GymnasiumSpec, kwargs: Mapping[str, Any]) -> gymnasium.Env:
    """Return one environment with Gymnasium's interface of today, that can render if possible."""
    entry_point = spec.entry_point
    creator: Any = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    metadata = getattr(creator, "metadata", None)
    # The render mode is fixed when the environment is made. It costs nothing before the first
    # picture.
    can_draw = isinstance(metadata, Mapping) and "rgb_array" in metadata.get("render_modes", ())
    takes_mode = can_draw and takes_argument(creator, "render_mode")
    drawing = {"render_mode": "rgb_array"} if takes_mode else {}
    # the wrapper is the innermost one, because Gymnasium's own wrappers expect its interface
    made = replace(spec, entry_point=functools.partial(make_with_interface, creator))
    with _named_kwargs(spec, kwargs):
        return gymnasium.make(made, disable_env_checker=True, **{**drawing, **kwargs})


def simulator_version(spec: GymnasiumSpec) -> str:
    """Return the versions of Gymnasium, of the environment's package and of its engine."""
    entry_point = str(spec.entry_point or spec.vector_entry_point)
    names = ["gymnasium", entry_point.replace(":", ".").split(".")[0]]
    if "mujoco" in entry_point:
        names.append("mujoco")
    versions = []
    for name in dict.fromkeys(names):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(versions)


@contextlib.contextmanager
def _named_kwargs(spec: GymnasiumSpec, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Turn the TypeError for an unknown keyword argument into a ValueError with its name."""
    try:
        yield
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        given = {name: value for name, value in kwargs.items() if name != "max_episode_steps"}
        raise ValueError(
            f"kwargs={given} are not accepted by gym/{spec.id}: {error}; "
            "pass arguments of the environment's constructor"
        ) from error
