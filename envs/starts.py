"""The seeds of environments whose seeds choose a task or one of a fixed number of starts.

The seed of such an episode is `task_id + num_tasks * start`. Training, validation, test and
demonstrations take their starts from disjoint sets, and the starts of one list are all different.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pitune.envs.vector_env import EnvSpec

Split = Literal["train", "validation", "test", "demonstrations"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "demonstrations")

PATTERN: tuple[Split, ...] = (
    *("train", "test", "train", "test", "train", "test", "train", "test"),
    *("validation", "demonstrations"),
)
"""Split of each of ten successive fixed starts."""
NUM_SEEDS = 2**31
"""Seeds are below this number."""


def start_split(num_starts: int, *, shared: bool = False) -> dict[Split, tuple[int, ...]]:
    """Return the fixed starts of each split, which evaluations store.

    Example:
        >>> {split: len(starts) for split, starts in start_split(50).items()}
        {'train': 20, 'validation': 5, 'test': 20, 'demonstrations': 5}

    Args:
        num_starts: `EnvSpec.num_starts`.
        shared: `EnvSpec.shared_starts`, whether every split has all of them.

    Raises:
        ValueError: there are fewer than ten.
    """
    if shared:
        return dict.fromkeys(SPLITS, tuple(range(num_starts)))
    if num_starts < len(PATTERN):
        raise ValueError(
            f"num_starts={num_starts} cannot be split into {', '.join(SPLITS)}; an environment "
            f"with fixed starts needs at least {len(PATTERN)} of them"
        )
    splits = [PATTERN[start % len(PATTERN)] for start in range(num_starts)]
    return {
        split: tuple(start for start in range(num_starts) if splits[start] == split)
        for split in SPLITS
    }


@dataclass(frozen=True, kw_only=True)
class Starts:
    """The tasks and the starts that the seed of an episode chooses from.

    Example:
        >>> starts = Starts(num_tasks=10, num_starts=50, seeded_tasks=True)
        >>> starts.seed_of(0, "test", task_id=3, number=0) % 10
        3
        >>> starts.seed_of(0, "test", task_id=3, number=0) // 10 in start_split(50)["test"]
        True
    """

    env_id: str = "the environment"
    """Name for messages."""
    num_tasks: int = 1
    """Tasks that a seed chooses from."""
    num_starts: int | None = None
    """Fixed starts of each task, or None for no limit."""
    shared_starts: bool = False
    """Whether the splits share the fixed starts."""
    seeded_tasks: bool = False
    """Whether a seed chooses the task."""

    @classmethod
    def of(cls, spec: EnvSpec) -> Starts:
        """Return the tasks and starts of an environment."""
        num_tasks = len(spec.tasks) if spec.seeded_tasks else 1
        return cls(
            env_id=spec.id,
            num_tasks=num_tasks,
            num_starts=spec.num_starts,
            shared_starts=spec.shared_starts,
            seeded_tasks=spec.seeded_tasks,
        )

    @property
    def is_plain(self) -> bool:
        """Whether seeds choose from neither tasks nor fixed starts, so that any seed will do."""
        return not self.seeded_tasks and self.num_starts is None

    def seed_of(self, seed: int, split: Split, task_id: int, number: int) -> int:
        """Return the seed in [0, 2^31) of an episode.

        Successive numbers have different starts, as long as the split has further ones.

        Args:
            seed: Seed of the run or of the evaluation.
            split: Purpose of the episode. Splits have no start in common.
            task_id: Task of the episode.
            number: Number of the episode within seed, split and task.
        """
        key = (seed, SPLITS.index(split), task_id)
        if self.num_starts is not None:
            order = _order(key, start_split(self.num_starts, shared=self.shared_starts)[split])
            return task_id + self.num_tasks * order[number % len(order)]
        # the largest power of two that leaves a place for each task and split
        places = 1 << ((NUM_SEEDS // (self.num_tasks * len(SPLITS))).bit_length() - 1)
        first, stride = _progression(key)
        # an odd stride reaches every place before it repeats one
        place = (first + stride * number) % places
        return task_id + self.num_tasks * (SPLITS.index(split) + len(SPLITS) * place)

    def check_episodes(self, num_episodes: int, split: Split) -> None:
        """Reject a list of episodes that is longer than the list of different starts.

        Raises:
            ValueError: it is.
        """
        if self.num_starts is None:
            return
        starts = len(start_split(self.num_starts, shared=self.shared_starts)[split])
        if num_episodes > self.num_tasks * starts:
            raise ValueError(
                f"num_episodes={num_episodes} is more than the {self.num_tasks * starts} different "
                f"episodes of {self.env_id} ({split}): {self.num_tasks} tasks with {starts} of "
                f"{self.num_starts} fixed starts each; evaluate at most these"
            )


@functools.lru_cache(maxsize=4096)
def _order(key: tuple[int, int, int], starts: tuple[int, ...]) -> tuple[int, ...]:
    """Return the starts in a random order of their own for each seed, split and task."""
    generator = np.random.default_rng(np.random.SeedSequence(key))
    return tuple(int(start) for start in generator.permutation(starts))


@functools.lru_cache(maxsize=4096)
def _progression(key: tuple[int, int, int]) -> tuple[int, int]:
    """Return the first place and the odd stride of a seed, split and task."""
    first, stride = np.random.SeedSequence(key).generate_state(2)
    return int(first), int(stride) | 1
