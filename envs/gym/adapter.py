"""Any Gymnasium environment with bounded continuous actions: `gym/<id>`.

E copies are stepped in worker processes. An id that exists only as a vector environment is made as
one, see `envs/gymnasium_vector.py`.

Letters: E envs.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec
from gymnasium.envs.registration import load_env_creator

from pitune.envs.gym.vector import GymnasiumVector
from pitune.envs.vector_env import VectorEnv
from pitune.envs.workers.env import WorkerEnv

__all__ = ["GymnasiumVector", "make_gymnasium"]


def make_gymnasium(
    id: str,
    num_envs: int,
    *,
    num_workers: int = 0,
    max_episode_steps: int | None = None,
    **kwargs: Any,
) -> VectorEnv:
    """Return a batch of a Gymnasium environment.

    Args:
        id: What `gymnasium.make` takes, e.g. `Reacher-v5` or `package:Name-v0`.
        num_envs: E.
        num_workers: Processes to spread them over; 0 for this one.
        max_episode_steps: Time limit; the registered one by default.
        kwargs: For the environment.

    Raises:
        ValueError: there is no such environment, its spaces are not usable, or it has no time
            limit.
    """
    spec = find_spec(id)
    limit = spec.max_episode_steps if max_episode_steps is None else max_episode_steps
    if limit is not None:
        kwargs["max_episode_steps"] = limit
    if spec.entry_point is None:
        vector_env = gymnasium.make_vec(
            spec, num_envs, vectorization_mode="vector_entry_point", **kwargs
        )
        return GymnasiumVector(
            vector_env, id=f"gym/{id}", max_episode_steps=limit, simulator=simulator_of(spec)
        )
    return WorkerEnv(
        # The spec travels with the factory: an id may be registered in this process alone.
        functools.partial(make_copy, spec, kwargs),
        id=f"gym/{id}",
        num_envs=num_envs,
        num_workers=num_workers,
        max_episode_steps=limit,
        simulator=simulator_of(spec),
        deterministic_reset=not spec.nondeterministic,
    )


def find_spec(id: str) -> GymnasiumSpec:
    """Return what is registered under an id, after importing the package that it may name.

    Raises:
        ValueError: nothing is.
    """
    package, _, name = id.rpartition(":")
    if package:
        importlib.import_module(package)
    spec = gymnasium.registry.get(name)
    if spec is None:
        near = difflib.get_close_matches(name, gymnasium.registry, n=3, cutoff=0.4)
        raise ValueError(
            f"{id=} is not registered in Gymnasium; near it are {near}; write package:Name-v0 for "
            "an environment that its package registers when it is imported"
        )
    return spec


def make_copy(spec: GymnasiumSpec, kwargs: Mapping[str, Any]) -> gymnasium.Env:
    """Return one environment, ready to draw itself.

    Its observation is made flat if it consists of parts that `WorkerEnv` does not know.
    """
    creator = spec.entry_point
    if isinstance(creator, str):
        creator = load_env_creator(creator)
    metadata = getattr(creator, "metadata", None)
    # Drawing must be asked for here, and costs nothing until the first picture.
    can_draw = isinstance(metadata, Mapping) and "rgb_array" in metadata.get("render_modes", ())
    drawing = {"render_mode": "rgb_array"} if can_draw else {}
    env = gymnasium.make(spec, disable_env_checker=True, **{**drawing, **kwargs})
    parts = getattr(env.observation_space, "spaces", {})
    if not isinstance(parts, Mapping) or not parts:
        return env
    known = any(key == "state" or key.startswith("image/") for key in parts)
    return env if known else gymnasium.wrappers.FlattenObservation(env)


def simulator_of(spec: GymnasiumSpec) -> str:
    """Return the versions of Gymnasium and of the package and the engine of an environment."""
    entry_point = str(spec.entry_point or spec.vector_entry_point)
    names = ["gymnasium", entry_point.replace(":", ".").split(".")[0]]
    if "mujoco" in entry_point:
        names.append("mujoco")
    versions = []
    for name in dict.fromkeys(names):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(versions)
