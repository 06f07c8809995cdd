"""Settings of the likelihoods, one small config for each.

Letters: H action horizon, A model action dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

DrawTimes = Literal["training", "grid", "uniform"]
LossSpace = Literal["velocity", "noise"]
Steps = Literal["one", "all"]
Reduction = Literal["sum", "mean"]
Ratio = Literal["joint", "step"]
NoiseEntries = Literal["executed", "all"]


def _check_word(name: str, value: Any, valid: tuple[str, ...]) -> None:
    """Raise ValueError unless a field's value is one of the valid words."""
    if value not in valid:
        raise ValueError(f"unknown likelihood {name}={value!r}; valid: {', '.join(valid)}")


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """Settings of every likelihood. The type of a config selects the likelihood.

    Example:
        >>> FlowSDEConfig(stochastic_steps="one").random_steps
        True
    """

    random_steps: ClassVar[bool] = False
    """Whether flow steps are Gaussian, so that each step has a ratio and a divergence."""
    trainable: ClassVar[bool] = True
    """Whether the log-probability has a gradient."""

    reduction: Reduction = "sum"
    """Reduction over a step's entries: their sum is the log-density, their mean tempers the ratio.
    """
    ratio: Ratio = "step"
    """One ratio per scored flow step, each clipped separately, or one per decision (their product).
    """

    def __post_init__(self) -> None:
        _check_word("reduction", self.reduction, get_args(Reduction))
        _check_word("ratio", self.ratio, get_args(Ratio))


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

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_word("stochastic_steps", self.stochastic_steps, get_args(Steps))
        _check_word("noise_entries", self.noise_entries, get_args(NoiseEntries))


@dataclass(frozen=True, kw_only=True)
class FlowSDEConfig(FlowStepConfig):
    """Flow-SDE: random flow steps with the same marginals as the ODE.

    Example:
        >>> FlowSDEConfig(noise_level=0.3).ratio
        'step'
    """

    noise_level: float = 0.5
    """Scale of the noise [-], see `FlowSDE`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_level <= 0:
            raise ValueError(
                f"noise_level={self.noise_level} must be above 0; without noise a chain has no "
                "likelihood"
            )


@dataclass(frozen=True, kw_only=True)
class FlowNoiseConfig(FlowStepConfig):
    """Flow-Noise: random flow steps with a learned, bounded standard deviation.

    Example:
        >>> FlowNoiseConfig(std_min=0.05, std_max=0.1).reduction
        'sum'
    """

    std_min: float = 0.08
    """Least standard deviation of a flow step [normalized action]."""
    std_max: float = 0.16
    """Greatest standard deviation of a flow step [normalized action]. Equal bounds fix it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.std_min <= self.std_max:
            raise ValueError(
                f"std_min={self.std_min} must be above 0 and at most std_max={self.std_max}"
            )


@dataclass(frozen=True, kw_only=True)
class VelocityGaussianConfig(FlowStepConfig):
    """A Gaussian velocity with a learned, unbounded standard deviation (F5R-TTS).

    Example:
        >>> VelocityGaussianConfig(std=0.05).random_steps
        True
    """

    std: float = 0.1
    """Initial standard deviation of a flow step [normalized action]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std <= 0:
            raise ValueError(f"std={self.std} must be above 0")


@dataclass(frozen=True, kw_only=True)
class FlowMatchingConfig(LikelihoodConfig):
    """The flow-matching loss in place of a log-probability (FPO).

    Example:
        >>> FlowMatchingConfig(num_draws=4, action_noise=0.1).random_steps
        False
    """

    num_draws: int = 8
    """Draws of noise and flow time per decision, stored in the rollout for the update."""
    draw_times: DrawTimes = "training"
    """Distribution of the flow times: as in cloning, on the sampler's grid, or uniform."""
    loss_space: LossSpace = "velocity"
    """Space of the error: the velocity, or the noise that the velocity implies."""
    loss_clamp: float = math.inf
    """Upper bound of a draw's loss, so that no single draw dominates a ratio."""
    action_noise: float = 0.0
    """Standard deviation of the noise on an exploring chunk [normalized action]. Without it, only
    the flow's own spread explores, which may be too little."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_word("draw_times", self.draw_times, get_args(DrawTimes))
        _check_word("loss_space", self.loss_space, get_args(LossSpace))
        if self.num_draws < 1:
            raise ValueError(f"num_draws={self.num_draws} must be at least 1")
        if self.action_noise < 0:
            raise ValueError(f"action_noise={self.action_noise} must be at least 0")


@dataclass(frozen=True, kw_only=True)
class ExactFlowConfig(LikelihoodConfig):
    """The exact density of the deployed flow, without a gradient, for tests and reports.

    Example:
        >>> ExactFlowConfig(num_probes=4).trainable
        False
    """

    trainable: ClassVar[bool] = False

    num_probes: int = 0
    """Probes of Hutchinson's divergence estimate. 0 is exact and takes H * A backward passes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_probes < 0:
            raise ValueError(f"num_probes={self.num_probes} must be at least 0")
