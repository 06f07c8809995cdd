"""Settings of evolutionary policy optimization.

Letters: P population members, G gene dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pitune.rl.algorithm import AlgorithmConfig
from pitune.rl.algorithms.ppo import PPOConfig
from pitune.rl.config import check_counts, check_not_negative, check_positive, check_range


@dataclass(frozen=True, kw_only=True)
class EPOConfig(AlgorithmConfig):
    """PPO on a population of genes that condition one policy and one critic.

    Example:
        >>> EPOConfig(num_members=8).ppo.clip.low
        0.2
    """

    ppo: PPOConfig = field(default_factory=PPOConfig)
    """PPO of the members on their own episodes."""
    num_members: int = 4
    """P. The number of environments is a multiple of it."""
    gene_dim: int = 16
    """G."""
    aggregate: float = 1.0
    """Weight of the other members' decisions in the master's loss, or 0 to disable them [-]."""
    log_ratio_cap: float = 5.0
    """Decisions of the others with a larger absolute log-ratio of the master are left out [nats].
    """
    evolve_every: int = 10
    """Updates between selections, or 0 for none."""
    selection_deviations: float = 2.0
    """A replaced member is worse than the best by at least this number of standard errors [-]."""
    mutation_std: float = 0.3
    """Standard deviation of the noise on a child's gene [-]. That of the initial genes is 1."""
    fitness_decay: float = 0.7
    """Decay of a member's record per update [-]."""

    def __post_init__(self) -> None:
        check_counts(self, "num_members", "gene_dim")
        check_not_negative(
            self, "aggregate", "evolve_every", "selection_deviations", "mutation_std"
        )
        check_positive(self, "log_ratio_cap")
        check_range(self, "fitness_decay", low=0, high=1)
        if self.ppo.scored_steps == "one" or self.ppo.rescore:
            raise ValueError(
                "ppo.scored_steps='one' and ppo.rescore are not supported by epo; leave them"
            )

    @property
    def policy_minibatch(self) -> int:
        return self.ppo.policy_minibatch
