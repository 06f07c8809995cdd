"""`paired_test`: two policies on shared starts, and what cannot be paired."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pitune.envs import CheckedEnv
from pitune.envs.mock.reach import Reach
from pitune.policies import Actor
from pitune.rl import Evaluation, evaluate, paired_test
from pitune.rl.evaluation.statistics import fisher_p_value

YES, NO = True, False


def test_wins_and_losses_by_hand() -> None:
    first = Evaluation.of(success=[YES, YES, NO, NO, NO, NO, NO, NO])
    second = Evaluation.of(success=[YES, NO, YES, YES, YES, YES, YES, NO])
    # 5 of 6 starts that differ are wins: p = 2 * (C(6, 5) + C(6, 6)) / 2^6
    expected = (pytest.approx(2 * 7 / 64), 5, 1, 8, 0, 1)
    assert paired_test(first, second) == expected
    assert paired_test(second, first) == (expected[0], 1, 5, 8, 0, 1)
    assert paired_test(first, first) == (1.0, 0, 0, 8, 0, 2)
    assert paired_test(first, second).difference == 0.5
    assert paired_test(second, first).difference == -0.5


def test_it_is_stronger_than_a_test_of_the_rates() -> None:
    first = Evaluation.of(success=[YES] * 40 + [NO] * 60)
    second = Evaluation.of(success=[YES] * 50 + [NO] * 50)
    assert paired_test(first, second).p_value < 0.01
    assert fisher_p_value((40, 100), (50, 100)) > 0.1


def test_summaries_from_json_are_evaluations() -> None:
    evaluations = [Evaluation.of(success=[NO, NO, YES]), Evaluation.of(success=[YES, NO, YES])]
    summaries = [json.loads(json.dumps(e.summary())) for e in evaluations]
    assert paired_test(*summaries) == paired_test(*evaluations)
    assert paired_test(evaluations[0], summaries[1]).wins == 1


def test_broken_starts_are_left_out() -> None:
    first = Evaluation.of(success=[NO, NO, YES], num_broken=1)
    second = Evaluation.of(success=[YES, NO, YES, YES])
    assert paired_test(first, second) == (1.0, 1, 0, 3, 1, 1)


def test_the_definition_of_success_is_that_of_each_evaluation() -> None:
    rows = [replace(row, success_at_end=False) for row in Evaluation.of(success=[YES] * 6).rows]
    once = Evaluation(rows=tuple(rows))
    at_end = replace(once, success_rule="at_end")
    never = Evaluation.of(success=[NO] * 6)
    assert paired_test(never, once).wins == 6
    assert paired_test(replace(never, success_rule="at_end"), at_end).wins == 0


def old_summary(evaluation: Evaluation) -> dict[str, Any]:
    return {k: v for k, v in evaluation.summary().items() if k not in ("rows", "success_rule")}


ONE = Evaluation.of(success=[YES, NO])
NO_SEEDS = Evaluation(rows=tuple(replace(row, seed=None) for row in ONE.rows))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Evaluation.of(success=[YES, NO, NO]), "share 2 of 2 and 3 starts"),
        (Evaluation(rows=tuple(replace(r, seed=9) for r in ONE.rows)), "share 0 of 2 and 2 starts"),
        (NO_SEEDS, "a seed does not fix the starts of this environment"),
        (old_summary(ONE), "holds no episodes"),
        (replace(ONE, success_rule=None), "holds no success"),
        (Evaluation(rows=()), "holds no episodes"),
        (replace(ONE, success_rule="at_end"), "'once' and 'at_end'"),
    ],
)
def test_unpaired_evaluations_are_refused(other: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_test(ONE, other)


def test_evaluations_with_different_numbers_of_environments_are_paired(
    tiny_policy: Callable,
) -> None:
    actors = [Actor(tiny_policy(seed=seed)) for seed in (0, 7)]
    first = evaluate(CheckedEnv(Reach(3)), actors[0], 10)
    second = evaluate(CheckedEnv(Reach(10)), actors[1], 10)
    assert paired_test(first, second).pairs == 10
    with pytest.raises(ValueError, match="share 0 of 10 and 10 starts"):
        paired_test(first, evaluate(CheckedEnv(Reach(3)), actors[1], 10, seed=1))
    env = CheckedEnv(Reach(3))
    env.spec = replace(env.spec, deterministic_reset=False)
    with pytest.raises(ValueError, match="a seed does not fix the starts"):
        paired_test(first, evaluate(env, actors[1], 10))


def test_the_interval_of_the_difference_changes_sides_with_the_policies() -> None:
    first = Evaluation.of(success=[YES] * 40 + [NO] * 60)
    second = Evaluation.of(success=[YES] * 60 + [NO] * 40)
    low, high = paired_test(first, second).interval
    assert 0.1 < low < 0.2 < high < 0.3
    assert paired_test(second, first).interval == pytest.approx((-high, -low))


def test_joined_evaluations_are_paired_by_their_seeds() -> None:
    """The same start in the evaluations of two seeds is two pairs."""

    def joined(success: list[list[bool]]) -> dict:
        parts = [Evaluation.of(success=values).summary() for values in success]
        rows = [{**r, "evaluation_seed": n} for n, part in enumerate(parts) for r in part["rows"]]
        return {**parts[0], "rows": rows}

    first, second = joined([[NO, NO], [NO, YES]]), joined([[YES, NO], [YES, NO]])
    test = paired_test(first, second)
    assert (test.wins, test.losses, test.pairs) == (2, 1, 4)
