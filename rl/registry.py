"""The registry of algorithms. A new one is a module with an `@register("name", Config)` class."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar

from pitune.policies import FlowPolicy
from pitune.rl.algorithm import Algorithm, AlgorithmConfig

_REGISTRY: dict[str, tuple[type[AlgorithmConfig], type[Algorithm[Any]]]] = {}
AlgorithmType = TypeVar("AlgorithmType", bound=type[Algorithm[Any]])


def register(name: str, config: type[AlgorithmConfig]) -> Callable[[AlgorithmType], AlgorithmType]:
    """Register the decorated class under `name`. A config of this type selects it.

    Raises:
        ValueError: the name or the config is registered already.
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
        ValueError: no algorithm is registered under `name`.

    Example:
        >>> from pitune import rl
        >>> rl.preset("ppo").update.num_epochs
        4
    """
    if name not in _REGISTRY:
        nearest = get_close_matches(name, _REGISTRY, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"unknown algorithm {name!r}{hint} registered: {sorted(_REGISTRY)}")
    return _REGISTRY[name][0]()


def name_of(config: AlgorithmConfig) -> str:
    """Return the registered name of a config's algorithm.

    Raises:
        ValueError: no algorithm has this type of config.
    """
    for name, (registered, _) in _REGISTRY.items():
        if type(config) is registered:
            return name
    raise ValueError(
        f"no algorithm takes a {type(config).__name__}; registered: {sorted(_REGISTRY)}. "
        "Import the module that registers it first"
    )


def make(config: AlgorithmConfig, policy: FlowPolicy) -> Algorithm[Any]:
    """Build a policy's algorithm, selected by the type of the config.

    Raises:
        ValueError: no algorithm has this type of config, or the policy is steered. Training would
            change the weights that its noise actor was trained for.
    """
    if policy.noise_source is not None:
        raise ValueError(
            "the checkpoint is steered (it has a noise actor); fine-tune the checkpoint that it "
            "was made from, or go on with its run by --resume"
        )
    build: Callable[..., Algorithm[Any]] = _REGISTRY[name_of(config)][1]
    return build(config, policy)
