"""The seeds of episodes.

The seed of an episode is a function of the run's seed, the split, the environment and the number of
the episode. It does not depend on the length of earlier episodes or on other environments. So a run
is repeatable, evaluation and training never share a start, two policies can be compared on the same
starts, and a group of environments can share every start. The starts of an evaluation do not even
depend on the number of environments.

Where the seed chooses the task (`EnvSpec.seeded_tasks`) or one of a fixed number of starts
(`EnvSpec.num_starts`), `pitune.envs.starts` turns these numbers into seeds: tasks are dealt evenly,
and the starts of the splits are disjoint.

Letters: E envs, N rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pitune.envs.starts import SPLITS, Split, Starts


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
        starts: Tasks and starts that a seed chooses from, `Starts.of(spec)`. Environment (or group)
            i begins with task i, and its next episode plays the task that follows those of the
            others. If the number of environments is a multiple of that of the tasks, each keeps its
            task.
        before: Environments of other processes that come before these in the whole list.
        total_envs: Environments of the whole list, E by default.

    Raises:
        ValueError: E is no multiple of the group size, or the seed is negative.
    """

    def __init__(
        self,
        num_envs: int,
        seed: int,
        split: Split,
        group_size: int = 1,
        starts: Starts | None = None,
        before: int = 0,
        total_envs: int | None = None,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed} must be at least 0")
        if group_size < 1 or num_envs % group_size:
            raise ValueError(f"num_envs={num_envs} must be a multiple of group_size={group_size}")
        self.seed, self.split, self.group_size = seed, split, group_size
        self.starts = starts or Starts()
        self.before, self.total_envs = before, total_envs or num_envs
        self.episodes = torch.zeros(num_envs, dtype=torch.int64)

    def next(self, env_idx: Tensor) -> Tensor:
        """Return the seed of the next episode of each environment in `env_idx` (N,) int64."""
        seeds = [self._seed_of(env, int(self.episodes[env])) for env in env_idx.tolist()]
        self.episodes[env_idx.cpu()] += 1
        return torch.tensor(seeds, dtype=torch.int64)

    def with_seed(self, seed: int) -> EpisodeSeeds:
        """Return the same kind of sequence from its beginning, with another seed."""
        args = (len(self.episodes), seed, self.split, self.group_size, self.starts)
        return EpisodeSeeds(*args, self.before, self.total_envs)

    def _seed_of(self, env: int, episode: int) -> int:
        stream = (self.before + env) // self.group_size
        num_streams = self.total_envs // self.group_size
        number = episode_seed(self.seed, self.split, stream, episode)
        if self.starts.is_plain:
            return number
        task_id = (stream + episode * num_streams) % self.starts.num_tasks
        return self.starts.seed_of(self.seed, self.split, task_id, number)


class EvaluationSeeds(EpisodeSeeds):
    """The seeds of a list of episodes that is dealt to any number of environments.

    Episode i of the list has a seed of its own, and environment i mod E plays it. Each episode is
    played once, so there is no bias towards short ones, and the share of an environment does not
    depend on the length of its episodes.

    Example:
        >>> few, many = EvaluationSeeds(2, 5, seed=0, split="test"), EvaluationSeeds(8, 5, seed=0)
        >>> (few.num_episodes.tolist(), many.num_episodes.tolist())
        ([3, 2], [1, 1, 1, 1, 1, 0, 0, 0])
        >>> first = few.next(torch.arange(2)).tolist() + few.next(torch.arange(2)).tolist()
        >>> first == many.next(torch.arange(4)).tolist()
        True

    Args:
        num_envs: E.
        num_episodes: Length of the list.
        seed: Seed of the evaluation, at least 0.
        split: Purpose of the episodes.
        starts: Tasks and starts that a seed chooses from, `Starts.of(spec)`. Episode i then plays
            task i modulo their number, and no (task, start) occurs twice.

    Raises:
        ValueError: there is no episode, the seed is negative, or there are fewer starts than
            episodes.
    """

    def __init__(
        self,
        num_envs: int,
        num_episodes: int,
        seed: int,
        split: Split = "test",
        starts: Starts | None = None,
    ) -> None:
        super().__init__(num_envs, seed, split, starts=starts)
        if num_episodes < 1:
            raise ValueError(f"num_episodes={num_episodes} must be at least 1")
        self.starts.check_episodes(num_episodes, split)
        env = torch.arange(num_envs)
        self.total = num_episodes
        self.num_episodes = (num_episodes - env + num_envs - 1).div(num_envs, rounding_mode="floor")
        """Episodes of each environment (E,)."""

    @property
    def index(self) -> Tensor:
        """Place in the list (E,) of the episode that each environment plays or played last.

        It is -1 before the first one.
        """
        num_envs = len(self.episodes)
        return (torch.arange(num_envs) + (self.episodes - 1) * num_envs).clamp(min=-1)

    def with_seed(self, seed: int) -> EvaluationSeeds:
        return EvaluationSeeds(len(self.episodes), self.total, seed, self.split, self.starts)

    def seed_of(self, index: int) -> int:
        """Return the seed of the start of episode `index` of the list."""
        if self.starts.is_plain:
            return episode_seed(self.seed, self.split, index, 0)
        number, task_id = divmod(index, self.starts.num_tasks)
        return self.starts.seed_of(self.seed, self.split, task_id, number)

    def noise_seed_of(self, index: int) -> int:
        """Return a seed for the random numbers of a policy in episode `index` of the list."""
        return episode_seed(self.seed, self.split, index, 1)

    def _seed_of(self, env: int, episode: int) -> int:
        return self.seed_of(env + episode * len(self.episodes))
