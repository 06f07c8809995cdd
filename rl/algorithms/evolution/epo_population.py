"""EPO's settings, and a population in one network.

Genes shift π0's state token, or π0.5's condition of flow time, and the critic's input.

A gene enters as an offset of the first layer's output, which is equivalent to concatenating it to
the observation. The maps from genes to offsets start at 0, so every member starts as the pretrained
policy. A member's offset can be added to a bias, so the deployed policy has no extra parts. A
population of one has no offset.
Letters: P population members, G gene dim, N rows, h executed actions, S model state dim, d robot
action dim, D width.
"""

from __future__ import annotations

from copy import copy, deepcopy
from dataclasses import dataclass, field

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from pitune.policies import FlowPolicy, LikelihoodActor, LikelihoodConfig, ModelInput
from pitune.policies.host_prefixes import stored_prefix
from pitune.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
)
from pitune.rl import ranks
from pitune.rl.algorithm import AlgorithmConfig
from pitune.rl.algorithms.ppo import PPOConfig
from pitune.rl.policy_gradient.value import ValueCritic
from pitune.rl.value_distribution import DistributionConfig


@dataclass(frozen=True, kw_only=True)
class EPOConfig(AlgorithmConfig):
    """PPO on a population of genes that condition one policy and one critic.

    Example:
        >>> EPOConfig(num_members=8).ppo.clip.low
        0.2
    """

    ppo: PPOConfig = field(default_factory=PPOConfig)
    """PPO of the members on their own episodes."""
    num_members: PositiveInt = 4
    """P. The number of environments is a multiple of it."""
    gene_dim: PositiveInt = 16
    """G."""
    aggregate: NonNegativeFloat = 1.0
    """Weight of the other members' decisions in the master's loss, or 0 to disable them [-]."""
    log_ratio_cap: PositiveFloat = 5.0
    """Decisions of the others with a larger absolute log-ratio of the master are left out [nats].
    """
    evolve_every: NonNegativeInt = 10
    """Updates between selections, or 0 for none."""
    selection_deviations: NonNegativeFloat = 2.0
    """A replaced member of two is worse than the best by at least this number of standard errors.
    Among more members it takes more, so that chance replaces no more of them [-]."""
    mutation_std: NonNegativeFloat = 0.3
    """Standard deviation of the noise on a child's gene [-]. That of the initial genes is 1."""
    fitness_decay: Share = 0.7
    """Decay of a member's record per update [-]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ppo.scored_steps == "one":
            raise ValueError(
                "ppo.scored_steps='one' is not supported by epo; leave ppo.scored_steps='all'"
            )

    @property
    def policy_minibatch(self) -> int:
        return self.ppo.policy_minibatch


class Population(nn.Module):
    """The genes (P, G) of all members and their map to the policy.

    Args:
        num_members: P.
        gene_dim: G.
        width: D, of the policy's tokens.

    Example:
        >>> population = Population(num_members=2, gene_dim=4, width=8)
        >>> population.members(4).tolist()
        [0, 0, 1, 1]
    """

    def __init__(self, num_members: int, gene_dim: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)  # leaves the global random numbers as in ppo
        self.genes = nn.Parameter(torch.randn(num_members, gene_dim, generator=generator))
        self.to_policy = nn.Parameter(torch.zeros(gene_dim, width))

    def __len__(self) -> int:
        return len(self.genes)

    def members(self, num_rows: int) -> Tensor:
        """Return the member of each environment (N,), with equal shares of neighbors.

        The environments of several ranks are one list, in the order of the ranks.

        Raises:
            ValueError: their number is not a multiple of the number of members.
        """
        num_envs = num_rows * ranks.world()
        if num_envs % len(self):
            raise ValueError(f"num_envs={num_envs} must be a multiple of num_members={len(self)}")
        rows = torch.arange(num_rows, device=self.genes.device) + ranks.rank() * num_rows
        return rows * len(self) // num_envs

    def spread(self) -> float:
        """Return the mean distance between two members' genes [-]."""
        return float(torch.pdist(self.genes.detach()).mean()) if len(self) > 1 else 0.0


