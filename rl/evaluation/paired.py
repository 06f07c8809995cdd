"""Comparison of two policies on shared starts, by an exact test of the starts that differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from pitune.rl.evaluation.outcome import Evaluation
from pitune.rl.evaluation.statistics import (
    Interval,
    mcnemar_p_value,
    paired_difference_interval,
)


class PairedTest(NamedTuple):
    """Outcome of a paired comparison of a second policy with a first.

    Example:
        >>> first = Evaluation.of(success=[False] * 8)
        >>> paired_test(first, Evaluation.of(success=[True] * 8))
        PairedTest(p_value=0.0078125, wins=8, losses=0, pairs=8, left_out=0, both=0)
    """

    p_value: float
    """Exact two-sided p-value that the policies differ (McNemar)."""
    wins: int
    """Starts that only the second policy solves."""
    losses: int
    """Starts that only the first policy solves."""
    pairs: int
    """Starts that both policies played in a working simulator."""
    left_out: int
    """Starts on which a simulator broke down for one of them."""
    both: int = 0
    """Starts that both policies solve."""

    @property
    def difference(self) -> float:
        """Success rate of the second policy minus that of the first, nan without pairs."""
        return (self.wins - self.losses) / self.pairs if self.pairs else math.nan

    @property
    def interval(self) -> Interval:
        """95 % interval of the difference (Newcombe 1998, method 10)."""
        neither = self.pairs - self.both - self.wins - self.losses
        return paired_difference_interval(self.both, self.losses, self.wins, neither)


def paired_test(
    first: Evaluation | Mapping[str, Any], second: Evaluation | Mapping[str, Any]
) -> PairedTest:
    """Compare two policies on the starts that both played.

    Args:
        first: An evaluation or its summary, for example before training.
        second: The other one, for example after training.

    Raises:
        ValueError: the evaluations do not share their starts, they define success differently, or
            one of them has no success or no rows.
    """
    a, b = _outcomes(first), _outcomes(second)
    rules = [_summary(evaluation)["success_rule"] for evaluation in (first, second)]
    if rules[0] != rules[1]:
        raise ValueError(
            f"the evaluations define success as {rules[0]!r} and {rules[1]!r}; evaluate both with "
            "one definition"
        )
    if a.keys() != b.keys():
        raise ValueError(
            f"the evaluations share {len(a.keys() & b.keys())} of {len(a)} and {len(b)} starts; a "
            "paired test needs the same seed, split and number of episodes for both"
        )
    pairs = [(a[start], b[start]) for start in a]
    valid = [(x, y) for x, y in pairs if x is not None and y is not None]
    one, two = [x for x, _ in valid], [y for _, y in valid]
    return PairedTest(
        p_value=mcnemar_p_value(one, two),
        wins=sum(y and not x for x, y in valid),
        losses=sum(x and not y for x, y in valid),
        pairs=len(valid),
        left_out=len(pairs) - len(valid),
        both=sum(x and y for x, y in valid),
    )


def _summary(evaluation: Evaluation | Mapping[str, Any]) -> Mapping[str, Any]:
    return evaluation.summary() if isinstance(evaluation, Evaluation) else evaluation


def _outcomes(evaluation: Evaluation | Mapping[str, Any]) -> dict[tuple[int, ...], bool | None]:
    """Return the success of each start, or None where the simulator broke down."""
    summary = _summary(evaluation)
    rule, rows = summary.get("success_rule"), summary.get("rows")
    if not rows or rule is None:
        missing = "episodes, which versions before 0.3 did not store" if not rows else "success"
        raise ValueError(
            f"an evaluation holds no {missing}; a paired test needs the success of each episode"
        )
    if any(row["seed"] is None for row in rows):
        raise ValueError(
            "a seed does not fix the starts of this environment, so two evaluations do not share "
            "them; compare the rates with fisher_p_value"
        )
    # several evaluations that are joined have equal places, with an `evaluation_seed`
    names = [(row.get("evaluation_seed", 0), row["index"], row["seed"]) for row in rows]
    values = [None if row["invalid"] else bool(row[f"success_{rule}"]) for row in rows]
    return dict(zip(names, values, strict=True))
