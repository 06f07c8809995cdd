"""Evolution strategies: perturbed weights, compared by the returns of whole episodes.

Each member of a population acts with the weights of some parameter groups plus Gaussian noise, in
its own environments. Members come in pairs with opposite noise. The fitness of a member is the mean
return of its episodes, of which only the rank among the members counts. The weights move along the
noise, weighted by the ranks:

    gradient = mean over pairs of (rank⁺ - rank⁻) / (2 std) * noise,    rank in [-1/2, 1/2]

There is no gradient through the policy, no likelihood and no critic, so a reward may depend on
anything, and each environment step costs one forward. The price is the number of episodes: the
estimate has the noise of the whole space of weights, so the groups should be small.

It is not `epo`, whose members are learned by PPO.
Letters: B minibatch rows, E envs, T chunk decisions, P population members.
Sources: Rechenberg 1973, Salimans et al. 2017 (antithetic noise and centered ranks).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from pitune.policies import FlowPolicy
from pitune.policies.finetuning.trainable import parameter_groups
from pitune.ranges import DiscountFactor, PositiveFloat, PositiveInt, PositiveOrInfinite
from pitune.rl import ranks
from pitune.rl.algorithm import Algorithm, AlgorithmConfig, Needs
from pitune.rl.algorithms.evolution.perturbations import Perturbations, PerturbedActor
from pitune.rl.gradient_step import Metrics, gradient_step
from pitune.rl.optimizers import adam
from pitune.rl.policy_gradient.episodes import episodes
from pitune.rl.registry import register


@dataclass(frozen=True, kw_only=True)
class ESConfig(AlgorithmConfig):
    """Evolution strategies on parameter groups.

    Example:
        >>> ESConfig(num_pairs=4).num_members
        8
    """

    groups: tuple[str, ...] = ("projections",)
    """Parameter groups to perturb, as in `finetune.trainable`. Others keep their weights."""
    num_pairs: PositiveInt = 10
    """Pairs of members with opposite noise. The number of environments is a multiple of twice this.
    """
    noise_std: PositiveFloat = 0.02
    """Standard deviation of the noise on each weight [-]."""
    learning_rate: PositiveFloat = 0.01
    """Adam's step size [-]."""
    max_grad_norm: PositiveOrInfinite = math.inf
    """Gradients are scaled down to this norm [-]. Infinite disables it."""
    fitness: Literal["return", "success"] = "return"
    """Mean discounted return of a member's episodes, or the share of them that succeed."""
    discount: DiscountFactor = 0.99
    """Discount of the return per environment step [-]. Below 1, faster successes are better."""
    same_starts: bool = True
    """Whether all members play the same starts. The environment's seeds must fix them."""

    @property
    def num_members(self) -> int:
        """P."""
        return 2 * self.num_pairs

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.groups:
            raise ValueError(
                "groups is empty, so nothing would be perturbed; name some, for example "
                "('projections',)"
            )


