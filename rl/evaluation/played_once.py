"""The check at the end of an evaluation that every (task, start) was played exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pitune.envs import EvaluationSeeds
from pitune.rl.evaluation.outcome import EpisodeOutcome

MAX_NAMED = 5
"""Episodes that a message names."""


def check_played_once(
    rows: Sequence[EpisodeOutcome], episodes: Sequence[int], seeds: EvaluationSeeds
) -> None:
    """Check that an evaluation has one outcome of each episode, on the start of its place.

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
        RuntimeError: an episode is missing, was played twice, or began with another start.
    """
    played = Counter(row.index for row in rows)
    wanted = set(episodes)
    faults = [
        f"episode {index}: {played[index]} times"
        for index in sorted(wanted | played.keys())
        if played[index] != (index in wanted)
    ]
    if not faults:
        faults = [
            f"episode {row.index}: seed {row.seed} instead of {seeds.seed_of(row.index)}"
            for row in rows
            if row.seed not in (None, seeds.seed_of(row.index))
        ]
    if faults:
        more = f" and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        raise RuntimeError(
            f"the evaluation did not play each of its {len(wanted)} episodes once: "
            f"{', '.join(faults[:MAX_NAMED])}{more}; this is a fault of the environment's adapter "
            "or of pitune"
        )
