"""Instructions of other tasks, for the control of a result about language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def shuffled_instructions(tasks: Sequence[str], seed: int) -> tuple[str, ...]:
    """Return for each task the instruction of another one, so that none keeps its words.

    A policy that follows instructions must fall with them, to the rate by which the tasks have the
    same solution. One that does not fall solves the tasks from its other inputs.

    Example:
        >>> shuffled_instructions(("push", "reach"), seed=0)
        ('reach', 'push')

    Args:
        tasks: Instructions of the environment, `EnvSpec.tasks`.
        seed: Chooses the exchange, so that equal seeds give equal ones.

    Raises:
        ValueError: there is one task, or more than half of the tasks have the same words.
    """
    counts = Counter(tasks)
    words, most = counts.most_common(1)[0] if counts else ("", 0)
    if len(counts) < 2:
        raise ValueError(
            f"the instructions {list(tasks)} cannot be exchanged, because no task has other words; "
            "use an environment with several tasks, such as a suite"
        )
    if 2 * most > len(tasks):
        raise ValueError(
            f"the instructions cannot be exchanged, because {most} of the {len(tasks)} tasks have "
            f"the same words {words!r}; use other tasks"
        )

    # equal words side by side, then a rotation by at least as many places as any words have
    generator = np.random.default_rng(seed)
    place = dict(zip(sorted(counts), generator.permutation(len(counts)).tolist(), strict=True))
    order = sorted(generator.permutation(len(tasks)).tolist(), key=lambda i: place[tasks[i]])
    shift = int(generator.integers(most, len(tasks) - most + 1))
    given = dict(zip(order, np.roll(order, shift).tolist(), strict=True))
    return tuple(tasks[given[task_id]] for task_id in range(len(tasks)))
