"""A run that learned nothing says so, with the reason that its metrics show."""

from __future__ import annotations

from typing import Any

import pytest

from pitune.experiments.health.outcome import NO_SUCCESS, UNCHANGED, reasons

PPO = {"algorithm": {"critic_warmup": 5}}
DSRL = {"algorithm": {"off_policy": {"warmup_decisions": 1800}}}


def rows(num: int, **metrics: float) -> list[dict[str, Any]]:
    return [{"iteration": i, **metrics} for i in range(1, num + 1)]


@pytest.mark.parametrize(
    ("table", "config", "words"),
    [
        (rows(3, gradient_steps=8.0), PPO, "All 3 iterations were the critic's warm-up (critic_wa"),
        (rows(5, gradient_steps=8.0), PPO, "critic_warmup=5"),
        (rows(9, rounds=0.0), DSRL, "warm-up without a gradient step (warmup_decisions=1800)"),
        (rows(9, kept_groups=0.0, gradient_steps=0.0), {}, "No group had both successes and fail"),
        (rows(9, gradient_steps=0.0), {}, "No gradient step was taken (gradient_steps=0)"),
        (rows(9, **{"train/episodes": 0.0}), {}, "No episode ended in a rollout"),
        (rows(9, **{"train/success_rate": 0.0, "train/episodes": 4.0}), {}, NO_SUCCESS),
        (rows(9, **{"train/success_rate": float("nan")}), {}, NO_SUCCESS),
    ],
)
def test_an_unchanged_policy_is_named_with_its_cause(
    table: list[dict[str, Any]], config: dict[str, Any], words: str
) -> None:
    first, *causes = reasons(table, config, changed=False)
    assert first == UNCHANGED
    assert any(words in cause for cause in causes)


def test_a_policy_that_changed_without_any_success_is_named() -> None:
    table = rows(9, **{"train/success_rate": 0.0, "gradient_steps": 0.0})
    assert reasons(table, {}, changed=True) == [NO_SUCCESS]


@pytest.mark.parametrize(
    "table",
    [
        rows(9, gradient_steps=8.0, kept_groups=0.5, rounds=1.0),
        [*rows(5, **{"train/success_rate": 0.0}), {"iteration": 6, "train/success_rate": 0.1}],
        [],
    ],
)
def test_a_policy_that_learned_gets_no_remark(table: list[dict[str, Any]]) -> None:
    assert reasons(table, PPO, changed=True) == []
