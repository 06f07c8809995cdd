"""Selection, crossover and mutation of a population's genes, in place.

Letters: P members, G gene dim. Sources: Wang et al. 2025 (EPO), from its description: the released
code takes fitness from one member's environments, has no mutation, and after its first generation
trains genes that the optimizer does not know.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.rl.algorithms.epo_population import Population


class Fitness:
    """Success rate of each member's own episodes, old ones forgotten step by step.

    Args:
        num_members: P.
        decay: Share of the past that each rollout keeps.
        min_episodes: Weight of episodes below which a member's fitness is unknown.
    """

    def __init__(self, num_members: int, decay: float, min_episodes: float = 10.0) -> None:
        self.decay, self.min_episodes = decay, min_episodes
        self.successes, self.episodes = torch.zeros(num_members), torch.zeros(num_members)

    def add(self, rollout: TensorDictBase) -> None:
        """Count the episodes that ended in a rollout (E, T) with `member`."""
        after, num = rollout["next"], len(self.episodes)
        counted = (after["done"] & ~after["invalid"]).squeeze(-1)
        member = rollout["member"][counted].cpu()
        success = after["success"].squeeze(-1)[counted].cpu()
        for total, weight in ((self.episodes, None), (self.successes, success.float())):
            total *= self.decay
            total += torch.bincount(member, weights=weight, minlength=num)

    def rate(self) -> Tensor:
        """Return the success rates (P,); nan where too few episodes were played."""
        rate = self.successes / self.episodes
        return torch.where(self.episodes >= self.min_episodes, rate, torch.nan)

    def best(self) -> int:
        """Return the member to deploy; the first among equals, and before anything is known."""
        rate = self.rate()
        return int(rate.nan_to_num(-1.0).argmax())

    def significantly_worse(self, deviations: float) -> list[int]:
        """Return the members that are worse than the best beyond chance, the worst first.

        Args:
            deviations: Standard errors of the difference that count as beyond chance.
        """
        rate, best = self.rate(), self.best()
        # one success and one failure are added, or a rate of 0 or 1 would seem to be certain
        smooth = (self.successes + 1) / (self.episodes + 2)
        variance = smooth * (1 - smooth) / self.episodes.clamp(min=1)
        gap = rate[best] - rate
        beyond = gap > deviations * (variance + variance[best]).sqrt()  # nan is never beyond
        order = rate.nan_to_num(2.0).argsort().tolist()
        return [member for member in order if bool(beyond[member])]

    def forget(self, member: int) -> None:
        """Start a member's record anew."""
        self.successes[member] = self.episodes[member] = 0


def evolve(
    population: Population,
    optimizer: torch.optim.Optimizer,
    fitness: Fitness,
    *,
    deviations: float,
    mutation_std: float,
) -> list[int]:
    """Replace members that are worse beyond chance, at most a quarter, and return who they were.

    A child's gene is the mean of the two best members' plus noise; it is written into the
    parameter, and the optimizer's moments of that row begin anew, so it goes on learning.

    Args:
        population: Changed in place.
        optimizer: That trains the genes.
        fitness: Judges; forgets the replaced members' records.
        deviations: See `Fitness.significantly_worse`.
        mutation_std: Standard deviation of the noise [-].
    """
    genes, rate = population.genes, fitness.rate().nan_to_num(-1.0)
    worse = fitness.significantly_worse(deviations)[: max(1, len(genes) // 4)]
    parents = [m for m in rate.argsort(descending=True, stable=True).tolist() if m not in worse][:2]
    for member in worse:
        with torch.no_grad():
            noise = mutation_std * torch.randn_like(genes[member])
            genes[member] = genes[parents].mean(0) + noise
        for name, value in optimizer.state.get(genes, {}).items():
            if name != "step" and isinstance(value, Tensor):
                value[member] = 0
        fitness.forget(member)
    return worse
