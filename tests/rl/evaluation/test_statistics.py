"""`statistics` against tables, hand-worked numbers and simulated error rates."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from pitune.rl.evaluation.statistics import (
    clopper_pearson_interval,
    interquartile_mean,
    mcnemar_p_value,
    mean_over_tasks,
    paired_difference_interval,
    paired_e_value,
    stratified_bootstrap,
    wilson_interval,
)

# Intervals


@pytest.mark.parametrize(
    ("successes", "num", "wilson", "exact"),
    [
        (0, 20, (0.0, 0.161), (0.0, 0.168)),
        (10, 50, (0.112, 0.330), (0.100, 0.337)),
        (48, 50, (0.865, 0.989), (0.863, 0.995)),
        (475, 500, (0.927, 0.966), (0.927, 0.967)),
        (500, 500, (0.992, 1.0), (0.993, 1.0)),
    ],
)
def test_intervals_match_the_table(
    successes: int, num: int, wilson: tuple[float, float], exact: tuple[float, float]
) -> None:
    """T-M1; the table was computed from the closed forms by other code."""
    assert wilson_interval(successes, num) == pytest.approx(wilson, abs=6e-4)
    assert clopper_pearson_interval(successes, num) == pytest.approx(exact, abs=6e-4)


def test_wilson_is_its_closed_form() -> None:
    z = 1.959963984540054
    for k, n in ((1, 3), (7, 40), (199, 200)):
        center, half = (
            (k + z**2 / 2) / (n + z**2),
            z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4),
        )
        assert wilson_interval(k, n) == pytest.approx((center - half, center + half), abs=1e-9)


@pytest.mark.parametrize("interval", [wilson_interval, clopper_pearson_interval])
def test_intervals_at_the_edges(interval) -> None:
    """T-M2."""
    assert all(math.isnan(limit) for limit in interval(0, 0))
    for num in (1, 2, 10, 1000):
        low, high = interval(0, num)
        assert low == pytest.approx(0, abs=1e-12)
        assert 0 < high < 1
        assert interval(num, num) == pytest.approx((1 - high, 1 - low))
        for successes in range(0, num + 1, max(1, num // 3)):
            low, high = interval(successes, num)
            assert 0 <= low <= successes / num <= high <= 1


def test_more_confidence_is_a_wider_interval() -> None:
    for interval in (wilson_interval, clopper_pearson_interval):
        narrow, wide = interval(7, 20, 0.8), interval(7, 20, 0.99)
        assert wide[0] < narrow[0] < 0.35 < narrow[1] < wide[1]


def test_the_exact_interval_covers_at_least_as_promised() -> None:
    """Coverage at n = 20, summed over all outcomes: never below 95 %; Wilson's dips below."""
    num = 20
    counts = np.arange(num + 1)
    choose = np.array([math.comb(num, int(k)) for k in counts])
    exact = np.array([clopper_pearson_interval(int(k), num) for k in counts])
    wilson = np.array([wilson_interval(int(k), num) for k in counts])
    rates = np.linspace(0.005, 0.995, 199)
    lowest = {}
    for name, table in (("exact", exact), ("wilson", wilson)):
        covered = [
            float(
                (choose * p**counts * (1 - p) ** (num - counts))[
                    (table[:, 0] <= p) & (p <= table[:, 1])
                ].sum()
            )
            for p in rates
        ]
        lowest[name] = min(covered)
    assert lowest["exact"] >= 0.95
    assert 0.8 < lowest["wilson"] < 0.95


# Aggregates


def test_interquartile_mean_of_eight_by_hand() -> None:
    """T-M3: of 0 1 2 3 4 5 6 100 the middle four are 2 3 4 5."""
    assert interquartile_mean([100, 3, 0, 5, 1, 4, 6, 2]) == 3.5
    assert interquartile_mean([0.5]) == 0.5
    assert interquartile_mean([1, 1, 1, 1]) == 1


def scores() -> np.ndarray:
    """Scores of five runs on three tasks of very different difficulty."""
    rng = np.random.default_rng(0)
    return np.array([0.1, 0.5, 0.9]) + 0.05 * rng.standard_normal((5, 3))


