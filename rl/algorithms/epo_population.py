"""A population in one network: genes that shift the policy's state token and the critic's input.

A gene enters as an offset of the first layer's output, which is what concatenating it to the
observation amounts to. The maps from genes to offsets start at 0, so at first every member *is* the
pretrained policy; and a member's offset can be added to a bias, so that the deployed policy is an
ordinary one. One member has nothing to be told apart from, and gets no offset.
Letters: P members, G gene dim, N rows, D width.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from pitune.policies import FlowPolicy, LikelihoodActor, LikelihoodConfig, ModelInput
from pitune.rl.policy_gradient.value import ValueCritic


class Population(nn.Module):
    """The genes (P, G) of all members and their map to the policy.

    Args:
        num_members: P.
        gene_dim: G.
        width: D, of the policy's tokens.
    """

    def __init__(self, num_members: int, gene_dim: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)  # the training's random numbers stay as in ppo
        self.genes = nn.Parameter(torch.randn(num_members, gene_dim, generator=generator))
        self.to_policy = nn.Parameter(torch.zeros(gene_dim, width))

    def __len__(self) -> int:
        return len(self.genes)

    def members(self, num_rows: int) -> Tensor:
        """Return who owns each of N environments (N,): equal shares of neighbors.

        Raises:
            ValueError: they do not divide.
        """
        if num_rows % len(self):
            raise ValueError(f"num_envs={num_rows} must be a multiple of num_members={len(self)}")
        rows = torch.arange(num_rows, device=self.genes.device)
        return rows * len(self) // num_rows

    def spread(self) -> float:
        """Return the mean distance between two members' genes [-]."""
        return float(torch.pdist(self.genes.detach()).mean()) if len(self) > 1 else 0.0


class PopulationActor(LikelihoodActor):
    """An actor whose environments belong to members; as deployed it acts as the best.

    Args:
        policy: Shared by all members.
        config: The likelihood.
        population: The genes; trained with the policy.
    """

    def __init__(
        self, policy: FlowPolicy, config: LikelihoodConfig, population: Population
    ) -> None:
        super().__init__(policy, config)
        self.population = population
        self.best = 0
        self.out_keys.append("member")

    def state_offset(self, td: TensorDictBase) -> Tensor | None:
        """Return the offset of each row's `member` (N, D); None for a population of one."""
        if len(self.population) == 1:
            return None
        genes = self.population.genes[td["member"].to(self.policy.device)]  # (N, G)
        return genes @ self.population.to_policy

    def explore(self, td: TensorDictBase, noise: Tensor | None) -> TensorDictBase:
        return super().explore(td.set("member", self.population.members(len(td))), noise)

    def deployed_actions(self, inputs: ModelInput, noise: Tensor | None) -> Tensor:
        """Return the best member's actions (N, h, d) [robot units]."""
        offset = None if len(self.population) == 1 else self._offset(self.best)
        return self.policy.sample_actions(inputs, noise, offset)

    def member_policy(self, member: int) -> FlowPolicy:
        """Return a member as a policy of its own, its gene folded into a bias."""
        policy = deepcopy(self.policy)
        if len(self.population) > 1:
            with torch.no_grad():
                policy.network.state_proj.bias.add_(self._offset(member)[0])
        return policy

    def _offset(self, member: int) -> Tensor:
        """Return a member's offset of the state token (1, D)."""
        return (self.population.genes[member : member + 1] @ self.population.to_policy).detach()


class PopulationCritic(ValueCritic):
    """V(observation, time, member); the genes are not trained through it.

    Args:
        state_dim: Width of the model's states (S).
        population: The genes; shared, and not this module's parameters.
        feature_dim: Width of the policy's features; 0 for none.
    """

    def __init__(self, state_dim: int, population: Population, feature_dim: int = 0) -> None:
        super().__init__(state_dim, feature_dim)
        self.in_keys.append("member")
        self._population = [population]  # in a list, so that it is no submodule
        first: nn.Linear = self.net[0]  # type: ignore[assignment]
        self.to_critic = nn.Parameter(torch.zeros(population.genes.shape[1], first.out_features))

    def value(self, td: TensorDictBase, offset: Tensor | None = None) -> Tensor:
        """Return the values (N, 1) of observations (N) to their members [reward]."""
        population = self._population[0]
        if len(population) > 1:
            genes = population.genes.detach()[td["member"].to(population.genes.device)]
            offset = genes @ self.to_critic  # (N, D)
        return super().value(td, offset)
