"""The parts of an evaluation, and their episodes that this process plays.

A part is one list of episodes: a policy, a cell of `--vary`, a seed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from pitune.experiments.evaluation.variations import Cell, text_of


class Part(NamedTuple):
    """One list of episodes.

    Example:
        >>> Part("checkpoint", {"flow_steps": 4}, 0).name
        'checkpoint seed=0 flow_steps=4'
    """

    player: str
    """`checkpoint` or `compare`."""
    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        """The part in words, by which its rows are stored."""
        return " ".join(filter(None, [self.player, f"seed={self.seed}", text_of(self.cell)]))


def parts(players: Sequence[str], cells: Sequence[Cell], seeds: Sequence[int]) -> Iterator[Part]:
    """Yield the parts in the order in which they are played."""
    for cell in cells:
        for player in players:
            for seed in seeds:
                yield Part(player, cell, seed)


def shard_of(index: int, num_envs: int, num_episodes: int, num_shards: int) -> int:
    """Return the share that plays an episode, from 1 on.

    A round is one episode of each environment. Whole rounds are dealt to the shares in turn. The
    environments of the rounds that are left over are dealt instead, so that the shares stay equal.
    In every share an episode is played by the environment of its place in the whole list, whose
    number of environments is the same: so it has the same rounding errors.

    Example:
        >>> [shard_of(index, 2, 10, 2) for index in range(10)]
        [1, 1, 2, 2, 1, 1, 2, 2, 1, 2]

    Args:
        index: Place in the list.
        num_envs: Environments of each share.
        num_episodes: Length of the list.
        num_shards: Number of shares.
    """
    turn, env = divmod(index, num_envs)
    num_rounds = -(-num_episodes // num_envs)
    dealt = num_rounds - num_rounds % num_shards
    return 1 + (turn if turn < dealt else env) % num_shards


def missing(
    done: Collection[int], num_envs: int, num_episodes: int, shard: tuple[int, int]
) -> list[int]:
    """Return the episodes of a share that are not played yet.

    Args:
        done: Episodes that are.
        num_envs: Environments.
        num_episodes: Length of the list.
        shard: The share and the number of all shares.
    """
    own, num_shards = shard
    return [
        index
        for index in range(num_episodes)
        if index not in done and shard_of(index, num_envs, num_episodes, num_shards) == own
    ]
