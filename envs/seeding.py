"""The seeds of episodes.

The seed of an episode is a function of the run's seed, the split, the environment and the number of
the episode. It does not depend on the length of earlier episodes or on other environments. So a run
is repeatable, evaluation and training never share a start, two policies can be compared on the same
starts, and a group of environments can share every start.

Letters: E envs, N rows.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Split = Literal["train", "validation", "test", "demonstrations"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "demonstrations")


def episode_seed(seed: int, split: Split, stream: int, episode: int) -> int:
    """Return the seed in [0, 2^31) of one episode.

    Example:
        >>> episode_seed(0, "train", stream=0, episode=0)
        1484405855

    Args:
        seed: Seed of the run.
        split: Purpose of the episode. Different splits have different seed sequences.
        stream: Number of the environment, or of its group when a group shares its starts.
        episode: Number of the episode within the stream.
    """
    key = [seed, SPLITS.index(split), stream, episode]
    return int(np.random.SeedSequence(key).generate_state(1)[0] >> 1)


class EpisodeSeeds:
    """The sequence of episode seeds of each environment, with a counter of episodes.

    Example:
        >>> seeds = EpisodeSeeds(num_envs=4, seed=0, split="train", group_size=2)
        >>> first, second, third, fourth = seeds.next(torch.arange(4)).tolist()
        >>> (first == second, third == fourth, first == third)
        (True, True, False)

    Args:
        num_envs: E.
        seed: Seed of the run, at least 0.
        split: Purpose of the episodes.
        group_size: Neighboring environments that share every start. 1 for no groups.

    Raises:
        ValueError: E is no multiple of the group size, or the seed is negative.
    """

    def __init__(self, num_envs: int, seed: int, split: Split, group_size: int = 1) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed} must be at least 0")
        if group_size < 1 or num_envs % group_size:
            raise ValueError(f"num_envs={num_envs} must be a multiple of group_size={group_size}")
        self.seed, self.split, self.group_size = seed, split, group_size
        self.episodes = torch.zeros(num_envs, dtype=torch.int64)

    def next(self, env_idx: Tensor) -> Tensor:
        """Return the seed of the next episode of each environment in `env_idx` (N,) int64."""
        seeds = [
            episode_seed(self.seed, self.split, env // self.group_size, int(self.episodes[env]))
            for env in env_idx.tolist()
        ]
        self.episodes[env_idx.cpu()] += 1
        return torch.tensor(seeds, dtype=torch.int64)
