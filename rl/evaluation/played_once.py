"""The check at the end of an evaluation that every (task, start) was played exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pitune.envs import EvaluationSeeds
from pitune.rl.evaluation.outcome import EpisodeOutcome

MAX_NAMED = 5
"""Episodes that a message names."""


def check_played_once(
    rows: Sequence[EpisodeOutcome], episodes: Sequence[int], seeds: EvaluationSeeds
) -> None:
    """Check that an evaluation has one outcome of each episode, on the task and start of its place.

    Example:
        >>> seeds = EvaluationSeeds(num_envs=2, num_episodes=3, seed=0)
        >>> check_played_once([], range(3), seeds)
        Traceback (most recent call last):
        RuntimeError: the evaluation did not play each of its 3 episodes once: episode 0: 0 times, \
episode 1: 0 times, episode 2: 0 times; this is a fault of the environment's adapter or of pitune

    Args:
        rows: Outcomes.
        episodes: Places in the list that were to be played.
        seeds: Of the evaluation.

    Raises:
        RuntimeError: an episode is missing, was played twice, or had another start or task.
    """
    # places in the list
    played = Counter(row.index for row in rows)
    wanted = set(episodes)
    faults = [
        f"episode {index}: {played[index]} times"
        for index in sorted(wanted | played.keys())
        if played[index] != (index in wanted)
    ]
    # starts and tasks of these places
    if not faults:
        faults = [fault for row in rows for fault in _faults(row, seeds)]
        faults += _repeated_starts(rows, seeds)
    if faults:
        more = f" and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        raise RuntimeError(
            f"the evaluation did not play each of its {len(wanted)} episodes once: "
            f"{', '.join(faults[:MAX_NAMED])}{more}; this is a fault of the environment's adapter "
            "or of pitune"
        )


def _faults(row: EpisodeOutcome, seeds: EvaluationSeeds) -> Iterator[str]:
    """Yield the differences of an outcome from its place in the list."""
    seed, starts = seeds.seed_of(row.index), seeds.starts
    if row.seed not in (None, seed):
        yield f"episode {row.index}: seed {row.seed} instead of {seed}"
    if starts.seeded_tasks and row.task_id != seed % starts.num_tasks:
        yield f"episode {row.index}: task {row.task_id} instead of {seed % starts.num_tasks}"


def _repeated_starts(rows: Sequence[EpisodeOutcome], seeds: EvaluationSeeds) -> list[str]:
    """Return the starts of outcomes that occur twice, where a seed stands for a task and a start.

    Other seeds are drawn, and two of many may be equal by chance.
    """
    if seeds.starts.is_plain:
        return []
    played = Counter(seeds.seed_of(row.index) for row in rows)
    return [f"seed {seed}: {num} times" for seed, num in played.items() if num > 1]
