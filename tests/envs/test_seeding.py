"""`seeding`: which seed starts which episode."""

from __future__ import annotations

import pytest
import torch

from pitune.envs import EpisodeSeeds, episode_seed
from pitune.envs.seeding import SPLITS


def table(split: str, seed: int = 0, streams: int = 8, episodes: int = 50) -> set[int]:
    return {episode_seed(seed, split, s, e) for s in range(streams) for e in range(episodes)}


def test_splits_never_share_a_seed() -> None:
    seeds = [table(split) for split in SPLITS]
    assert all(len(found) == 400 for found in seeds)
    assert len(set.union(*seeds)) == 400 * len(SPLITS)


def test_runs_never_share_a_seed() -> None:
    assert len(table("train", 0) | table("train", 1) | table("train", 2**40)) == 1200


def test_numbers_are_the_same_in_every_version() -> None:
    """Stored results name starts by these numbers; changing them is a change of results."""
    assert episode_seed(0, "train", 0, 0) == 1_484_405_855
    assert episode_seed(3, "test", 2, 1_000_000) == 1_273_113_708


def test_a_seed_fits_every_simulator() -> None:
    assert all(0 <= seed < 2**31 for seed in table("test"))


def test_an_episodes_seed_depends_on_its_own_number_only() -> None:
    """Not on the order of resets, the other environments, or the number of environments."""
    small, large = EpisodeSeeds(2, 5, "train"), EpisodeSeeds(9, 5, "train")
    large.next(torch.tensor([4, 4, 7]))
    for episode in range(4):
        expected = [episode_seed(5, "train", env, episode) for env in (1, 0)]
        assert small.next(torch.tensor([1, 0])).tolist() == expected
        found = [large.next(torch.tensor([env])).item() for env in (1, 0)]
        assert found == expected


def test_a_group_shares_its_seeds() -> None:
    seeds = EpisodeSeeds(6, 0, "train", group_size=3)
    everyone = torch.arange(6)
    for _ in range(3):
        found = seeds.next(everyone).tolist()
        assert len(set(found[:3])) == len(set(found[3:])) == 1
        assert found[0] != found[3]


def test_the_same_environment_never_starts_twice_alike() -> None:
    seeds = EpisodeSeeds(1, 0, "train")
    found = [seeds.next(torch.tensor([0])).item() for _ in range(200)]
    assert len(set(found)) == 200


def test_impossible_groups_and_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="num_envs=6 must be a multiple of group_size=4"):
        EpisodeSeeds(6, 0, "train", group_size=4)
    with pytest.raises(ValueError, match="num_envs=6 must be a multiple of group_size=0"):
        EpisodeSeeds(6, 0, "train", group_size=0)
    with pytest.raises(ValueError, match="seed=-1 must be at least 0"):
        EpisodeSeeds(6, -1, "train")
