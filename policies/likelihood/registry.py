"""Likelihoods by name, and the interface of one.

Letters: N rows, M scored steps, D width of the expert.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Generic, TypeAlias, TypeVar

from tensordict import TensorDictBase
from torch import Tensor, nn

from pitune.policies.likelihood.config import LikelihoodConfig
from pitune.policies.likelihood.distributions import ActionDistribution
from pitune.policies.network.pi0 import Context
from pitune.policies.policy import FlowPolicy

ConfigType = TypeVar("ConfigType", bound=LikelihoodConfig)
Draws: TypeAlias = "Mapping[str, Tensor] | TensorDictBase"
"""The random choices of a decision, by key."""


class Likelihood(nn.Module, ABC, Generic[ConfigType]):
    """A way to make the policy's chunks random, and to score them.

    Args:
        config: Settings.
        policy: Gives the sizes of learned noise; it is not kept.

    Attributes:
        head: The network of a learned noise; it is trained with the policy.
    """

    head: nn.Module | None

    def __init__(self, config: ConfigType, policy: FlowPolicy) -> None:
        super().__init__()
        self.config, self.head = config, None

    @property
    def draw_keys(self) -> list[str]:
        """Keys of `draw`, which the rollout keeps."""
        return []

    def draw(self, policy: FlowPolicy, num: int) -> dict[str, Tensor]:
        """Return the random choices (N, ...) that scoring needs again; none by default."""
        return {}

    @abstractmethod
    def distribution(
        self, policy: FlowPolicy, context: Context, num: int, draws: Draws
    ) -> ActionDistribution:
        """Return the distribution over chains of N encoded observations.

        Args:
            policy: Whose velocity and sampler are used.
            context: The encoded observations.
            num: N.
            draws: The result of `draw` at these decisions.
        """

    def terminal_std(self, policy: FlowPolicy, context: Context, chain: Tensor) -> float:
        """Return the standard deviation of executed entries in the finished chunk; 0 by default.

        Averaged over the decisions of chains (N, K + 1, H, A) [normalized action].
        """
        return 0.0


_REGISTRY: dict[str, tuple[type[LikelihoodConfig], type[Likelihood[Any]]]] = {}
LikelihoodType = TypeVar("LikelihoodType", bound=type[Likelihood[Any]])


def register_likelihood(
    name: str, config: type[LikelihoodConfig]
) -> Callable[[LikelihoodType], LikelihoodType]:
    """Register the decorated class under `name`; a config of this type chooses it.

    Raises:
        ValueError: the name or the config is taken.
    """
    if name in _REGISTRY or config in {taken for taken, _ in _REGISTRY.values()}:
        raise ValueError(f"likelihood {name!r} or its {config.__name__} is registered already")

    def decorate(likelihood: LikelihoodType) -> LikelihoodType:
        _REGISTRY[name] = (config, likelihood)
        return likelihood

    return decorate


def likelihoods() -> dict[str, LikelihoodConfig]:
    """Return the default config of every registered likelihood, by name."""
    return {name: config() for name, (config, _) in _REGISTRY.items()}


def likelihood_config(name: str, **settings: Any) -> LikelihoodConfig:
    """Return the config of a likelihood by its name.

    Raises:
        ValueError: no likelihood is registered under `name`.
    """
    if name not in _REGISTRY:
        nearest = get_close_matches(name, _REGISTRY, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ";"
        raise ValueError(f"unknown likelihood {name!r}{hint} registered: {sorted(_REGISTRY)}")
    return _REGISTRY[name][0](**settings)


def likelihood_name(config: LikelihoodConfig) -> str:
    """Return the name that a config's likelihood is registered under.

    Raises:
        ValueError: no likelihood takes such a config.
    """
    for name, (registered, _) in _REGISTRY.items():
        if type(config) is registered:
            return name
    raise ValueError(
        f"no likelihood takes a {type(config).__name__}; registered: {sorted(_REGISTRY)}. Import "
        "the module that registers it first"
    )


def make_likelihood(config: LikelihoodConfig, policy: FlowPolicy) -> Likelihood[Any]:
    """Build the likelihood that takes this type of config, for a policy.

    Raises:
        ValueError: no likelihood takes such a config.
    """
    return _REGISTRY[likelihood_name(config)][1](config, policy).to(policy.device)
