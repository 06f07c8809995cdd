"""`pitune bench`: the table of all parts."""

from __future__ import annotations

import pytest

from pitune.experiments.benchmarks import command
from pitune.experiments.benchmarks.parts.table import PartsConfig, measure, report

SMALL = PartsConfig(
    num_envs=2,
    action_horizon=2,
    flow_steps=2,
    width=16,
    minibatch_size=4,
    algorithms=("ppo",),
    compile=False,
    growth=False,
    repeats=1,
    least_seconds=0.001,
)


def test_every_part_is_measured_against_the_bare_network() -> None:
    rows, compile_seconds = measure(SMALL)
    assert [row.name for row in rows] == [
        "encode",
        "one flow step",
        "sample, K = 2",
        "act with log-probabilities",
        "score, K = 2",
        "gradient step, ppo",
        "rollout, per decision",
        "write a checkpoint",
        "read a checkpoint",
    ]
    assert all(row.share > 0 and not row.speedup for row in rows)
    assert compile_seconds == 0
    assert report(SMALL, rows, compile_seconds).row_count == len(rows)


def test_sizes_are_doubled_one_at_a_time() -> None:
    assert SMALL.grown("num_envs").num_envs == 4
    assert SMALL.grown("num_envs").width == SMALL.width


def test_an_unknown_algorithm_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown algorithm 'pppo'; did you mean 'ppo'"):
        PartsConfig(algorithms=("pppo",))


def test_the_table_is_the_benchmark_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("pitune.experiments.benchmarks.parts.table.main", seen.append)
    command.main([])
    command.main(["--no-compile"])
    command.main(["parts", "--repeats", "1"])
    assert seen == [[], ["--no-compile"], ["--repeats", "1"]]
