"""Settings of the likelihoods, one small config for each.

Letters: K flow steps, H action horizon, A action dim.
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


def _check_word(name: str, value: Any, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"unknown likelihood {name}={value!r}; valid: {', '.join(valid)}")


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """Settings that every likelihood has; the type of a config chooses the likelihood.

    Example:
        >>> FlowSDEConfig(stochastic_steps="one").random_steps
        True
    """

    random_steps: ClassVar[bool] = False
    """Whether flow steps are Gaussians, so that steps have ratios and divergences of their own."""
    trainable: ClassVar[bool] = True
    """Whether its log-probability has a gradient."""

    reduction: Reduction = "sum"
    """A sum over a step's entries is its true log-density; a mean tempers the ratio."""
    ratio: Ratio = "step"
    """One ratio per scored step, each clipped by itself, or one per decision (their product)."""

    def __post_init__(self) -> None:
        _check_word("reduction", self.reduction, get_args(Reduction))
        _check_word("ratio", self.ratio, get_args(Ratio))


@dataclass(frozen=True, kw_only=True)
class FlowStepConfig(LikelihoodConfig):
    """Settings of the likelihoods that make flow steps random."""

    random_steps: ClassVar[bool] = True

    stochastic_steps: Steps = "all"
    """Every step is random, or one per sample, drawn anew each time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_word("stochastic_steps", self.stochastic_steps, get_args(Steps))


@dataclass(frozen=True, kw_only=True)
class FlowSDEConfig(FlowStepConfig):
    """Flow-SDE: random steps that keep the marginals of the ODE."""

    noise_level: float = 0.5
    """Size of the noise; see `FlowSDE` [-]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_level <= 0:
            raise ValueError(
                f"noise_level={self.noise_level} must be above 0; without noise there is no "
                "likelihood"
            )


@dataclass(frozen=True, kw_only=True)
class FlowNoiseConfig(FlowStepConfig):
    """Flow-Noise: random steps whose bounded noise is learned."""

    std_min: float = 0.08
    """Least standard deviation of a flow step [normalized action]."""
    std_max: float = 0.16
    """Greatest standard deviation; equal to the least for a constant noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.std_min <= self.std_max:
            raise ValueError(
                f"std_min={self.std_min} must be above 0 and at most std_max={self.std_max}"
            )


@dataclass(frozen=True, kw_only=True)
class VelocityGaussianConfig(FlowStepConfig):
    """A Gaussian velocity with a learned, unbounded standard deviation (F5R-TTS)."""

    std: float = 0.1
    """Standard deviation of a flow step before training [normalized action]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std <= 0:
            raise ValueError(f"std={self.std} must be above 0")


@dataclass(frozen=True, kw_only=True)
class FlowMatchingConfig(LikelihoodConfig):
    """The flow-matching loss in the place of a log-probability (FPO)."""

    num_draws: int = 8
    """Draws of noise and flow time per decision, kept from acting to learning."""
    draw_times: DrawTimes = "training"
    """Flow times as in cloning, on the sampler's grid, or uniform."""
    loss_space: LossSpace = "velocity"
    """Measure the error of the velocity, or of the noise that it implies."""
    loss_clamp: float = math.inf
    """A draw's loss counts as at most this, so that no single one rules a ratio."""
    action_noise: float = 0.0
    """Standard deviation of noise on the chunk while exploring; the flow's own spread, which is
    all that there is without it, may be too little to learn from [normalized action]."""

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
    """The exact density of the deployed flow: for tests and reports, without a gradient."""

    trainable: ClassVar[bool] = False

    num_probes: int = 0
    """Probes of Hutchinson's divergence; 0 is the full one, H * A backward passes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_probes < 0:
            raise ValueError(f"num_probes={self.num_probes} must be at least 0")
