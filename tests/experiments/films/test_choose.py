"""The choice of the episodes that are filmed."""

from __future__ import annotations

import pytest

from pitune.experiments.films.choose import choose_episodes, spread_episodes
from pitune.rl import EpisodeOutcome


def rows(*outcomes: tuple[int, bool], broken: tuple[int, ...] = ()) -> list[EpisodeOutcome]:
    """Return outcomes from (task, success)."""
    return [
        EpisodeOutcome(
            index=index,
            seed=index,
            task_id=task,
            success_once=success,
            success_at_end=False,
            length=1,
            invalid=index in broken,
        )
        for index, (task, success) in enumerate(outcomes)
    ]


TWO_TASKS = rows((0, True), (1, True), (0, True), (1, False), (0, False), (1, False))


@pytest.mark.parametrize(
    ("num", "chosen"),
    [
        (1, [4]),  # a failure of the first task
        (2, [3, 4]),  # a failure of each
        (3, [0, 3, 4]),
        (4, [0, 1, 3, 4]),  # a success of each
        (5, [0, 1, 3, 4, 5]),
        (99, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_tasks_and_outcomes_take_turns(num: int, chosen: list[int]) -> None:
    assert choose_episodes(TWO_TASKS, num, "once") == chosen


def test_the_order_of_the_rows_does_not_matter() -> None:
    assert choose_episodes(TWO_TASKS[::-1], 3, "once") == [0, 3, 4]


def test_success_is_that_of_the_environment() -> None:
    assert choose_episodes(TWO_TASKS, 2, "at_end") == [0, 1]  # all fail at the end
    assert choose_episodes(TWO_TASKS, 2, None) == [0, 1]  # no success is reported


def test_episodes_in_a_broken_simulator_are_left_out() -> None:
    assert choose_episodes(rows((0, False), (0, True), broken=(0,)), 2, "once") == [1]
    assert choose_episodes(rows((0, False), broken=(0,)), 2, "once") == []


def test_a_film_of_no_episode_is_refused() -> None:
    with pytest.raises(ValueError, match="num=0 episodes to film must be at least 1"):
        choose_episodes(TWO_TASKS, 0, "once")


@pytest.mark.parametrize(
    ("num_episodes", "chosen"),
    [
        (200, [0, 50, 100, 150]),
        (10, [0, 2, 5, 7]),
        (4, [0, 1, 2, 3]),
        (3, [0, 1, 2]),
        (1, [0]),
    ],
)
def test_spread_episodes_know_no_outcome(num_episodes: int, chosen: list[int]) -> None:
    assert spread_episodes(num_episodes, 4) == chosen
