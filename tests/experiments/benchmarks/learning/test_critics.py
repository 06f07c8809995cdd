"""The benchmark of categorical critics: its arms, its tables, and going on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pitune.experiments.benchmarks.learning import critics
from pitune.experiments.benchmarks.learning.critics import BenchmarkConfig, main, run, tables
from pitune.experiments.benchmarks.learning.results import read_records


@pytest.fixture
def config(tmp_path: Path) -> BenchmarkConfig:
    return BenchmarkConfig(
        seeds=(0,),
        critics=("none", "hl_gauss"),
        num_envs=4,
        num_demonstrations=4,
        clone_steps=2,
        ppo_updates=1,
        dsrl_updates=1,
        eval_episodes=4,
        out=tmp_path / "out",
    )


def _algorithm(word: str, form: str) -> Any:
    return critics._algorithm(word, form)  # type: ignore[arg-type]


def test_arms_differ_in_the_form_of_their_critics_alone(config: BenchmarkConfig) -> None:
    for word in config.algorithms:
        plain, bins = (_algorithm(word, form) for form in ("none", "hl_gauss"))
        if word == "ppo":
            assert bins.critic_distribution.form == "hl_gauss"
            same = replace(bins, critic_distribution=plain.critic_distribution)
        else:
            assert bins.variant == "sac"
            assert bins.off_policy.critic_distribution.low == 0
            off_policy = replace(
                bins.off_policy, critic_distribution=plain.off_policy.critic_distribution
            )
            same = replace(bins, off_policy=off_policy)
        assert same == plain != bins


def test_an_interrupted_benchmark_goes_on_from_its_clone(config: BenchmarkConfig) -> None:
    short = replace(config, algorithms=("ppo",))
    run(short)
    folder = config.out / "seed_0"
    names = ("clone", "ppo_none", "ppo_hl_gauss")
    first = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    (folder / "ppo_hl_gauss.json").unlink()
    run(short)
    again = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    assert again == first
    assert all(record["plays"]["after"]["episodes"] == 4 for record in first.values())
    # cross-entropy of bins instead of a squared error
    assert first["ppo_hl_gauss"]["metrics"][0]["value_loss"] > 1
    assert "value_clamped" not in first["ppo_none"]["metrics"][0]


def test_other_settings_are_refused(config: BenchmarkConfig) -> None:
    run(replace(config, seeds=()))
    with pytest.raises(ValueError, match=r"time_limit: 12 -> 10; pass another --out, or the"):
        run(replace(config, seeds=(), time_limit=10))


def test_the_tables_show_pairs_and_the_last_third_of_the_updates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--table", "--out", str(tmp_path)])
    assert "run the command without --table first" in capsys.readouterr().err
    explained = {"clone": [], "ppo_none": [0, 0, 0.25], "ppo_two_hot": [0, 0, 0, 0, 0.5, 1]}
    for arm, values in explained.items():
        metrics = [{"explained_variance": value} for value in values]
        solved = critics.rl.Evaluation.of(success=[arm == "ppo_two_hot"] * 8)
        plays = {"after": solved.summary()}
        file = tmp_path / "seed_3" / f"{arm}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"seed": 3, "arm": arm, "metrics": metrics, "plays": plays}))
    assert len(read_records(tmp_path)) == 3
    main(["--table", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert "| `ppo_none` | 3: 0.250 |" in lines
    assert "| `ppo_two_hot` | 3: 0.750 |" in lines
    assert any(line.startswith("| `ppo_two_hot` against `ppo_none` | +100.0 [") for line in lines)
    assert tables(tmp_path).count("against") == 1
