"""The films of a training run: before, after, and both side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import pytest
import torch
from PIL import Image

from pitune import envs
from pitune.experiments.films import files, training
from pitune.experiments.films.film import FilmedEnv
from pitune.experiments.films.training import before_after, record_video
from pitune.policies import FlowSDEConfig, LikelihoodActor

CONFIG = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=6)


def test_a_film_is_written(tiny_policy: Callable, tmp_path: Path) -> None:
    actor = LikelihoodActor(tiny_policy(), FlowSDEConfig())
    assert record_video(CONFIG, actor, tmp_path / "film.mp4", seed=0)
    assert (tmp_path / "film.mp4").stat().st_size > 100


def film(file: Path, num: int, shade: int) -> None:
    shades = [shade + 50] + [shade] * (num - 1)
    frames = [np.full((96, 128, 3), value, dtype=np.uint8) for value in shades]
    imageio.mimwrite(file, frames, fps=1, macro_block_size=8)


def test_before_and_after_stand_side_by_side_until_the_longer_film_ends(tmp_path: Path) -> None:
    film(tmp_path / "before.mp4", 20, 40)
    film(tmp_path / "after.mp4", 6, 200)
    file = before_after(tmp_path)
    assert file == tmp_path / "before_after.gif"
    with Image.open(file) as picture:
        assert picture.n_frames >= 2  # type: ignore[attr-defined]
        picture.seek(picture.n_frames - 1)  # type: ignore[attr-defined]
        shades = np.asarray(picture.convert("L"), dtype=int)
    assert abs(shades[80, 80] - 40) < 8
    assert abs(shades[80, -80] - 200) < 8
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "after.mp4",
        "before.mp4",
        "before_after.gif",
    ]


def test_a_picture_that_is_too_large_gets_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("before", "after"):
        film(tmp_path / f"{name}.mp4", 2, 40)
    scales: list[float] = []

    def heavy(frames: list, fps: float, scale: float, num_frames: int, colors: int) -> bytes:
        scales.append(scale)
        return bytes(int(2_000_000 * scale))

    monkeypatch.setattr(files, "_gif", heavy)
    file = before_after(tmp_path)
    assert file is not None
    assert file.stat().st_size <= files.MAX_BYTES < 2_000_000 * scales[-2]
    assert scales == [quality[0] for quality in files.QUALITIES][: len(scales)]


def test_a_missing_film_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    film(tmp_path / "before.mp4", 2, 40)
    assert before_after(tmp_path) is None
    assert "no before_after.gif: the run has no after.mp4" in capsys.readouterr().err


def test_a_machine_that_cannot_render_gets_a_note(
    tiny_policy: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no display")

    monkeypatch.setattr(FilmedEnv, "render", fail)
    actor = LikelihoodActor(tiny_policy(), FlowSDEConfig())
    assert not record_video(CONFIG, actor, tmp_path / "film.mp4", seed=0)
    assert "no film film.mp4: no display" in capsys.readouterr().err
    assert not (tmp_path / "film.mp4").exists()


@pytest.mark.parametrize("when", ["make", "reset", "step", "render"])
def test_an_environment_that_exits_costs_the_film_only(
    when: str, tiny_policy: Callable, tmp_path: Path
) -> None:
    options = envs.GymOptions(kwargs={"how": "sys.exit", "when": when})
    config = envs.EnvConfig(
        id="gym/user_envs:Leaver-v0", num_envs=4, num_workers=0, max_failures=1, options=options
    )
    actor = LikelihoodActor(tiny_policy(), FlowSDEConfig())
    assert not record_video(config, actor, tmp_path / "film.mp4", seed=0)


def test_two_policies_are_filmed_from_the_same_starts_of_the_evaluation(
    tiny_policy: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Four, spread over its list, whatever their outcome."""
    shown: list[list[tuple[int, int, float]]] = []

    def noted(films: list, *_: object, **__: object) -> None:
        shown.append([(film.index, film.seed, float(film.frames[0].mean())) for film in films])

    monkeypatch.setattr(training, "save_grid", noted)
    for seed in (0, 1):
        actor = LikelihoodActor(tiny_policy(seed=seed), FlowSDEConfig())
        record_video(CONFIG, actor, tmp_path / "film.mp4", seed=3, num_episodes=200)
    evaluated = envs.EvaluationSeeds(4, 200, 3, "test")
    assert shown[0] == shown[1]
    chosen = [0, 50, 100, 150]
    assert [row[:2] for row in shown[0]] == [(i, evaluated.seed_of(i)) for i in chosen]


@pytest.mark.parametrize("num", [1, 2, 3])
def test_an_evaluation_of_few_episodes_is_filmed_too(
    num: int, tiny_policy: Callable, tmp_path: Path
) -> None:
    actor = LikelihoodActor(tiny_policy(), FlowSDEConfig())
    assert record_video(CONFIG, actor, tmp_path / "film.mp4", seed=0, num_episodes=num)


@pytest.mark.parametrize("name", ["a:b", "http:x", "a#b?c", "a,b;c", "ü π₀"])
def test_a_film_is_written_into_a_folder_of_any_name(
    name: str, tiny_policy: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    folder.mkdir()
    actor = LikelihoodActor(tiny_policy(), FlowSDEConfig())
    for when in ("before", "after"):
        assert record_video(CONFIG, actor, folder / f"{when}.mp4", seed=0)
    assert before_after(folder) is not None
    assert sorted(file.name for file in folder.iterdir()) == [
        "after.mp4",
        "before.mp4",
        "before_after.gif",
    ]


def test_random_numbers_of_training_are_untouched(tiny_policy: Callable, tmp_path: Path) -> None:
    actor = LikelihoodActor(tiny_policy(), FlowSDEConfig())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    record_video(CONFIG, actor, tmp_path / "film.mp4", seed=0)
    assert torch.equal(torch.rand(3), expected)
