"""`pitune bench workers`: the time of a chunk by where the environments run."""

from __future__ import annotations

import pytest

from pitune import envs
from pitune.experiments.benchmarks.parts.workers import BenchmarkConfig, benchmark

ENV = envs.EnvConfig(id="gym/Pendulum-v1", num_envs=2, num_workers=1, reward="dense")
SMALL = BenchmarkConfig(env=ENV, num_chunks=2, repeats=2, execution_horizon=3)


def test_each_place_is_measured_in_turn(capsys: pytest.CaptureFixture) -> None:
    found = benchmark(SMALL)
    assert sorted(found) == ["processes", "this_process"]
    assert all(value > 0 for value in found.values())
    assert "1.00 x" in capsys.readouterr().out


def test_each_place_has_its_own_environments() -> None:
    configs = [SMALL.config_of(place) for place in ("this_process", "processes", "ray")]
    assert [config.workers_on for config in configs] == ["processes", "processes", "ray"]
    assert [config.num_workers for config in configs] == [0, 1, 1]


def test_no_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="places is empty; name this_process, processes or ray"):
        BenchmarkConfig(places=())