def test_the_order_of_runs_within_a_task_does_not_matter() -> None:
    """T-M3: each column is permuted by itself."""
    table = scores()
    rng = np.random.default_rng(1)
    permuted = np.stack([rng.permutation(column) for column in table.T], axis=1)
    first = stratified_bootstrap(table, num_resamples=4000)
    second = stratified_bootstrap(permuted, num_resamples=4000)
    assert first == pytest.approx(second, abs=0.01)
    assert first[0] < interquartile_mean(table.ravel().tolist()) < first[1]


def test_runs_are_not_exchanged_between_tasks() -> None:
    """Exchanging them would let the tasks' difference widen the interval."""
    table = scores()
    within = stratified_bootstrap(table)
    pooled = stratified_bootstrap(table.reshape(-1, 1))
    assert within[1] - within[0] < 0.5 * (pooled[1] - pooled[0])


def test_equal_runs_have_no_uncertainty() -> None:
    table = np.tile([0.2, 0.8], (4, 1))
    assert stratified_bootstrap(table) == pytest.approx((0.5, 0.5))


def test_the_same_seed_gives_the_same_interval() -> None:
    assert stratified_bootstrap(scores(), seed=3) == stratified_bootstrap(scores(), seed=3)
    assert stratified_bootstrap(scores(), seed=3) != stratified_bootstrap(scores(), seed=4)


# Comparisons


def pairs(only_first: int, only_second: int, both: int = 0, neither: int = 0):
    first = [True] * only_first + [False] * only_second + [True] * both + [False] * neither
    second = [False] * only_first + [True] * only_second + [True] * both + [False] * neither
    return first, second


def test_mcnemar_by_hand() -> None:
    """Five against none: 2 * 0.5^5; one against five: 2 * (1 + 6) / 2^6."""
    assert mcnemar_p_value(*pairs(5, 0)) == pytest.approx(0.0625)
    assert mcnemar_p_value(*pairs(1, 5)) == pytest.approx(14 / 64)
    assert mcnemar_p_value(*pairs(3, 3)) == 1


def test_mcnemar_reads_discordant_pairs_only() -> None:
    assert mcnemar_p_value(*pairs(2, 9)) == mcnemar_p_value(*pairs(2, 9, both=50, neither=40))
    assert mcnemar_p_value(*pairs(0, 0, both=7, neither=7)) == 1
    assert mcnemar_p_value([], []) == 1


