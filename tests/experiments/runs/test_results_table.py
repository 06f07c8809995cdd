"""`results_table`: numbers come from the folders of finished runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pitune.experiments.runs.results_table import read_run, table


def evaluation(successes: int) -> dict[str, Any]:
    return {
        "successes": successes,
        "episodes": 100,
        "success_rate": successes / 100,
        "wilson_low": 0.1,
        "wilson_high": 0.9,
    }


def write_run(folder: Path, names: tuple[str, str]) -> Path:
    """Write a finished run whose evaluations have these names."""
    deployed, exploring = names
    folder.mkdir()
    provenance = {"commit": "abc", "machine": "x86_64, 2 cores"}
    (folder / "config.json").write_text(json.dumps({"config": {}, "provenance": provenance}))
    summary = {
        "env": "mock/Reach",
        "algorithm": "ppo",
        "seed": 0,
        "before": {deployed: evaluation(40), exploring: evaluation(35)},
        "after": {deployed: evaluation(90), exploring: evaluation(85)},
        "env_steps": 1000,
        "train_seconds": 60.0,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.mark.parametrize("names", [("deployed", "exploring"), ("ode", "stochastic")])
def test_summaries_of_every_version_give_the_same_table(
    names: tuple[str, str], tmp_path: Path
) -> None:
    lines = table((write_run(tmp_path / "run", names),)).splitlines()
    assert "| before | after | after, exploring | environment steps | time |" in lines[0]
    assert lines[2] == (
        "| `mock/Reach` | `ppo` | 0 | 40.0% [10.0%, 90.0%] (40/100) "
        "| 90.0% [10.0%, 90.0%] (90/100) | 85.0% [10.0%, 90.0%] (85/100) | 1,000 | 1.0 min |"
    )
    assert lines[-1] == "Commit abc; x86_64, 2 cores."


def test_an_unfinished_or_damaged_run_is_rejected(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ("deployed", "exploring"))
    (folder / "summary.json").write_text('{"before": ')
    with pytest.raises(
        ValueError, match=r"summary\.json is damaged \(.*run the training with --re"
    ):
        read_run(folder)
    (folder / "summary.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no summary\.json in .*; is it a finished run\?"):
        read_run(folder)
