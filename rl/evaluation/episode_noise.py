"""Starting noise of a policy that depends on the episode alone, and not on the other environments.

Letters: E envs, H action horizon, A model action dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pitune.envs import EvaluationSeeds


class EpisodeNoise:
    """A random generator for each running episode of an evaluation.

    Example:
        >>> seeds = EvaluationSeeds(num_envs=2, num_episodes=2, seed=0)
        >>> first = seeds.next(torch.arange(2))
        >>> EpisodeNoise(seeds, (4, 2)).draw().shape
        torch.Size([2, 4, 2])

    Args:
        seeds: Of the evaluation, which count the episodes.
        shape: (H, A), of one starting point.
    """

    def __init__(self, seeds: EvaluationSeeds, shape: tuple[int, int]) -> None:
        self._seeds, self._shape = seeds, shape
        self._index = torch.full_like(seeds.episodes, -1)  # (E,)
        self._generators = [torch.Generator() for _ in seeds.episodes]

    def draw(self) -> Tensor:
        """Return the next starting points (E, H, A) of the running episodes.

        They are drawn on the CPU, so that they are the same on every device.
        """
        index = self._seeds.index
        for env in (index != self._index).nonzero().flatten().tolist():
            self._generators[env].manual_seed(self._seeds.noise_seed_of(int(index[env])))
        self._index = index
        return torch.stack([torch.randn(self._shape, generator=g) for g in self._generators])
