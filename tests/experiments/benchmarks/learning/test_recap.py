"""The benchmark of recorded attempts: its arms, its tables, and going on after an interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pitune import rl
from pitune.experiments.benchmarks.learning import recap
from pitune.experiments.benchmarks.learning.recap import BenchmarkConfig, main, run
from pitune.experiments.benchmarks.learning.recap_tables import PAIRS, ROWS, tables
from pitune.rl.experience.demonstrations import Demonstrations


@pytest.fixture
def config(tmp_path: Path) -> BenchmarkConfig:
    return BenchmarkConfig(
        seeds=(0,),
        num_envs=4,
        num_attempts=12,
        gradient_steps=2,
        value_steps=1,
        eval_episodes=3,
        out=tmp_path / "out",
    )


def record(seed: int, arm: str, plays: dict[str, list[bool]]) -> dict[str, Any]:
    metrics = {"solved_share": 0.25, "positive_solved": 0.5, "explained_variance": 0.125}
    return {
        "seed": seed,
        "arm": arm,
        "attempts": 20,
        "solved_attempts": 12,
        "steps": 1234,
        "metrics": metrics,
        "plays": {k: rl.Evaluation.of(success=v).summary() for k, v in plays.items()},
    }


def write(out: Path, *records: dict[str, Any]) -> None:
    for each in records:
        file = out / f"seed_{each['seed']}" / f"{each['arm']}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(each))


def test_all_arms_learn_from_the_same_attempts(config: BenchmarkConfig) -> None:
    run(config)
    folder = config.out / "seed_0"
    records = {arm: json.loads((folder / f"{arm}.json").read_text()) for arm in config.arms}
    attempts = Demonstrations.load(folder / "attempts.safetensors")
    solved = Demonstrations.load(folder / "solved.safetensors")
    assert 0 < solved.num_episodes < attempts.num_episodes == 12
    assert bool(solved.solved().all())
    for found in records.values():
        assert found["solved_attempts"] == solved.num_episodes
        assert all(play["episodes"] == 3 for play in found["plays"].values())
    # the arms of bc differ in their data, those of recap in their indicator
    losses = {arm: found["metrics"]["flow_loss"] for arm, found in records.items()}
    assert len(set(losses.values())) == 5
    assert records["recap"]["metrics"]["decisions"] == len(attempts.action)
    assert list(records["recap"]["plays"]) == list(recap.GUIDANCE)
    assert list(records["inverted"]["plays"]) == ["s = 0"]
    text = tables(config.out)
    assert all(f"| {title} |" in text for title in (*ROWS, *PAIRS))


def test_an_interrupted_benchmark_goes_on_with_the_same_numbers(config: BenchmarkConfig) -> None:
    short = replace(config, arms=("bc", "filtered"))
    run(short)
    files = {arm: config.out / "seed_0" / f"{arm}.json" for arm in short.arms}
    first = {arm: json.loads(file.read_text()) for arm, file in files.items()}
    files["filtered"].unlink()
    kept = files["bc"].stat().st_mtime_ns
    run(short)
    assert files["bc"].stat().st_mtime_ns == kept
    again = json.loads(files["filtered"].read_text())
    assert {**again, "seconds": 0} == {**first["filtered"], "seconds": 0}


def test_a_folder_holds_results_of_one_setting(config: BenchmarkConfig) -> None:
    run(replace(config, seeds=()))
    with pytest.raises(ValueError, match=r"gradient_steps: 2 -> 3; pass another --out, or the"):
        run(replace(config, seeds=(1,), gradient_steps=3))
    assert not (config.out / "seed_1").exists()


def test_the_guidance_of_a_play_reaches_the_policy(
    config: BenchmarkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def evaluate(env: Any, actor: Any, num_episodes: int, *, seed: int) -> rl.Evaluation:
        assert (num_episodes, seed) == (3, 1)
        seen.append(actor.policy.sampler.guidance)
        return rl.Evaluation.of(success=[True] * 3)

    monkeypatch.setattr(recap.rl, "evaluate", evaluate)
    run(replace(config, arms=("recap",)))
    assert seen == list(recap.GUIDANCE.values())
    assert (seen[0].advantage, seen[1].scale, seen[-1].form) == ("negative", -1, "apg")


def test_another_environment_plays_without_the_sweep(
    config: BenchmarkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[Any] = []
    make = recap.envs.make

    def noted(env: Any) -> Any:
        kinds.append(env)
        return make(env)

    monkeypatch.setattr(recap.envs, "make", noted)
    short = replace(config, env_id="mock/TwoGoals", arms=("recap",), sweep=False)
    run(replace(short, advantage_steps=2, error_share=0.3))
    assert [(env.id, env.num_envs) for env in kinds] == [("mock/TwoGoals", 4)]
    found = json.loads((config.out / "seed_0" / "recap.json").read_text())
    assert list(found["plays"]) == ["negative", "s = 0", "s = 1"]


def test_the_tables_pool_seeds_and_pair_starts(tmp_path: Path) -> None:
    solved, failed = [True] * 8, [False] * 8
    write(
        tmp_path,
        record(10, "bc", {"s = 0": failed}),
        record(2, "bc", {"s = 0": [*solved[:4], *failed[:4]]}),
        record(2, "recap", {"s = 0": solved, "s = 1": solved, "negative": failed}),
        record(2, "filtered", {"s = 0": solved}),
    )
    lines = tables(tmp_path).splitlines()
    assert "| `bc` | 25.0 % [10.2, 49.5] (4/16) | 2: 50.0, 10: 0.0 |" in lines
    # seed 10 has no recap, so its starts are in no pair
    pair = next(line for line in lines if line.startswith("| `recap` against `bc` |"))
    assert pair.endswith("| 4, 0 | 8 | 0.1 |")
    assert pair.startswith("| `recap` against `bc` | +50.0 [")
    assert "| `recap` with s = 1 against s = 0 | +0.0" in "\n".join(lines)
    assert not any(line.startswith("| inverted against") for line in lines)
    assert "| negative | 0.0 % [0.0, 32.4] (0/8) |" in lines
    assert lines[-1] == "| 2 | 12 of 20 | 1,234 | 0.250 | 0.500 | 0.125 |"


def test_a_table_without_results_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--table", "--out", str(tmp_path)])
    assert "has no results; run the command without --table first" in capsys.readouterr().err
    write(tmp_path, record(0, "bc", {"s = 0": [True, False]}))
    main(["--table", "--out", str(tmp_path)])
    assert "| `bc` | 50.0 %" in capsys.readouterr().out
