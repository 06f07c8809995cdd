"""`update`: what is measured, and that the ratio is what changes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pitune import envs, rl
from pitune.experiments.benchmarks import update
from pitune.experiments.benchmarks.update import BenchmarkConfig, benchmark, with_settings


def test_settings_reach_nested_configs() -> None:
    dgn = with_settings(rl.preset("dgn"), {"updates_per_decision": 3.0, "noise": "none"})
    assert (dgn.learner.off_policy.updates_per_decision, dgn.noise) == (3.0, "none")
    assert with_settings(rl.preset("ppo"), {"nothing has this": 1}) == rl.preset("ppo")


def test_every_row_is_measured_and_learning_more_costs_more(
    half_trained: Path,
    demonstrations_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    small = {"minibatch_size": 8, "hidden": (8,), "capacity": 500}
    rows = {key: (name, {**values, **small}) for key, (name, values) in update.VARIANTS.items()}
    monkeypatch.setattr(update, "VARIANTS", rows)
    config = BenchmarkConfig(
        checkpoint=half_trained,
        demonstrations=demonstrations_file,
        env=envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0),
        ratios=(0.25, 2.0),
        num_chunks=2,
        num_rollouts=2,
        device="cpu",
    )
    found = benchmark(config)
    assert found.keys() == {(row, ratio) for row in rows for ratio in (0.25, 2.0)}
    for seconds in found.values():
        assert set(seconds) == {"policy", "simulator", "update"}
        assert all(value > 0 for value in seconds.values())
    for row in rows:
        assert found[row, 2.0]["update"] > 2 * found[row, 0.25]["update"]
    printed = capsys.readouterr().out
    assert "dsrl noise_aliased" in printed
    assert "environment steps/s" in printed
