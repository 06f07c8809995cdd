"""RECAP's returns, advantages and indicators, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pitune.rl.algorithms.recap.labels import (
    advantages,
    indicators,
    longest_of_task,
    normalized_returns,
    steps_ahead,
    threshold,
)

YES, NO = True, False
NO_TASK = torch.zeros(10, dtype=torch.int64)
NOBODY = torch.zeros(10, dtype=torch.bool)


def steps(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


# Returns


def test_returns_count_the_steps_to_the_end_and_the_cost_of_a_failure() -> None:
    """A success of 4 steps, a failure of 6 and one of 10, the longest; a failure costs half."""
    time, length = steps(0, 3, 4, 0, 6, 9), steps(4, 4, 4, 6, 10, 10)
    solved = torch.tensor([YES, YES, YES, NO, NO, NO])
    found = normalized_returns(time, length, solved, steps(*[10] * 6), 0.5)
    assert found.tolist() == pytest.approx([-0.4, -0.1, 0.0, -1.0, -0.9, -0.6])


def test_returns_are_relative_to_the_longest_episode_of_their_own_task() -> None:
    length, task = steps(4, 10, 3), steps(0, 0, 1)
    assert longest_of_task(length, task).tolist() == [10, 10, 3]


# Advantages


def test_a_row_looks_ahead_in_its_own_episode_alone() -> None:
    """Decisions of two steps: the second episode begins at row 3."""
    time, episode = steps(0, 2, 4, 0, 2, 4), steps(0, 0, 0, 1, 1, 1)
    assert steps_ahead(time, episode, 2).tolist() == [1, 2, -1, 4, 5, -1]
    assert steps_ahead(time, episode, 3).tolist() == [2, -1, -1, 5, -1, -1]
    assert steps_ahead(time, episode, 50).tolist() == [-1] * 6
    assert steps_ahead(time, episode, None).tolist() == [-1] * 6


def test_advantages_by_hand() -> None:
    """The cost of two steps and the later value, or the return where the episode ends before."""
    time, episode = steps(0, 2, 4), steps(0, 0, 0)
    value, returns = torch.tensor([-0.8, -0.5, -0.3]), torch.tensor([-0.6, -0.4, -0.2])
    ahead, scale = steps_ahead(time, episode, 2), steps(10, 10, 10)
    found = advantages(value, returns, time, ahead, scale)
    by_hand = [-0.2 - 0.5 + 0.8, -0.2 - 0.3 + 0.5, -0.2 + 0.3]
    assert found.tolist() == pytest.approx(by_hand)
    whole = advantages(value, returns, time, steps_ahead(time, episode, None), scale)
    assert whole.tolist() == pytest.approx([0.2, 0.1, 0.1])


# Indicators


def test_the_share_of_positive_rows_is_exact_without_ties() -> None:
    advantage = torch.randperm(10).float()
    for share in (0.1, 0.3, 0.4, 0.9):
        label = indicators(advantage, NO_TASK, NOBODY, share)
        assert int(label.sum()) == round(10 * share)
        assert advantage[label == 1].min() > advantage[label == 0].max()


@pytest.mark.parametrize(
    ("values", "share", "least"),
    [
        ([1, 2, 2, 2, 3], 0.4, 3.0),  # 1 of 5 is nearer to 40 % than 4 of 5
        ([1, 2, 2, 2, 3], 0.6, 2.0),  # 4 of 5 are nearer to 60 %
        ([1, 2, 2, 3], 0.5, 3.0),  # as near as each other: the smaller share
        ([7, 7, 7], 0.4, 7.0),  # all are equal, and one at least is positive
    ],
)
def test_equal_advantages_have_equal_indicators(
    values: list[float], share: float, least: float
) -> None:
    advantage = torch.tensor(values, dtype=torch.float32)
    assert threshold(advantage, share) == least
    label = indicators(advantage, NO_TASK[: len(values)], NOBODY[: len(values)], share)
    assert label.tolist() == [int(value >= least) for value in values]


def test_each_task_has_its_own_threshold() -> None:
    advantage = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0])
    task = steps(0, 0, 0, 0, 1, 1, 1, 1)
    assert indicators(advantage, task, NOBODY[:8], 0.5).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_corrections_are_positive_and_move_no_threshold() -> None:
    advantage = torch.arange(10.0)
    forced = NOBODY.clone()
    forced[[0, 9]] = True
    label = indicators(advantage, NO_TASK, forced, 0.25)
    assert label.tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    every = indicators(advantage, NO_TASK, torch.ones(10, dtype=torch.bool), 0.25)
    assert every.tolist() == [1] * 10
