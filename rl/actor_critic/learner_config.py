"""Settings of the off-policy actor-critic whose actor is the flow policy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from pitune.ranges import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PositiveOrInfinite,
    Settings,
)
from pitune.rl.actor_critic.off_policy_config import OffPolicyConfig


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(Settings):
    """Critics of chunks, and a flow policy that follows their gradient.

    Example:
        >>> ActorCriticConfig(actor_every=2).off_policy.num_critics
        10
    """

    off_policy: OffPolicyConfig = field(
        default_factory=lambda: OffPolicyConfig(
            minibatch_size=128, num_critics=10, critic_subset=2, warmup_rounds=1000
        )
    )
    """Memory, critics, warm-up and update-to-data ratio."""
    actor_every: PositiveInt = 4
    """Rounds per gradient step of the policy."""
    actor_learning_rate: PositiveFloat = 1e-4
    """Adam's step size for the policy [-]."""
    max_grad_norm: PositiveOrInfinite = 1.0
    """The policy's gradients are scaled down to this norm, or left alone if it is infinite [-]."""
    cloning_coefficient: NonNegativeFloat = 0.0
    """Weight of flow matching on the demonstrations, relative to a value scaled to 1 [-]."""
    anchor_coefficient: NonNegativeFloat = 3.0
    """Weight of the mean squared distance between the executed chunks of the policy and of the
    pretrained policy from the same noise [1 / normalized action squared]. It limits the damage of
    wrong critics. 0 disables it and needs no copy of the pretrained policy."""
    keep_prefix: bool = True
    """Whether to store the keys and values of pictures and prompt while their encoder is frozen, so
    that each is encoded once. At π0's full size in bfloat16 that is 30 MB per decision, 15 for its
    observation and 15 for the next. Otherwise, or if `off_policy.memory_gib` holds fewer than
    10,000 of them, the pictures are stored and encoded in each round."""

    def with_demonstrations(self, file: Path) -> ActorCriticConfig:
        """Return the settings with this file of demonstrations."""
        return replace(self, off_policy=replace(self.off_policy, demonstrations=file))
