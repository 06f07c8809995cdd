"""Which algorithms exist, by name. A new one is a file with `@register("name", Config)` in it."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar

from pitune.policies import FlowPolicy
from pitune.rl.algorithm import Algorithm, AlgorithmConfig

_REGISTRY: dict[str, tuple[type[AlgorithmConfig], type[Algorithm[Any]]]] = {}
AlgorithmType = TypeVar("AlgorithmType", bound=type[Algorithm[Any]])


def register(name: str, config: type[AlgorithmConfig]) -> Callable[[AlgorithmType], AlgorithmType]:
    """Register the decorated class under `name`, built from a `config`.

    Raises:
        ValueError: the name or the config is taken.
    """
    taken = {config for config, _ in _REGISTRY.values()}
    if name in _REGISTRY or config in taken:
        raise ValueError(f"algorithm {name!r} or its {config.__name__} is registered already")

    def decorate(algorithm: AlgorithmType) -> AlgorithmType:
        _REGISTRY[name] = (config, algorithm)
        return algorithm

    return decorate


def presets() -> dict[str, AlgorithmConfig]:
    """Return the default config of every registered algorithm, by name."""
    return {name: config() for name, (config, _) in _REGISTRY.items()}


def preset(name: str) -> AlgorithmConfig:
    """Return the default config of one algorithm.

    Raises:
        ValueError: nothing is registered under `name`.
    """
    if name not in _REGISTRY:
        nearest = get_close_matches(name, _REGISTRY, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"unknown algorithm {name!r}{hint} registered: {sorted(_REGISTRY)}")
    return _REGISTRY[name][0]()


def name_of(config: AlgorithmConfig) -> str:
    """Return the name that a config's algorithm is registered under.

    Raises:
        ValueError: no algorithm takes such a config.
    """
    for name, (registered, _) in _REGISTRY.items():
        if type(config) is registered:
            return name
    raise ValueError(
        f"no algorithm takes a {type(config).__name__}; registered: {sorted(_REGISTRY)}. "
        "Import the module that registers it first"
    )


def make(config: AlgorithmConfig, policy: FlowPolicy) -> Algorithm[Any]:
    """Build the algorithm that takes this type of config, around a policy.

    Raises:
        ValueError: no algorithm takes such a config, or the policy is steered: what its weights
            would learn is not what its noise actor was made for.
    """
    if policy.noise_source is not None:
        raise ValueError(
            "the checkpoint is steered (it has a noise actor); fine-tune the checkpoint that it "
            "was made from, or go on with its run by --resume"
        )
    build: Callable[..., Algorithm[Any]] = _REGISTRY[name_of(config)][1]
    return build(config, policy)