@register("es", ESConfig, whole_episodes=True, memory=True)
class ES(Algorithm[ESConfig]):
    """Evolution strategies: perturbed weights, ranked by their episodes.

    Example:
        >>> algorithm = ES(ESConfig(), policies.load("runs/push/pretrained"))  # doctest: +SKIP
        >>> metrics = algorithm.update(rollouts.collect())  # doctest: +SKIP
    """

    actor: PerturbedActor

    def __init__(self, config: ESConfig, policy: FlowPolicy) -> None:
        self.parameters = chosen_parameters(policy, config.groups)
        self.perturbations = Perturbations(self.parameters, config.num_pairs, config.noise_std)
        super().__init__(config, PerturbedActor(policy, self.perturbations))
        self.needs = Needs(
            group_size=config.num_members if config.same_starts else 1,
            num_shares=config.num_members,
            whole_episodes=True,
            success_signal=config.fitness == "success",
        )
        self.optimizers["policy"] = adam(self.parameters.values(), lr=config.learning_rate)

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        # fitness of the members and their ranks (P,)
        fitness = self.fitness(rollout)
        rank = centered_ranks(fitness)
        known = fitness[~fitness.isnan()]
        metrics = {
            "fitness": float(known.mean()) if len(known) else 0.0,
            "fitness_std": float(known.std(correction=0)) if len(known) else 0.0,
            "grad_norm": 0.0,
        }
        # no step from members that are all alike, because Adam would go on with its last ones
        if rank.any():
            config = self.config
            pairs = torch.arange(config.num_pairs)
            slope = (rank[0::2] - rank[1::2]) / (2 * config.noise_std)  # (pairs,)
            _, norm = gradient_step(
                self.optimizers["policy"],
                self.loss,
                TensorDict({"pair": pairs, "slope": slope}, [config.num_pairs]),
                name="policy",
                step=f"update {self.num_updates}",
                max_grad_norm=config.max_grad_norm,
            )
            metrics["grad_norm"] = norm
        # new noise for the next rollout, also without a step
        self.perturbations.draw()
        self.num_updates += 1
        return metrics

    def loss(self, batch: TensorDictBase) -> tuple[Tensor, Metrics]:
        """Return a loss whose gradient is minus the estimate of the fitness's, and its metrics.

        Args:
            batch: Pairs (B) with `pair`, their index, and `slope`, the difference of their ranks
                over the distance of their weights.
        """
        loss = next(iter(self.parameters.values())).new_zeros(())
        for pair, slope in zip(batch["pair"].tolist(), batch["slope"].tolist(), strict=True):
            # its gradient is -slope * noise for each weight
            noise = self.perturbations.of_pair(pair)
            for name, value in self.parameters.items():
                loss = loss - slope * (value * noise[name]).sum() / len(batch)
        return loss, {}

    def fitness(self, rollout: TensorDictBase) -> Tensor:
        """Return the fitness of each member on all ranks (P,), nan without a whole episode."""
        played = episodes(rollout.to("cpu"), self.config.discount)
        score = played.success.float() if self.config.fitness == "success" else played.score
        # (E, episodes) -> (turns, P, episodes), as in `PerturbedActor`
        shape = (-1, self.config.num_members, score.shape[1])
        score, counted = score.reshape(shape), played.counted.reshape(shape)
        return ranks.total((score * counted).sum((0, 2))) / ranks.total(counted.sum((0, 2)))

    def extra_state(self) -> dict[str, Any]:
        return {"seeds": self.perturbations.seeds}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.perturbations.set_seeds(state["seeds"])


def chosen_parameters(policy: FlowPolicy, groups: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Return the trained parameters of some groups of a policy's network, by name.

    Raises:
        ValueError: a group has none.
    """
    # groups without a trained parameter
    group_of = parameter_groups(policy.network)
    trained = {
        name: value for name, value in policy.network.named_parameters() if value.requires_grad
    }
    present = sorted({group_of[name] for name in trained})
    missing = sorted(set(groups) - {*present, "all"})
    if missing:
        raise ValueError(
            f"groups={list(groups)} names {missing}, of which no parameter is trained; trained "
            f"are {present} (finetune.trainable), name some of them"
        )
    return {
        name: value
        for name, value in trained.items()
        if "all" in groups or group_of[name] in groups
    }


def centered_ranks(fitness: Tensor) -> Tensor:
    """Return ranks from -1/2 to 1/2 of members (P,). Equal ones share their mean rank.

    A member without a fitness (nan), and so its pair, has the rank 0.

    Example:
        >>> centered_ranks(torch.tensor([4.0, 1.0])).tolist()
        [0.5, -0.5]
    """
    # a pair counts only if both members have a fitness
    known = ~fitness.isnan()
    pair_known = known.view(-1, 2).all(1).repeat_interleave(2)
    values = fitness[known]
    # members below, and half of the equal ones besides itself
    below = (values[:, None] > values).sum(1)
    equal = (values[:, None] == values).sum(1) - 1
    rank = torch.zeros(len(fitness))
    rank[known] = (below + equal / 2) / max(1, len(values) - 1) - 0.5
    return torch.where(pair_known, rank, 0.0)
