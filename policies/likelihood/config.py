"""Settings of the likelihoods, one small config for each.

Letters: H action horizon, A model action dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pitune.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveOrInfinite,
    Settings,
)

DrawTimes = Literal["training", "grid", "uniform"]
LossSpace = Literal["velocity", "noise"]
Steps = Literal["one", "all"]
Reduction = Literal["sum", "mean"]
Ratio = Literal["joint", "step"]
NoiseEntries = Literal["executed", "all"]


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig(Settings):
    """Settings of every likelihood. The type of a config selects the likelihood.

    Example:
        >>> FlowSDEConfig(stochastic_steps="one").random_steps
        True
    """

    random_steps: ClassVar[bool] = False
    """Whether flow steps are Gaussian, so that each step has a ratio and a divergence."""
    trainable: ClassVar[bool] = True
    """Whether the log-probability has a gradient."""
    decoder: ClassVar[Literal["flow", "fast"]] = "flow"
    """The part of the policy that makes the chunks: its flow, or its FAST tokens."""
    compiled: ClassVar[bool] = True
    """Whether acting may be compiled whole. Otherwise the functions inside it are."""

    reduction: Reduction = "sum"
    """Reduction over a step's entries: their sum is the log-density, their mean tempers the ratio.
    """
    ratio: Ratio = "step"
    """One ratio per scored flow step, each clipped separately, or one per decision (their product).
    """


@dataclass(frozen=True, kw_only=True)
class FlowStepConfig(LikelihoodConfig):
    """Settings of the likelihoods with random flow steps.

    Example:
        >>> FlowNoiseConfig(std_max=0.2).stochastic_steps
        'all'
    """

    random_steps: ClassVar[bool] = True

    stochastic_steps: Steps = "all"
    """Every flow step is random, or one per decision, which is drawn."""
    noise_entries: NoiseEntries = "executed"
    """Entries of a chunk with noise and a score. "executed": those that the robot executes, in
    every flow step. "all": every entry, except in the last flow step, where it is the executed
    ones. Executed entries depend on the others until then, so only with "all" are the ratios
    importance weights. Without entries that are not executed both are the same."""


@dataclass(frozen=True, kw_only=True)
class FlowSDEConfig(FlowStepConfig):
    """Flow-SDE: random flow steps with the same marginals as the ODE.

    Example:
        >>> FlowSDEConfig(noise_level=0.3).ratio
        'step'
    """

    noise_level: PositiveFloat = 0.5
    """Scale of the noise [-], see `FlowSDE`. Without noise a chain has no likelihood."""


@dataclass(frozen=True, kw_only=True)
class FlowNoiseConfig(FlowStepConfig):
    """Flow-Noise: random flow steps with a learned, bounded standard deviation.

    Example:
        >>> FlowNoiseConfig(std_min=0.05, std_max=0.1).reduction
        'sum'
    """

    std_min: PositiveFloat = 0.08
    """Least standard deviation of a flow step [normalized action]."""
    std_max: PositiveFloat = 0.16
    """Greatest standard deviation of a flow step [normalized action]. Equal bounds fix it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std_min > self.std_max:
            raise ValueError(f"std_min={self.std_min} must be at most std_max={self.std_max}")


@dataclass(frozen=True, kw_only=True)
class VelocityGaussianConfig(FlowStepConfig):
    """A Gaussian velocity with a learned, unbounded standard deviation (F5R-TTS).

    Example:
        >>> VelocityGaussianConfig(std=0.05).random_steps
        True
    """

    std: PositiveFloat = 0.1
    """Initial standard deviation of a flow step [normalized action]."""


@dataclass(frozen=True, kw_only=True)
class FlowMatchingConfig(LikelihoodConfig):
    """The flow-matching loss in place of a log-probability (FPO).

    Example:
        >>> FlowMatchingConfig(num_draws=4, action_noise=0.1).random_steps
        False
    """

    num_draws: PositiveInt = 8
    """Draws of noise and flow time per decision, stored in the rollout for the update."""
    draw_times: DrawTimes = "training"
    """Distribution of the flow times: as in cloning, on the sampler's grid, or uniform."""
    loss_space: LossSpace = "velocity"
    """Space of the error: the velocity, or the noise that the velocity implies."""
    loss_clamp: PositiveOrInfinite = math.inf
    """Upper bound of a draw's loss, so that no single draw dominates a ratio."""
    action_noise: NonNegativeFloat = 0.0
    """Standard deviation of the noise on an exploring chunk [normalized action]. Without it, only
    the flow's own spread explores, which may be too little."""


@dataclass(frozen=True, kw_only=True)
class ExactFlowConfig(LikelihoodConfig):
    """The exact density of the deployed flow, without a gradient, for tests and reports.

    Example:
        >>> ExactFlowConfig(num_probes=4).trainable
        False
    """

    trainable: ClassVar[bool] = False
    compiled: ClassVar[bool] = False

    num_probes: NonNegativeInt = 0
    """Probes of Hutchinson's divergence estimate. 0 is exact and takes H * A backward passes."""


@dataclass(frozen=True, kw_only=True)
class FastLikelihoodConfig(LikelihoodConfig):
    """The FAST tokens of a chunk, one after another. Their probability is exact.

    A policy with a language head and a FAST tokenizer acts by its tokens, and the flow has no part
    in it. With `ratio="step"` each token has a ratio, and with "joint" a decision has one.

    Example:
        >>> FastLikelihoodConfig(temperature=1.0).random_steps
        False
    """

    decoder: ClassVar[Literal["flow", "fast"]] = "fast"
    compiled: ClassVar[bool] = False

    temperature: PositiveFloat = 1.0
    """Temperature of the sampled tokens [-]."""