class PopulationActor(LikelihoodActor):
    """An actor whose environments belong to members. As deployed it acts as the best member.

    Args:
        policy: Shared by all members.
        config: Settings of the likelihood.
        population: The genes, which are trained with the policy.

    Attributes:
        best: The deployed member.
        alone: Whether it also explores in all environments.

    Example:
        >>> population = Population(4, gene_dim=16, width=64)  # doctest: +SKIP
        >>> actor = PopulationActor(policy, FlowSDEConfig(), population)  # doctest: +SKIP
        >>> best = actor.member_policy(actor.best)  # doctest: +SKIP
    """

    def __init__(
        self, policy: FlowPolicy, config: LikelihoodConfig, population: Population
    ) -> None:
        super().__init__(policy, config)
        self.population = population
        self.best = 0
        self.alone = False
        self.out_keys.append("member")

    def state_offset(self, td: TensorDictBase) -> Tensor | None:
        """Return the offset (N, D) of each row's `member`, or None for a population of one."""
        if len(self.population) == 1:
            return None
        genes = self.population.genes[td["member"].to(self.policy.device)]  # (N, G)
        return genes @ self.population.to_policy  # (N, D)

    def explore(self, td: TensorDictBase, noise: Tensor | None) -> TensorDictBase:
        if self.alone:
            rows = torch.full((len(td),), self.best, device=self.policy.device)
        else:
            rows = self.population.members(len(td))
        return super().explore(td.set("member", rows), noise)

    def evaluated(self) -> PopulationActor:
        """Return an actor of the same weights whose environments all belong to the best member."""
        actor = copy(self)
        actor.alone = True
        return actor

    def deployed_entries(self, inputs: ModelInput, noise: Tensor | None) -> dict[str, Tensor]:
        """Return the best member's actions (N, h, d) [robot units]."""
        decision = self.policy.decide(inputs, noise, self._member_offset(self.best))
        return self.entries_of(decision, inputs)

    @torch.no_grad()
    def member_actions(self, td: TensorDictBase, member: int) -> Tensor:
        """Return a member's actions (N, h, d) [robot units] for decisions (N).

        The starting noise is that of the decisions' chains.
        """
        policy, inputs = self.policy, ModelInput.of(td)
        context = policy.encode(inputs, stored_prefix(td), self._member_offset(member))
        return policy.executed(policy.solve(context, td["chain"][:, 0]), inputs)

    def member_policy(self, member: int) -> FlowPolicy:
        """Return a member as a separate policy, with its gene added to a bias."""
        policy = deepcopy(self.policy)
        offset = self._member_offset(member)
        if offset is not None:
            with torch.no_grad():
                policy.network.offset_bias.add_(offset[0])
        return policy

    def _member_offset(self, member: int) -> Tensor | None:
        """Return a member's offset of the policy (1, D), or None for a population of one."""
        if len(self.population) == 1:
            return None
        return (self.population.genes[member : member + 1] @ self.population.to_policy).detach()


class PopulationCritic(ValueCritic):
    """V(observation, time, member), without a gradient to the genes.

    Args:
        state_dim: S.
        population: The shared genes, which are no parameters of this module.
        feature_dim: Width of the policy's features, or 0 for none.
        remainder: Steps of the old chunk and robot action dim, see `ValueCritic`.
        distribution: Bins of a categorical critic. By default it has one number.

    Example:
        >>> critic = PopulationCritic(4, Population(2, gene_dim=3, width=8))
        >>> critic.in_keys
        ['model_input', 'elapsed', 'member']
    """

    def __init__(
        self,
        state_dim: int,
        population: Population,
        feature_dim: int = 0,
        remainder: tuple[int, int] = (0, 0),
        distribution: DistributionConfig | None = None,
    ) -> None:
        super().__init__(state_dim, feature_dim, remainder=remainder, distribution=distribution)
        self.in_keys.append("member")
        self._population = [population]  # a list, so that it is no submodule
        first: nn.Linear = self.net[0]  # type: ignore[assignment]
        self.to_critic = nn.Parameter(torch.zeros(population.genes.shape[1], first.out_features))

    def output(self, td: TensorDictBase, offset: Tensor | None = None) -> Tensor:
        """Return the outputs of observations (N) for their members. See `ValueCritic.output`."""
        population = self._population[0]
        if len(population) > 1:
            genes = population.genes.detach()[td["member"].to(population.genes.device)]
            offset = genes @ self.to_critic  # (N, D)
        return super().output(td, offset)
