"""Whether a run has changed its policy, and if not, the reasons that its metrics show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pitune.experiments.health.metric import setting

UNCHANGED = (
    "The policy is unchanged: its weights are those from before training, and differences between "
    "before and after are chance."
)


def reasons(
    rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], changed: bool
) -> list[str]:
    """Return the reasons why a run has learned nothing, or nothing if it has learned.

    Args:
        rows: Of metrics.csv.
        config: Settings of the run, as in config.json.
        changed: Whether the weights differ from those before training.

    Example:
        >>> reasons([{"iteration": 1, "kept_groups": 0.0}], {}, changed=False)[1][:40]
        'No group had both successes and failures'
    """
    found = _reasons(rows, config)
    if changed:  # by noise alone, if nothing ever succeeded
        return [reason for reason in found if reason == NO_SUCCESS]
    return [UNCHANGED, *found]


NO_SUCCESS = (
    "No episode of training succeeded, so there was no success to learn from: take a better clone "
    "or an easier task."
)


def _reasons(rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[str]:
    found = []
    warmup = int(setting(config, "critic_warmup", 0))
    if 0 < len(rows) <= warmup:
        found.append(
            f"All {len(rows)} iterations were the critic's warm-up (critic_warmup={warmup}): raise "
            "num_iterations, or lower critic_warmup."
        )
    if _all_zero(rows, "rounds"):
        decisions = setting(config, "warmup_decisions", 0)
        found.append(
            f"All iterations were warm-up without a gradient step (warmup_decisions={decisions}): "
            "raise num_iterations."
        )
    if _all_zero(rows, "kept_groups"):
        found.append(
            "No group had both successes and failures (kept_groups=0), so no group was kept: raise "
            "group_size, or take a better clone."
        )
    elif _all_zero(rows, "gradient_steps"):
        found.append("No gradient step was taken (gradient_steps=0): raise num_iterations.")
    if _all_zero(rows, "train/episodes"):
        found.append("No episode ended in a rollout: raise num_chunks or eval_every.")
    elif _all_zero(rows, "train/success_rate"):
        found.append(NO_SUCCESS)
    return found


def _all_zero(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Return whether a column exists and never is anything but 0 or nan."""
    values = [row[column] for row in rows if column in row]
    return bool(values) and not any(value > 0 or value < 0 for value in values)
