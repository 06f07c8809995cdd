"""The benchmark of iterated `recap`: equal data and steps, tables, and going on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pitune import envs, policies, rl
from pitune.experiments.benchmarks.learning.iterated import BenchmarkConfig, SameData, main, run
from pitune.experiments.benchmarks.learning.iterated_tables import TITLES, tables


@pytest.fixture
def config(tmp_path: Path) -> BenchmarkConfig:
    return BenchmarkConfig(
        seeds=(0,),
        num_envs=4,
        num_attempts=12,
        clone_steps=2,
        updates=2,
        num_chunks=5,
        gradient_steps=2,
        value_steps=1,
        eval_episodes=3,
        out=tmp_path / "out",
    )


def records(config: BenchmarkConfig) -> dict[str, Any]:
    folder = config.out / "seed_0"
    return {arm: json.loads((folder / f"{arm}.json").read_text()) for arm in config.arms}


def test_all_arms_go_on_from_one_clone_with_equal_data(config: BenchmarkConfig) -> None:
    run(config)
    found = records(config)
    first = {json.dumps(record["plays"]["0"]["rows"]) for record in found.values()}
    assert len(first) == 1
    assert all(list(record["plays"]) == ["0", "1", "2"] for record in found.values())
    # bc has the decisions of recap after the first update: both have acted alike before it
    decisions = {arm: found[arm]["metrics"][0].get("decisions") for arm in config.arms}
    assert decisions["bc"] == decisions["recap"] == decisions["inverted"]
    assert 0 < decisions["filtered"] < decisions["bc"]
    # own episodes are added in each update
    assert found["bc"]["metrics"][1]["decisions"] > decisions["bc"]
    text = tables(config.out)
    assert all(f"| {title} [%] |" in text for title in TITLES.values())
    assert text.count("| `recap` against ") == 4


def test_the_filter_leaves_the_decisions_of_solved_episodes(config: BenchmarkConfig) -> None:
    run(replace(config, arms=("filtered", "recap")))
    found = records(replace(config, arms=("filtered", "recap")))
    metrics = found["recap"]["metrics"][0]
    solved = round(metrics["solved_share"] * metrics["decisions"])
    assert found["filtered"]["metrics"][0]["decisions"] == solved


def test_cloning_equal_data_takes_the_steps_of_an_update(config: BenchmarkConfig) -> None:
    run(replace(config, seeds=(0,), arms=("bc",), updates=1))
    folder = config.out / "seed_0"
    cloning = replace(config.cloning, gradient_steps=3)
    recap = rl.RecapConfig(demonstrations=folder / "attempts.safetensors", cloning=cloning)
    algorithm = SameData(recap, policies.load(folder / "clone"), solved_only=False)
    rollouts = rl.Rollouts(envs.make(config.env), algorithm, 5, 0)
    for update in (1, 2):
        algorithm.update(rollouts.collect())
        assert (algorithm.step.num_steps, algorithm.num_updates) == (3 * update, update)


def test_an_interrupted_benchmark_goes_on_from_the_same_clone(config: BenchmarkConfig) -> None:
    short = replace(config, arms=("bc", "filtered_bc"))
    run(short)
    before = records(short)
    (config.out / "seed_0" / "filtered_bc.json").unlink()
    run(short)
    after = records(short)
    assert after["bc"] == before["bc"]
    assert {**after["filtered_bc"], "seconds": 0} == {**before["filtered_bc"], "seconds": 0}


def test_other_settings_and_a_table_without_results_are_refused(
    config: BenchmarkConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run(replace(config, seeds=()))
    with pytest.raises(ValueError, match=r"updates: 2 -> 3; pass another --out, or the"):
        run(replace(config, seeds=(), updates=3))
    with pytest.raises(SystemExit):
        main(["--table", "--out", str(config.out)])
    assert "has no results; run the command without --table first" in capsys.readouterr().err
