"""A population in one network: genes that shift the policy's state token and the critic's input.

A gene enters as an offset of the first layer's output, which is what concatenating it to the
observation amounts to. The maps from genes to offsets start at 0, so at first every member *is* the
pretrained policy; and a member's offset can be added to a bias, so that the deployed policy is an
ordinary one. One member has nothing to be told apart from, and gets no offset.
Letters: P members, G gene dim, N rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from tensordict import TensorDictBase
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor, nn

from pitune.policies import FlowPolicy, LikelihoodActor, LikelihoodConfig, Preprocessor
from pitune.policies.network.pi0 import Context
from pitune.rl.policy_gradient.value import ValueCritic


@contextmanager
def offset_output(module: nn.Module, offset: Tensor) -> Iterator[None]:
    """Add an offset (N, ..., D) to what a module returns, while the context lasts."""

    def add(_: nn.Module, __: object, output: Tensor) -> Tensor:
        missing = [1] * (output.ndim - offset.ndim)
        return output + offset.reshape(*offset.shape[:-1], *missing, offset.shape[-1])

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


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

    def encode(self, td: TensorDictBase) -> Context:
        """Return the observations (N) as each row's `member` (N,) sees them."""
        if len(self.population) == 1:
            return super().encode(td)
        genes = self.population.genes[td["member"].to(self.policy.device)]
        with offset_output(self.policy.network.state_proj, genes @ self.population.to_policy):
            return super().encode(td)

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        if interaction_type() != InteractionType.DETERMINISTIC:
            return super().forward(td.set("member", self.population.members(len(td))))
        if len(self.population) == 1:
            return super().forward(td)
        with (
            torch.no_grad(),
            offset_output(self.policy.network.state_proj, self._offset(self.best)),
        ):
            return super().forward(td)

    def member_policy(self, member: int) -> FlowPolicy:
        """Return a member as a policy of its own, its gene folded into a bias."""
        policy = deepcopy(self.policy)
        if len(self.population) > 1:
            with torch.no_grad():
                policy.network.state_proj.bias.add_(self._offset(member)[0])
        return policy

    def _offset(self, member: int) -> Tensor:
        return (self.population.genes[member : member + 1] @ self.population.to_policy).detach()


class PopulationCritic(ValueCritic):
    """V(observation, time, member); the genes are not trained through it.

    Args:
        preprocessor: Scales the state as the policy does.
        population: The genes; shared, and not this module's parameters.
        feature_dim: Width of the policy's features; 0 for none.
    """

    def __init__(
        self, preprocessor: Preprocessor, population: Population, feature_dim: int = 0
    ) -> None:
        super().__init__(preprocessor, feature_dim)
        self.in_keys.append("member")
        self._population = [population]
        first: nn.Linear = self.net[0]  # type: ignore[assignment]
        self.to_critic = nn.Parameter(torch.zeros(population.genes.shape[1], first.out_features))

    def value(self, td: TensorDictBase) -> Tensor:
        """Return the values (N, 1) of observations (N) to their members [reward]."""
        population = self._population[0]
        if len(population) == 1:
            return super().value(td)
        genes = population.genes.detach()[td["member"].to(population.genes.device)]
        with offset_output(self.net[0], genes @ self.to_critic):
            return super().value(td)
