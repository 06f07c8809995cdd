"""Which episodes of an evaluation are filmed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pitune.envs import SuccessRule
from pitune.rl import EpisodeOutcome


def choose_episodes(
    rows: Sequence[EpisodeOutcome], num: int, rule: SuccessRule | None
) -> list[int]:
    """Return up to `num` episodes, evenly over tasks and outcomes, in the order of the list.

    First comes a failure of every task and then a success of every task, which show most. Then come
    further failures and successes in turn. Of several episodes of a task with one outcome the first
    in the list counts. Episodes in a broken simulator are left out. The rule knows the outcomes, so
    the share of successes among the films is no success rate.

    Example:
        >>> from pitune.rl import Evaluation
        >>> rows = Evaluation.of(success=[True, True, True, False]).rows
        >>> choose_episodes(rows, 2, "once"), choose_episodes(rows, 3, "once")
        ([0, 3], [0, 1, 3])

    Args:
        rows: Outcomes of the evaluation.
        num: Greatest number of episodes.
        rule: Definition of success, or None in an environment that reports none.

    Raises:
        ValueError: `num` is below 1.
    """
    if num < 1:
        raise ValueError(f"num={num} episodes to film must be at least 1")
    # (failure first, task) -> episodes
    groups: dict[tuple[bool, int], list[int]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.index):
        if not row.invalid:
            groups[rule is not None and row.success(rule), row.task_id].append(row.index)
    rounds = max(map(len, groups.values()), default=0)
    order = [
        groups[key][number]
        for number in range(rounds)
        for key in sorted(groups)
        if number < len(groups[key])
    ]
    return sorted(order[:num])


def spread_episodes(num_episodes: int, num: int) -> list[int]:
    """Return `num` episodes, evenly spread over an evaluation's list.

    The rule knows no outcome, so a film shows neither the best nor the worst.

    Example:
        >>> spread_episodes(200, 4), spread_episodes(3, 4)
        ([0, 50, 100, 150], [0, 1, 2])

    Args:
        num_episodes: Of the evaluation, at least 1.
        num: Greatest number of episodes.
    """
    return sorted({number * num_episodes // num for number in range(num)})
