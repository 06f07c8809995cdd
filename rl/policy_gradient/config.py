"""Settings that the policy-gradient algorithms share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pitune.rl.algorithm import AlgorithmConfig
from pitune.rl.config import (
    MinibatchConfig,
    ReturnConfig,
    check_counts,
    check_not_negative,
    check_positive,
    check_range,
    check_shares,
)


@dataclass(frozen=True, kw_only=True)
class UpdateConfig(MinibatchConfig):
    """Gradient steps of one update. A ragged last minibatch is dropped.

    Example:
        >>> UpdateConfig(num_epochs=2).minibatch_size
        512
    """

    num_epochs: int = 4
    """Passes over the decisions of an update."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm, separately for policy and critic [-]."""
    target_kl: float = 0.2
    """The update ends when the mean of (ratio - 1 - log ratio) exceeds this [nats per ratio]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "num_epochs")
        check_positive(self, "max_grad_norm", "target_kl")


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig(ReturnConfig):
    """Advantages and value targets.

    Example:
        >>> AdvantageConfig(gae_lambda=0.9).discount
        0.99
    """

    gae_lambda: float = 0.95
    """Weight of long returns in the advantage, per decision [-]."""
    normalize_returns: bool = False
    """Whether the critic learns returns that are scaled to mean 0 and standard deviation 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "gae_lambda")


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Range of the ratio outside which the surrogate has no gradient.

    Example:
        >>> ClipConfig(high=0.28).low
        0.2
    """

    low: float = 0.2
    """Range of the ratio below 1 [-]."""
    high: float = 0.2
    """Range of the ratio above 1 [-]."""

    def __post_init__(self) -> None:
        check_range(self, "low", low=0, low_open=True, high=1)
        check_positive(self, "high")


@dataclass(frozen=True, kw_only=True)
class PPOClipConfig(ClipConfig):
    """PPO's clips of the ratio, of the objective of bad decisions, and of the values.

    Example:
        >>> PPOClipConfig(dual=3.0).value
        inf
    """

    dual: float = math.inf
    """Lower bound of the objective for a negative advantage, in multiples of the advantage [-]. 3
    is common, and infinite disables it."""
    value: float = math.inf
    """Range of a value around the value before the update [scaled returns]. Infinite disables it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.dual > 1:
            raise ValueError(f"dual={self.dual} must be above 1; infinite is none")
        check_positive(self, "value")


@dataclass(frozen=True, kw_only=True)
class CriticBasedConfig(AlgorithmConfig):
    """Settings of a policy gradient with a critic.

    Example:
        >>> CriticBasedConfig(update=UpdateConfig(minibatch_size=64)).policy_minibatch
        64
    """

    actor_learning_rate: float = 1e-4
    """Adam's step size for the policy [-]."""
    critic_learning_rate: float = 1e-3
    """Adam's step size for the critic [-]."""
    critic_warmup: int = 3
    """Updates that train only the critic, because the advantages of an untrained critic are noise.
    """
    update: UpdateConfig = field(default_factory=UpdateConfig)
    """Epochs, minibatches and the end of an update."""
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    """Discount, weight of long returns, and the time limit."""

    def __post_init__(self) -> None:
        check_positive(self, "actor_learning_rate", "critic_learning_rate")
        check_not_negative(self, "critic_warmup")

    @property
    def policy_minibatch(self) -> int:
        return self.update.minibatch_size
