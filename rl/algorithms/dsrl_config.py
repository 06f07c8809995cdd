"""Settings of DSRL."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pitune.policies import SteeringConfig
from pitune.ranges import Finite, PositiveFloat, PositiveInt
from pitune.rl.actor_critic.off_policy_config import OffPolicyConfig
from pitune.rl.algorithm import AlgorithmConfig


@dataclass(frozen=True, kw_only=True)
class DSRLConfig(AlgorithmConfig):
    """Learn the starting noise of a frozen policy.

    Example:
        >>> DSRLConfig(variant="sac").steering.magnitude
        1.5
    """

    variant: Literal["noise_aliased", "sac"] = "noise_aliased"
    """Learn values of actions and distil them into values of noise, or learn values of noise."""
    steering: SteeringConfig = field(default_factory=SteeringConfig)
    """Layout and bound of the chosen noise, and the size of the noise actor."""
    off_policy: OffPolicyConfig = field(default_factory=OffPolicyConfig)
    """Memory, critics and update-to-data ratio."""
    actor_every: PositiveInt = 2
    """Rounds per gradient step of the noise actor, its temperature and the noise critic."""
    actor_learning_rate: PositiveFloat = 3e-4
    """Adam's step size for the noise actor [-]."""
    temperature_learning_rate: PositiveFloat = 3e-4
    """Adam's step size for the entropy's weight [-]."""
    initial_temperature: PositiveFloat = 0.005
    """Initial weight of the entropy [reward per nat]. With a sparse reward the values of different
    noises differ by less than 0.1, and a greater weight keeps the actor near uniform for long."""
    target_entropy: Finite = 0.0
    """Target of the entropy per entry of the latent [nats, in the latent's units]."""
    entropy_in_target: bool = False
    """Whether the value targets contain the entropy of the next decision."""
    keep_context: bool = True
    """noise_aliased: whether to store the keys and values of each observation, so that a frozen
    prefix is encoded once. At π0's full size in bfloat16 that is 30 MB per decision, for its own
    observation and the next. Otherwise, or if `off_policy.memory_gib` holds fewer than 10,000 of
    them, observations are stored and encoded in each round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant == "sac" and self.off_policy.offline_share:
            raise ValueError(
                f"offline_share={self.off_policy.offline_share}: demonstrations have actions but "
                "no noise, which variant='sac' learns from; pass 0 or variant='noise_aliased'"
            )

    def with_demonstrations(self, file: Path) -> DSRLConfig:
        return replace(self, off_policy=replace(self.off_policy, demonstrations=file))
