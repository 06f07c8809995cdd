"""The Weights & Biases run: its identity is stored, whatever the folder is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import wandb

from pitune.experiments.runs.run import Run

CONFIG = {"seed": 0, "algorithm_name": "ppo"}
NAMES = [
    "a:b",
    "a;b",
    "a,b",
    "a#b",
    "a?b",
    "a%b",
    "a b",
    "a\\b",
    "ü-π₀-机器人",
    "n" * 200,
    "-x",
    ".",
]


class FakeRun:
    def log(self, *_: Any, **__: Any) -> None: ...
    def finish(self, **_: Any) -> None: ...


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the arguments of each start."""
    calls: list[dict[str, Any]] = []

    def init(**arguments: Any) -> FakeRun:
        calls.append(arguments)
        return FakeRun()

    monkeypatch.setattr(wandb, "init", init)
    return calls


@pytest.mark.parametrize("name", NAMES)
def test_every_folder_name_works_and_a_resumed_run_has_the_same_id(
    name: str, started: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / name / "ppo" if name == "." else tmp_path / name
    Run.create(folder, CONFIG, "online").log(1, {"loss": 0.5})
    Run.resume(folder, CONFIG, "online").log(2, {"loss": 0.5})
    first, second = started
    assert first["id"] == second["id"]
    assert first["id"].isalnum()
    assert len(first["id"]) <= 64
    assert 0 < len(first["name"]) <= 128
    assert second["resume"] == "allow"
    assert json.loads((folder / "config.json").read_text())["wandb_id"] == first["id"]


def test_two_folders_of_one_name_are_two_runs(
    started: list[dict[str, Any]], tmp_path: Path
) -> None:
    for parent in ("a", "b"):
        Run.create(tmp_path / parent / "ppo", CONFIG, "offline").connect()
    assert started[0]["id"] != started[1]["id"]
    assert started[0]["name"] == started[1]["name"] == "ppo"


def test_a_run_of_an_older_version_keeps_the_id_of_its_folder(
    started: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "ppo"
    Run.create(folder, CONFIG, "off")
    record = json.loads((folder / "config.json").read_text())
    del record["wandb_id"]
    (folder / "config.json").write_text(json.dumps(record))
    Run.resume(folder, CONFIG, "online").connect()
    assert started[0]["id"] == "ppo"


@pytest.mark.parametrize("error", ["api_key not configured (no-tty). call wandb login", ""])
def test_a_missing_login_is_a_sentence_with_a_way_out(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise wandb.errors.UsageError(error)

    monkeypatch.setattr(wandb, "init", fail)
    run = Run.create(tmp_path / "run", CONFIG, "online")
    with pytest.raises(ValueError, match=r"wandb='online': .*\. Run `wandb login`, or pass --wan"):
        run.connect()
    run.abandon()
    assert not (tmp_path / "run").exists()
