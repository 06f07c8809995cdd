"""A part of an evaluation's list, for evaluations that go on or are shared by processes.

Letters: E envs, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pitune.envs import EvaluationSeeds


class ChosenEpisodes(EvaluationSeeds):
    """The seeds of some episodes of an evaluation's list.

    Environment i mod E plays episode i, as in the whole list. So an episode has the same row of the
    policy's batch whichever others are played, and the same rounding errors.

    Example:
        >>> seeds = ChosenEpisodes(EvaluationSeeds(2, 6, seed=0), [5, 0, 3])
        >>> seeds.num_episodes.tolist()
        [1, 2]
        >>> first = seeds.next(torch.arange(2))
        >>> seeds.index.tolist()
        [0, 3]

    Args:
        whole: The list.
        chosen: Places in it.

    Raises:
        ValueError: a place is outside of the list, or occurs twice.
    """

    def __init__(self, whole: EvaluationSeeds, chosen: Sequence[int]) -> None:
        num_envs = len(whole.episodes)
        super().__init__(num_envs, whole.total, whole.seed, whole.split, whole.starts)
        self._whole, self.chosen = whole, sorted(chosen)
        outside = [index for index in self.chosen if not 0 <= index < whole.total]
        if outside or len(set(self.chosen)) < len(self.chosen):
            raise ValueError(
                f"episodes={list(chosen)} must be different places in a list of {whole.total}, "
                f"from 0 to {whole.total - 1}"
            )
        # places of each environment, in their order
        self._of_env = [self.chosen[:0] for _ in range(num_envs)]
        for index in self.chosen:
            self._of_env[index % num_envs].append(index)
        self.num_episodes = torch.tensor([len(indices) for indices in self._of_env])

    @property
    def index(self) -> Tensor:
        played = zip(self._of_env, self.episodes.tolist(), strict=True)
        return torch.tensor([indices[num - 1] if num else -1 for indices, num in played])

    def seed_of(self, index: int) -> int:
        return self._whole.seed_of(index)

    def _seed_of(self, env: int, episode: int) -> int:
        return self.seed_of(self._of_env[env][episode])
