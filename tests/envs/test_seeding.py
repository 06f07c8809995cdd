"""`seeding`: the seeds of episodes."""

from __future__ import annotations

import pytest
import torch

from pitune.envs import EpisodeSeeds, Split, episode_seed
from pitune.envs.seeding import SPLITS


def seed_set(split: Split, seed: int = 0, streams: int = 8, episodes: int = 50) -> set[int]:
    return {episode_seed(seed, split, s, e) for s in range(streams) for e in range(episodes)}


def test_splits_never_share_a_seed() -> None:
    seeds = [seed_set(split) for split in SPLITS]
    assert all(len(split_seeds) == 400 for split_seeds in seeds)
    assert len(set.union(*seeds)) == 400 * len(SPLITS)


def test_runs_never_share_a_seed() -> None:
    assert len(seed_set("train", 0) | seed_set("train", 1) | seed_set("train", 2**40)) == 1200


def test_numbers_are_the_same_in_every_version() -> None:
    """Stored results refer to starts by these numbers, so a change of them changes results."""
    assert episode_seed(0, "train", 0, 0) == 1_484_405_855
    assert episode_seed(3, "test", 2, 1_000_000) == 1_273_113_708


def test_a_seed_fits_every_simulator() -> None:
    assert all(0 <= seed < 2**31 for seed in seed_set("test"))


def test_an_episodes_seed_depends_on_its_own_number_only() -> None:
    """Not on the order of resets, the other environments, or the number of environments."""
    small, large = EpisodeSeeds(2, 5, "train"), EpisodeSeeds(9, 5, "train")
    large.next(torch.tensor([4, 4, 7]))
    for episode in range(4):
        expected = [episode_seed(5, "train", env, episode) for env in (1, 0)]
        assert small.next(torch.tensor([1, 0])).tolist() == expected
        actual = [large.next(torch.tensor([env])).item() for env in (1, 0)]
        assert actual == expected


def test_a_group_shares_its_seeds() -> None:
    seeds = EpisodeSeeds(6, 0, "train", group_size=3)
    all_envs = torch.arange(6)
    for _ in range(3):
        numbers = seeds.next(all_envs).tolist()
        assert len(set(numbers[:3])) == len(set(numbers[3:])) == 1
        assert numbers[0] != numbers[3]


def test_an_environment_never_repeats_a_start() -> None:
    seeds = EpisodeSeeds(1, 0, "train")
    numbers = [seeds.next(torch.tensor([0])).item() for _ in range(200)]
    assert len(set(numbers)) == 200


def test_impossible_groups_and_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="num_envs=6 must be a multiple of group_size=4"):
        EpisodeSeeds(6, 0, "train", group_size=4)
    with pytest.raises(ValueError, match="num_envs=6 must be a multiple of group_size=0"):
        EpisodeSeeds(6, 0, "train", group_size=0)
    with pytest.raises(ValueError, match="seed=-1 must be at least 0"):
        EpisodeSeeds(6, -1, "train")
