"""Settings that the policy-gradient algorithms share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from pitune.ranges import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveOrInfinite,
    Range,
    Settings,
    Share,
)
from pitune.rl.algorithm import AlgorithmConfig
from pitune.rl.cloning.config import LanguageRegularizationConfig
from pitune.rl.config import MemoryGradientConfig, MinibatchConfig, PrefixConfig, ReturnConfig
from pitune.rl.value_distribution import DistributionConfig


@dataclass(frozen=True, kw_only=True)
class UpdateConfig(MinibatchConfig, MemoryGradientConfig, PrefixConfig):
    """Gradient steps of one update. A ragged last minibatch is dropped.

    Example:
        >>> UpdateConfig(num_epochs=2).minibatch_size
        512
    """

    num_epochs: PositiveInt = 4
    """Passes over the decisions of an update."""
    max_grad_norm: PositiveOrInfinite = 1.0
    """Gradients are scaled down to this norm, separately for policy and critic [-].
    Infinite disables it."""
    target_kl: PositiveOrInfinite = 0.2
    """The update ends when the mean of (ratio - 1 - log ratio) exceeds this [nats per ratio].
    Infinite disables it."""


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig(ReturnConfig):
    """Advantages and value targets.

    Example:
        >>> AdvantageConfig(gae_lambda=0.9).discount
        0.99
    """

    gae_lambda: Share = 0.95
    """Weight of long returns in the advantage, per decision [-]."""
    normalize_returns: bool = False
    """Whether the critic learns returns that are scaled to mean 0 and standard deviation 1."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig(Settings):
    """Range of the ratio outside which the surrogate has no gradient.

    Example:
        >>> ClipConfig(high=0.28).low
        0.2
    """

    low: Annotated[float, Range(low=0, low_open=True, high=1)] = 0.2
    """Range of the ratio below 1 [-]."""
    high: PositiveFloat = 0.2
    """Range of the ratio above 1 [-]."""


@dataclass(frozen=True, kw_only=True)
class PPOClipConfig(ClipConfig):
    """PPO's clips of the ratio, of the objective of bad decisions, and of the values.

    Example:
        >>> PPOClipConfig(dual=3.0).value
        inf
    """

    dual: Annotated[float, Range(low=1, low_open=True, infinite=True)] = math.inf
    """Lower bound of the objective for a negative advantage, in multiples of the advantage [-]. 3
    is common, and infinite disables it."""
    value: PositiveOrInfinite = math.inf
    """Range of a value around the value before the update [scaled returns]. Infinite disables it.
    """


@dataclass(frozen=True, kw_only=True)
class RegularizedConfig(AlgorithmConfig):
    """Settings of a policy gradient with losses of the language model beside it.

    Example:
        >>> RegularizedConfig().language.is_on
        False
    """

    language: LanguageRegularizationConfig = field(default_factory=LanguageRegularizationConfig)
    """Losses of the language head on texts and demonstrations, beside the policy gradient."""


@dataclass(frozen=True, kw_only=True)
class CriticBasedConfig(RegularizedConfig):
    """Settings of a policy gradient with a critic.

    Example:
        >>> CriticBasedConfig(update=UpdateConfig(minibatch_size=64)).policy_minibatch
        64
    """

    actor_learning_rate: PositiveFloat = 1e-4
    """Adam's step size for the policy [-]."""
    critic_learning_rate: PositiveFloat = 1e-3
    """Adam's step size for the critic [-]."""
    critic_warmup: NonNegativeInt = 3
    """Updates that train only the critic, because the advantages of an untrained critic are noise.
    """
    update: UpdateConfig = field(default_factory=UpdateConfig)
    """Epochs, minibatches and the end of an update."""
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    """Discount, weight of long returns, and the time limit."""
    critic_distribution: DistributionConfig = field(default_factory=DistributionConfig)
    """Bins of a critic that predicts a distribution of values. By default it predicts a number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_distribution.used and self.advantage.normalize_returns:
            raise ValueError(
                "advantage.normalize_returns=True does not apply to a categorical critic "
                f"(critic_distribution.form={self.critic_distribution.form!r}), whose bins have "
                "fixed values; leave one of them out"
            )

    @property
    def policy_minibatch(self) -> int:
        return self.update.minibatch_size
