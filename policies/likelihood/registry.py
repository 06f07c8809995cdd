"""The registry of likelihoods, and their interface.

Letters: N rows, K flow steps, H action horizon, A model action dim.
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
from pitune.policies.network.context import Context
from pitune.policies.policy import FlowPolicy

ConfigType = TypeVar("ConfigType", bound=LikelihoodConfig)
Draws: TypeAlias = "Mapping[str, Tensor] | TensorDictBase"
"""The random choices of a decision, by key."""


class Likelihood(nn.Module, ABC, Generic[ConfigType]):
    """A likelihood makes the policy's chunks random, and scores them.

    Args:
        config: Settings.
        policy: Gives the sizes of a learned noise. It is not stored.

    Attributes:
        head: Network of a learned noise, which is trained with the policy, or None.

    Example:
        >>> @register_likelihood("my_flow", MyFlowConfig)  # doctest: +SKIP
        ... class MyFlow(Likelihood[MyFlowConfig]):
        ...     def distribution(self, policy, context, num, draws):
        ...         return MyDistribution(policy.field(context), policy.grid)
    """

    head: nn.Module | None

    def __init__(self, config: ConfigType, policy: FlowPolicy) -> None:
        super().__init__()
        self.config, self.head = config, None

    @property
    def draw_keys(self) -> list[str]:
        """Keys of `draw`, which the rollout stores."""
        return []

    def draw(self, policy: FlowPolicy, num: int) -> dict[str, Tensor]:
        """Return the random choices (N, ...) that scoring needs again. The default is none."""
        return {}

    @abstractmethod
    def distribution(
        self, policy: FlowPolicy, context: Context, num: int, draws: Draws
    ) -> ActionDistribution:
        """Return the distribution over chains of encoded observations (N).

        Args:
            policy: Gives the velocity and the sampler.
            context: The encoded observations.
            num: N.
            draws: The result of `draw` for these decisions.
        """

    def terminal_std(self, policy: FlowPolicy, context: Context, chain: Tensor) -> float:
        """Return the standard deviation of executed entries in the finished chunk, 0 by default.

        It is the mean over the decisions of chains (N, K + 1, H, A) [normalized action].
        """
        return 0.0


_REGISTRY: dict[str, tuple[type[LikelihoodConfig], type[Likelihood[Any]]]] = {}
LikelihoodType = TypeVar("LikelihoodType", bound=type[Likelihood[Any]])


def register_likelihood(
    name: str, config: type[LikelihoodConfig]
) -> Callable[[LikelihoodType], LikelihoodType]:
    """Register the decorated class under `name`. A config of this type selects it.

    Raises:
        ValueError: the name or the config is registered already.
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

    Args:
        name: Name of the likelihood.
        **settings: Fields of its config.

    Raises:
        ValueError: no likelihood is registered under `name`.
    """
    if name not in _REGISTRY:
        nearest = get_close_matches(name, _REGISTRY, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ";"
        raise ValueError(f"unknown likelihood {name!r}{hint} registered: {sorted(_REGISTRY)}")
    return _REGISTRY[name][0](**settings)


def likelihood_name(config: LikelihoodConfig) -> str:
    """Return the registered name of a config's likelihood.

    Raises:
        ValueError: no likelihood has this type of config.
    """
    for name, (registered, _) in _REGISTRY.items():
        if type(config) is registered:
            return name
    raise ValueError(
        f"no likelihood takes a {type(config).__name__}; registered: {sorted(_REGISTRY)}. First "
        "import the module that registers it"
    )


def make_likelihood(config: LikelihoodConfig, policy: FlowPolicy) -> Likelihood[Any]:
    """Build a policy's likelihood, selected by the type of the config.

    Raises:
        ValueError: no likelihood has this type of config.
    """
    return _REGISTRY[likelihood_name(config)][1](config, policy).to(policy.device)
