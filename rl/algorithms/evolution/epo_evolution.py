"""Selection, crossover and mutation of a population's genes, in place.

Letters: P population members, G gene dim, E envs, T chunk decisions.
Source: Wang et al. 2025 (EPO), from the text of the paper. The released code differs: it takes the
fitness from one member's environments, has no mutation, and its optimizer does not hold the genes
after the first generation.
"""

from __future__ import annotations

from statistics import NormalDist

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.rl import ranks
from pitune.rl.algorithms.evolution.epo_population import Population
from pitune.rl.experience.sub_dict import sub_dict

LEAST_TAIL = 1e-300
"""Least probability of a test, for deviations beyond the precision of floats [-]."""


class Fitness:
    """Success rate of each member's own episodes, with exponential decay.

    Args:
        num_members: P.
        decay: Factor of the past episodes per rollout.
        min_episodes: Least weight of episodes for a success rate.

    Example:
        >>> fitness = Fitness(num_members=2, decay=0.5)
        >>> fitness.successes, fitness.episodes = torch.tensor([1.0, 9.0]), torch.full((2,), 10.0)
        >>> fitness.best()
        1
    """

    def __init__(self, num_members: int, decay: float, min_episodes: float = 10.0) -> None:
        self.decay, self.min_episodes = decay, min_episodes
        self.successes, self.episodes = torch.zeros(num_members), torch.zeros(num_members)

    def add(self, rollout: TensorDictBase) -> None:
        """Count the episodes that ended in a rollout (E, T) with `member`, on all ranks."""
        outcome, num = sub_dict(rollout, "next"), len(self.episodes)
        counted = (outcome["done"] & ~outcome["invalid"]).squeeze(-1)
        member = rollout["member"][counted].cpu()
        success = outcome["success"].squeeze(-1)[counted].cpu()
        for total, weight in ((self.episodes, None), (self.successes, success.float())):
            total *= self.decay
            total += ranks.total(torch.bincount(member, weights=weight, minlength=num))

    def rate(self) -> Tensor:
        """Return the success rates (P,), with nan for members with too few episodes."""
        rate = self.successes / self.episodes
        return torch.where(self.episodes >= self.min_episodes, rate, torch.nan)

    def best(self) -> int:
        """Return the member to deploy. Among equals and before any episode it is the first."""
        rate = self.rate()
        return int(rate.nan_to_num(-1.0).argmax())

    def significantly_worse(self, deviations: float) -> list[int]:
        """Return the members that are significantly worse than the best, the worst first.

        Args:
            deviations: Standard errors of a significant difference between two members. Among more
                members it takes more, see `corrected_deviations`.
        """
        # difference to the best
        rate, best = self.rate(), self.best()
        # standard error, with one more success and failure so that no rate seems certain
        smooth = (self.successes + 1) / (self.episodes + 2)
        variance = smooth * (1 - smooth) / self.episodes.clamp(min=1)
        gap = rate[best] - rate
        least = corrected_deviations(deviations, int((~rate.isnan()).sum()))
        worse = gap > least * (variance + variance[best]).sqrt()  # False for nan

        # the worst first
        order = rate.nan_to_num(2.0).argsort().tolist()
        return [member for member in order if bool(worse[member])]

    def forget(self, member: int) -> None:
        """Reset a member's record."""
        self.successes[member] = self.episodes[member] = 0


def corrected_deviations(deviations: float, num_members: int) -> float:
    """Return the standard errors that a difference needs among several members (Bonferroni).

    The best of many members is the best by chance too. Without a correction, some of 16 equal
    members would be replaced in 45 % of selections. With it, the chance of replacing any of
    several equal members is at most about that of two.

    Args:
        deviations: Standard errors for two members. 0 means that any difference counts.
        num_members: Number of compared members.

    Example:
        >>> round(corrected_deviations(2.0, 2), 3), round(corrected_deviations(2.0, 16), 3)
        (2.0, 3.554)
    """
    if deviations == 0 or num_members < 2:
        return deviations
    num_pairs = num_members * (num_members - 1) // 2
    # the lower tail, which is exact where the upper one would round to 1
    tail = max(NormalDist().cdf(-deviations) / num_pairs, LEAST_TAIL)
    return max(deviations, -NormalDist().inv_cdf(tail))


def evolve(
    population: Population,
    optimizer: torch.optim.Optimizer,
    fitness: Fitness,
    *,
    deviations: float,
    mutation_std: float,
) -> list[int]:
    """Replace significantly worse members, at most a quarter, and return their indices.

    A child's gene is the mean gene of the two best members plus noise. It is written into the
    parameter, and the optimizer's moments of that row are reset, so that the gene is still trained.

    Args:
        population: Changed in place.
        optimizer: Optimizer of the genes.
        fitness: Records of the members. Those of replaced members are reset.
        deviations: See `Fitness.significantly_worse`.
        mutation_std: Standard deviation of the noise [-].
    """
    # selection
    genes, rate = population.genes, fitness.rate().nan_to_num(-1.0)
    worse = fitness.significantly_worse(deviations)[: max(1, len(genes) // 4)]
    parents = [m for m in rate.argsort(descending=True, stable=True).tolist() if m not in worse][:2]

    # crossover and mutation
    for member in worse:
        with torch.no_grad():
            noise = ranks.of_first(mutation_std * torch.randn_like(genes[member]))
            genes[member] = genes[parents].mean(0) + noise
        # Adam's moments belong to the old gene
        for name, value in optimizer.state.get(genes, {}).items():
            if name != "step" and isinstance(value, Tensor):
                value[member] = 0
        fitness.forget(member)
    return worse