def test_mcnemar_is_symmetric() -> None:
    """T-M5."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.random((2, 40)) < rng.random((2, 1))
        forth, back = mcnemar_p_value(first, second), mcnemar_p_value(second, first)
        assert forth == pytest.approx(back)


def test_a_paired_test_needs_pairs() -> None:
    with pytest.raises(
        ValueError, match="first policy has 2 episodes, the second 3; a paired test"
    ):
        mcnemar_p_value([True, False], [True, False, True])
    with pytest.raises(ValueError, match="the first policy has 1 episodes, the second 2"):
        paired_e_value([True], [True, False])


def test_evidence_by_hand() -> None:
    """Ties keep it, wins of the second multiply by 1.5, losses by 0.5."""
    first = [True, False, False, True, False]
    second = [True, True, False, False, True]
    assert paired_e_value(first, second) == pytest.approx([1, 1.5, 1.5, 0.75, 1.125])
    assert paired_e_value(first, second, bet=0.2)[-1] == pytest.approx(1.2 * 0.8 * 1.2)
    assert paired_e_value([], []) == []


@cache
def p_value(only_first: int, only_second: int) -> float:
    return mcnemar_p_value(*pairs(only_first, only_second))


def looks(rates: tuple[float, float], num_runs: int, num_pairs: int = 200):
    """Yield the successes of two policies of these rates, on shared starts, run by run."""
    rng = np.random.default_rng(0)
    for _ in range(num_runs):
        yield rng.random((2, num_pairs)) < np.array(rates)[:, None]


def test_evidence_keeps_its_error_rate_however_often_one_looks() -> None:
    """T-M4: both policies succeed in half of their episodes; a look after every pair."""
    wrong = sum(max(paired_e_value(*run)) >= 20 for run in looks((0.5, 0.5), 2000))
    assert wrong / 2000 <= 0.05


def test_a_test_of_fixed_size_does_not() -> None:
    """Negative control: looking after every pair at p < 0.05 errs several times as often."""
    wrong = 0
    for first, second in looks((0.5, 0.5), 200):
        only_first, only_second = (first & ~second).cumsum(), (second & ~first).cumsum()
        counts = zip(only_first.tolist(), only_second.tolist(), strict=True)
        wrong += any(p_value(*count) < 0.05 for count in counts)
    assert wrong / 200 > 0.12


def test_evidence_is_a_fair_game_under_equality() -> None:
    """Its mean stays 1: the mean over all 2^6 outcomes of six discordant pairs, exactly."""
    total = 0.0
    for outcome in range(64):
        second = [bool(outcome >> i & 1) for i in range(6)]
        total += paired_e_value([not won for won in second], second)[-1]
    assert total / 64 == pytest.approx(1)


def test_evidence_finds_a_better_policy_and_not_a_worse_one() -> None:
    found = sum(max(paired_e_value(*run)) >= 20 for run in looks((0.6, 0.85), 200))
    assert found / 200 > 0.9
    assert not any(max(paired_e_value(*run)) >= 20 for run in looks((0.85, 0.6), 200))


# Means over tasks


def test_the_mean_over_tasks_weighs_tasks_alike() -> None:
    mean, low, high = mean_over_tasks([(90, 100), (1, 10)])
    assert mean == pytest.approx(0.5)
    assert low == pytest.approx(0.1, abs=0.1)
    assert high == pytest.approx(0.9, abs=0.1)


def test_the_interval_over_tasks_holds_the_spread_of_tasks_and_of_episodes() -> None:
    """The variance of both levels by hand: between tasks, and within them by their episodes."""
    counts = [(int(20 * rate), 20) for rate in (0.1, 0.3, 0.35, 0.5, 0.6, 0.8, 0.9, 0.95)]
    rates = np.array([s / n for s, n in counts])
    within = (rates * (1 - rates) / 20).mean() / len(rates)
    between = rates.var() / len(rates)
    _, low, high = mean_over_tasks(counts)
    assert (high - low) / (2 * 1.96) == pytest.approx(math.sqrt(within + between), rel=0.03)
    # one task alone has the spread of its episodes
    _, low, high = mean_over_tasks([(10, 20)])
    assert (high - low) / (2 * 1.96) == pytest.approx(math.sqrt(0.25 / 20), rel=0.15)


def test_the_interval_over_tasks_covers_the_mean_of_their_population() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for number in range(200):
        rates = generator.beta(2, 2, size=20)  # mean 0.5
        counts = [(int(generator.binomial(10, rate)), 10) for rate in rates]
        _, low, high = mean_over_tasks(counts, num_resamples=500, seed=number)
        covered += low <= 0.5 <= high
    assert 0.9 <= covered / 200 <= 0.98


def test_equal_counts_have_equal_intervals_and_none_is_refused() -> None:
    assert mean_over_tasks([(3, 9), (5, 9)]) == mean_over_tasks([(3, 9), (5, 9)])
    for counts in ([], [(1, 2), (0, 0)]):
        with pytest.raises(ValueError, match="must have an episode for each"):
            mean_over_tasks(counts)


def test_the_interval_of_a_paired_difference_covers_it() -> None:
    """Coverage of the nominal 95 % by simulation, with correlated pairs."""
    generator = np.random.default_rng(0)
    probabilities = (0.4, 0.1, 0.2, 0.3)  # both, first alone, second alone, neither
    tables = generator.multinomial(60, probabilities, size=600)
    intervals = [paired_difference_interval(*map(int, table)) for table in tables]
    covered = np.mean([low <= 0.1 <= high for low, high in intervals])
    assert 0.93 <= covered <= 0.98
    # pairs are worth more than two independent rates of as many episodes
    width = np.mean([high - low for low, high in intervals])
    assert width < 2 * 1.96 * math.sqrt((0.5 * 0.5 + 0.6 * 0.4) / 60)


def test_the_interval_of_a_paired_difference_at_the_edges() -> None:
    assert all(math.isnan(limit) for limit in paired_difference_interval(0, 0, 0, 0))
    low, high = paired_difference_interval(0, 0, 10, 0)
    assert high == pytest.approx(1)
    assert 0.5 < low < 1
    low, high = paired_difference_interval(10, 0, 0, 0)
    assert low == pytest.approx(-high)
    assert high < 0.35
