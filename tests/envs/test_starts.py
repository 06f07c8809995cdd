"""`starts`: seeds that choose the task or one of a fixed number of starts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from pitune.envs import (
    CheckedEnv,
    EpisodeSeeds,
    EvaluationSeeds,
    Observation,
    Split,
    Starts,
    episode_seed,
    start_split,
)
from pitune.envs.mock.reach import Reach
from pitune.envs.starts import SPLITS

SUITE = Starts(num_tasks=10, seeded_tasks=True)
FIXED = Starts(num_tasks=10, num_starts=50, seeded_tasks=True, env_id="libero/spatial")
ONE_TASK = Starts(num_starts=50)


def evaluated(num_episodes: int, starts: Starts, num_envs: int = 4, seed: int = 0) -> list[int]:
    seeds = EvaluationSeeds(num_envs, num_episodes, seed, "test", starts)
    return [seeds.seed_of(index) for index in range(num_episodes)]


# Environments without these fields


def test_other_environments_keep_their_seeds_bit_for_bit() -> None:
    spec = Reach(3).spec
    starts = Starts.of(spec)
    training = EpisodeSeeds(3, 7, "train", starts=starts)
    assert training.next(torch.arange(3)).tolist() == [
        episode_seed(7, "train", env, 0) for env in range(3)
    ]
    listed = EvaluationSeeds(3, 5, 7, "test", starts)
    assert [listed.seed_of(index) for index in range(5)] == [
        episode_seed(7, "test", index, 0) for index in range(5)
    ]


# Evaluations


@pytest.mark.parametrize("num_envs", [1, 4, 10, 64])
def test_episode_i_of_an_evaluation_plays_task_i_modulo_their_number(num_envs: int) -> None:
    seeds = evaluated(53, SUITE, num_envs)
    assert [seed % 10 for seed in seeds] == [index % 10 for index in range(53)]
    assert seeds == evaluated(53, SUITE, 3)


def test_environments_keep_their_task_if_their_number_is_a_multiple() -> None:
    seeds = EvaluationSeeds(20, 80, 0, "test", SUITE)
    for _ in range(4):
        assert (seeds.next(torch.arange(20)) % 10).tolist() == [env % 10 for env in range(20)]


def test_an_evaluation_plays_every_fixed_start_of_its_split_once() -> None:
    seeds = evaluated(200, FIXED)
    pairs = {(seed % 10, seed // 10) for seed in seeds}
    assert pairs == {(task, start) for task in range(10) for start in start_split(50)["test"]}


def test_an_evaluation_without_a_limit_repeats_no_start() -> None:
    seeds = evaluated(20_000, SUITE)
    assert len(set(seeds)) == 20_000
    assert min(seeds) >= 0
    assert max(seeds) < 2**31


def test_more_episodes_than_starts_are_refused() -> None:
    message = (
        r"num_episodes=201 is more than the 200 different episodes of libero/spatial \(test\): 10 "
        r"tasks with 20 of 50 fixed starts each; evaluate at most these"
    )
    with pytest.raises(ValueError, match=message):
        evaluated(201, FIXED)


def test_another_seed_of_an_evaluation_gives_other_starts() -> None:
    assert not set(evaluated(1000, SUITE)) & set(evaluated(1000, SUITE, seed=1))
    # of fixed starts only the order can differ
    assert evaluated(200, FIXED) != evaluated(200, FIXED, seed=1)


# Training


@pytest.mark.parametrize("starts", [SUITE, FIXED])
@pytest.mark.parametrize(("num_envs", "group_size"), [(8, 1), (12, 4), (20, 2), (7, 7)])
def test_training_deals_the_tasks_evenly(starts: Starts, num_envs: int, group_size: int) -> None:
    seeds = EpisodeSeeds(num_envs, 3, "train", group_size, starts)
    counts: Counter[int] = Counter()
    for _ in range(40):
        played = seeds.next(torch.arange(num_envs))
        groups = played.view(-1, group_size)
        assert (groups == groups[:, :1]).all()  # groups share task and start
        counts.update((played % 10).tolist())
    assert set(counts.values()) == {40 * num_envs // 10}


def test_training_keeps_the_task_of_each_environment_if_it_can() -> None:
    seeds = EpisodeSeeds(40, 3, "train", 2, SUITE)
    first = seeds.next(torch.arange(40))
    second = seeds.next(torch.arange(40))
    assert torch.equal(first % 10, torch.arange(40) // 2 % 10)
    assert torch.equal(first % 10, second % 10)
    assert not torch.equal(first, second)


def test_an_episode_depends_on_its_number_only() -> None:
    """A run that is resumed sets the counter and continues with the same episodes."""
    whole, resumed = (EpisodeSeeds(7, 3, "train", 1, FIXED) for _ in range(2))
    for _ in range(5):
        whole.next(torch.arange(7))
    resumed.episodes += 5
    for row in (6, 0, 3):
        assert torch.equal(whole.next(torch.tensor([row])), resumed.next(torch.tensor([row])))
    again = whole.with_seed(3)
    assert torch.equal(
        again.next(torch.arange(7)), EpisodeSeeds(7, 3, "train", 1, FIXED).next(torch.arange(7))
    )


# Splits


def played(split: Split, starts: Starts, seed: int) -> set[int]:
    seeds = EpisodeSeeds(30, seed, split, starts=starts)
    return {int(n) for _ in range(60) for n in seeds.next(torch.arange(30))}


@pytest.mark.parametrize("starts", [SUITE, FIXED, ONE_TASK])
def test_splits_share_no_start_even_with_different_seeds(starts: Starts) -> None:
    sets: list[set] = [played(split, starts, seed) for seed, split in enumerate(SPLITS)]
    listed = EvaluationSeeds(3, 5 * starts.num_tasks, 9, "validation", starts)
    validation = {listed.seed_of(index) for index in range(5 * starts.num_tasks)}
    assert not validation & set.union(sets[0], *sets[2:])
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_every_fixed_start_of_the_split_is_trained_on() -> None:
    assert played("train", ONE_TASK, 0) == set(start_split(50)["train"])


def test_few_fixed_starts_cannot_be_split() -> None:
    with pytest.raises(
        ValueError, match=r"num_starts=9 cannot be split into train, .* at least 10"
    ):
        start_split(9)
    splits = start_split(10)
    assert sorted(start for part in splits.values() for start in part) == list(range(10))
    assert all(splits.values())


# Specs


def test_a_spec_names_every_task_and_seeds_choose_among_several() -> None:
    spec = Reach(2, num_tasks=2).spec
    with pytest.raises(
        ValueError, match=r"task_names=\('a',\) of mock/Reach must have one name .* 2"
    ):
        replace(spec, task_names=("a",))
    with pytest.raises(ValueError, match=r"num_starts=50 of mock/Reach .* set seeded_tasks=True"):
        replace(spec, num_starts=50)
    assert Starts.of(replace(spec, num_starts=50, seeded_tasks=True)) == Starts(
        env_id="mock/Reach", num_tasks=2, num_starts=50, seeded_tasks=True
    )


class Dealt(Reach):
    """Reach whose seed chooses the goal, or pretends to."""

    def __init__(self, *, honest: bool) -> None:
        super().__init__(3, num_tasks=2)
        self.spec = replace(self.spec, seeded_tasks=True)
        self.honest = honest

    def reset(self, seed: torch.Tensor, env_idx: torch.Tensor | None = None) -> Observation:
        super().reset(seed, env_idx)
        rows = torch.arange(3) if env_idx is None else env_idx
        self.task_id[rows] = seed % 2 if self.honest else 0
        return self._obs()


def test_an_episode_with_another_task_than_its_seed_chose_is_refused() -> None:
    env = CheckedEnv(Dealt(honest=True))
    assert env.reset(torch.tensor([4, 5, 7]))["task_id"].tolist() == [0, 1, 1]
    assert env.reset(torch.tensor([6]), torch.tensor([2]))["task_id"].tolist() == [0, 1, 0]
    message = r"mock/Reach began episodes with task_id=\[0\], but the seeds chose \[1\]"
    env = CheckedEnv(Dealt(honest=False))
    env.reset(torch.tensor([4, 6, 8]))
    with pytest.raises(ValueError, match=message):
        env.reset(torch.tensor([5]), torch.tensor([1]))


def test_shared_starts_are_all_evaluated_once_and_may_be_trained_on() -> None:
    shared = replace(ONE_TASK, shared_starts=True)
    assert sorted(evaluated(50, shared)) == list(range(50))
    with pytest.raises(ValueError, match="num_episodes=51 is more than the 50 different episodes"):
        evaluated(51, shared)
    seeds = EpisodeSeeds(50, 0, "train", starts=shared)
    drawn = {int(seed) for _ in range(20) for seed in seeds.next(torch.arange(50))}
    assert drawn == set(range(50))
    assert start_split(50, shared=True)["test"] == start_split(50, shared=True)["train"]
