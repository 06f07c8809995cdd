"""The shares of an evaluation: each episode in exactly one of them, and equally many in each."""

from __future__ import annotations

from collections import Counter

import pytest

from pitune.experiments.evaluation.plan import Part, missing, parts, shard_of


@pytest.mark.parametrize("num_envs", [1, 4, 7])
@pytest.mark.parametrize("num_episodes", [1, 4, 29, 64])
@pytest.mark.parametrize("num_shards", [1, 2, 3, 5])
def test_each_episode_is_in_one_share_and_the_shares_are_equal(
    num_envs: int, num_episodes: int, num_shards: int
) -> None:
    lists = [
        missing((), num_envs, num_episodes, (number, num_shards))
        for number in range(1, num_shards + 1)
    ]
    assert sorted(index for indices in lists for index in indices) == list(range(num_episodes))
    sizes = [len(indices) for indices in lists]
    # rounds that are left over are dealt by environment, fewer of which a round may have
    assert max(sizes) - min(sizes) <= -(-num_envs // num_shards) * num_shards


def test_an_environment_keeps_its_episodes_in_every_share() -> None:
    for number in (1, 2, 3):
        for index in missing((), 4, 50, (number, 3)):
            assert shard_of(index, 4, 50, 3) == number
    played = Counter(shard_of(index, 100, 200, 4) for index in range(200))
    assert played == {1: 50, 2: 50, 3: 50, 4: 50}


def test_what_is_done_is_not_played_again() -> None:
    assert missing({0, 3}, 2, 5, (1, 1)) == [1, 2, 4]
    assert missing(range(9), 2, 5, (1, 1)) == []


def test_parts_have_different_names() -> None:
    made = list(parts(["checkpoint", "compare"], [{"flow_steps": 1}, {"flow_steps": 4}], [0, 1]))
    assert len({part.name for part in made}) == len(made) == 8
    assert Part("compare", {}, 3).name == "compare seed=3"
