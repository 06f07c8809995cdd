"""Which seed starts which episode.

The seed of an episode is a function of the run's seed, the split, the environment and the episode's
number, and of nothing else: not of how long earlier episodes took, nor of what other environments
did. So a run repeats, evaluation never starts where training did, two policies can be compared on
the same starts, and a group of environments can share every start.
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

    Args:
        seed: Seed of the run.
        split: What the episode is for; different splits never share a seed sequence.
        stream: Number of the environment, or of its group when a group shares its starts.
        episode: Number of the episode within the stream.
    """
    key = [seed, SPLITS.index(split), stream, episode]
    return int(np.random.SeedSequence(key).generate_state(1)[0] >> 1)


class EpisodeSeeds:
    """Hands out episode seeds and remembers how many each environment has had.

    Args:
        num_envs: E.
        seed: Seed of the run, at least 0.
        split: What the episodes are for.
        group_size: Neighboring environments that share every start (G); 1 for none.

    Raises:
        ValueError: the environments do not divide into groups, or the seed is negative.
    """

    def __init__(self, num_envs: int, seed: int, split: Split, group_size: int = 1) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed} must be at least 0")
        if group_size < 1 or num_envs % group_size:
            raise ValueError(f"num_envs={num_envs} must be a multiple of group_size={group_size}")
        self.seed, self.split, self.group_size = seed, split, group_size
        self.episodes = torch.zeros(num_envs, dtype=torch.int64)

    def next(self, env_idx: Tensor) -> Tensor:
        """Return the seed of the next episode of each environment in `env_idx` (n,) int64."""
        seeds = [
            episode_seed(self.seed, self.split, env // self.group_size, int(self.episodes[env]))
            for env in env_idx.tolist()
        ]
        self.episodes[env_idx.cpu()] += 1
        return torch.tensor(seeds, dtype=torch.int64)
