"""`--films` and `--record`: pictures and data of the episodes that were evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pitune import envs, policies
from pitune.experiments.evaluate import EvaluateConfig, evaluate
from pitune.experiments.evaluation import command
from pitune.experiments.evaluation import films as module
from pitune.experiments.films.files import read_mp4

ENV = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=6)


@pytest.fixture
def config(tiny_policy: Callable, tmp_path: Path) -> EvaluateConfig:
    for seed in (0, 1):
        policies.save(tiny_policy(horizon=4, seed=seed), tmp_path / str(seed))
    return EvaluateConfig(
        checkpoint=tmp_path / "0", env=ENV, episodes=10, out=tmp_path / "pick.json", device="cpu"
    )


def test_films_show_chosen_episodes_and_both_policies(
    config: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(replace(config, compare=tmp_path / "1", films=3, film_grid=True))
    folder = tmp_path / "pick_films"
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.mp4"))
    assert [name for name in names if "/" not in name] == [
        "checkpoint.mp4",
        "checkpoint_and_compare.mp4",
        "compare.mp4",
    ]
    # the same episodes, whatever their outcomes
    shown = {
        name: {file.name[8:12] for file in (folder / name).glob("episode_*.mp4")}
        for name in ("checkpoint", "compare")
    }
    assert len(shown["checkpoint"]) == 3
    assert shown["compare"] == shown["checkpoint"]
    frames, _ = read_mp4(folder / "checkpoint.mp4")
    assert len(frames) > 6
    assert "films in" in capsys.readouterr().err


def test_films_follow_an_evaluation_in_a_folder(config: EvaluateConfig, tmp_path: Path) -> None:
    config = replace(config, folder=tmp_path / "evaluation")
    evaluate(config)
    evaluate(replace(config, films=2, vary=(("flow_steps", "1", "2"),)))
    cells = sorted(path.name for path in (tmp_path / "evaluation" / "films").iterdir())
    assert cells == ["flow_steps=1", "flow_steps=2"]
    assert len(list((tmp_path / "evaluation" / "films").rglob("episode_*.mp4"))) == 4


def test_a_machine_that_cannot_render_still_has_its_result(
    config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no renderer works here")

    monkeypatch.setattr(module, "film_episodes", fail)
    evaluate(replace(config, films=2))
    assert "no films in" in capsys.readouterr().err
    assert config.out is not None
    assert json.loads(config.out.read_text())["result"]["episodes"] == 10


def test_an_evaluation_is_recorded_as_a_dataset(config: EvaluateConfig, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    own = evaluate(config)
    recorded = evaluate(replace(config, record=tmp_path / "dataset", seeds=(0, 1)))
    assert recorded.rows[:10] == own.rows
    info = json.loads((tmp_path / "dataset" / "meta" / "info.json").read_text())
    assert info["total_episodes"] == 20
    assert info["total_frames"] == sum(recorded.length)
    with pytest.raises(FileExistsError, match="dataset"):
        evaluate(replace(config, record=tmp_path / "dataset"))


def test_a_recorded_dataset_is_complete_before_anything_else_can_fail(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(command, "write", fail)
    with pytest.raises(OSError, match="no space left"):
        evaluate(replace(config, record=tmp_path / "dataset"))
    assert (tmp_path / "dataset" / "meta" / "info.json").is_file()
