"""`video`: films of the deployed policy, and a picture of before and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import pytest
import torch
from PIL import Image
from tensordict import TensorDictBase

from pitune import envs, rl
from pitune.experiments.runs import video
from pitune.experiments.runs.video import (
    SUCCESS_COLOR,
    _frames,
    _grid,
    before_after,
    filmed_episodes,
    record_video,
)
from pitune.policies import FlowSDEConfig, LikelihoodActor

CONFIG = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=6)


def test_a_film_shows_the_deployed_policy(tiny_policy: Callable) -> None:
    """For the plain actor its ODE; for one that steers its policy, what that does."""
    acted: list[torch.Tensor] = []

    class Seen(LikelihoodActor):
        def forward(self, td: TensorDictBase) -> TensorDictBase:
            td = super().forward(td)
            acted.append(td["action"])
            return td

    actor = Seen(tiny_policy(), FlowSDEConfig())
    obs = envs.make(CONFIG).reset(envs.EpisodeSeeds(4, 3, "test").next(torch.arange(4)))
    frames = _frames(envs.make(CONFIG), actor, seed=3)
    assert len(frames) == 7  # the start and six steps
    torch.manual_seed(3)
    expected = actor.policy.sample_actions(actor.policy.model_input(obs))
    assert torch.equal(acted[0], expected)


def test_a_film_of_a_population_is_its_best_member_s(tiny_policy: Callable) -> None:
    torch.manual_seed(0)
    algorithm = rl.EPO(rl.EPOConfig(), tiny_policy())
    torch.nn.init.normal_(algorithm.actor.population.to_policy)
    films = []
    for member in (0, 1):
        algorithm.actor.best = member
        films.append(_frames(envs.make(CONFIG), algorithm.actor, seed=0))
    assert any((a != b).any() for a, b in zip(*films, strict=False))


def test_a_film_is_written(tiny_policy: Callable, tmp_path: Path) -> None:
    actor = LikelihoodActor(tiny_policy(), FlowSDEConfig())
    assert record_video(CONFIG, actor, tmp_path / "film.mp4", seed=0)
    assert (tmp_path / "film.mp4").stat().st_size > 100


def test_success_is_framed_in_green(tiny_policy: Callable) -> None:
    """The frame stays, and no other environment has one."""
    env = envs.make(CONFIG)
    env.reset(torch.arange(4))
    plain = _grid(env, torch.zeros(4, dtype=torch.bool))
    framed = _grid(env, torch.tensor([False, True, False, False]))
    height, width = plain.shape[0] // 2, plain.shape[1] // 2
    changed = (plain != framed).any(-1)
    assert not changed[:, :width].any()
    assert not changed[height:].any()
    for border in (framed[0, width:], framed[height - 1, width:], framed[:height, width]):
        assert (border == SUCCESS_COLOR).all()
    assert not changed[height // 2, width + width // 2]


def film(file: Path, num: int, shade: int) -> None:
    shades = [shade + 50] + [shade] * (num - 1)
    frames = [np.full((96, 128, 3), value, dtype=np.uint8) for value in shades]
    imageio.mimwrite(file, frames, fps=20, macro_block_size=8)


def test_before_and_after_stand_side_by_side_until_the_longer_film_ends(tmp_path: Path) -> None:
    film(tmp_path / "before.mp4", 20, 40)
    film(tmp_path / "after.mp4", 6, 200)
    file = before_after(tmp_path)
    assert file == tmp_path / "before_after.gif"
    with Image.open(file) as picture:
        assert picture.n_frames >= 2  # type: ignore[attr-defined]
        picture.seek(picture.n_frames - 1)  # type: ignore[attr-defined]
        shades = np.asarray(picture.convert("L"), dtype=int)
    assert abs(shades[100, 100] - 40) < 8
    assert abs(shades[100, -100] - 200) < 8
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
    widths: list[int] = []

    def heavy(films: list, fps: float, width: int, num_frames: int, colors: int) -> bytes:
        widths.append(width)
        return bytes(6000 * width)

    monkeypatch.setattr(video, "_gif", heavy)
    file = before_after(tmp_path)
    assert file is not None
    assert file.stat().st_size <= video.MAX_BYTES < 6000 * widths[-2]
    assert widths == [quality[0] for quality in video.QUALITIES][: len(widths)]


def test_a_missing_film_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    film(tmp_path / "before.mp4", 2, 40)
    assert before_after(tmp_path) is None
    assert "no before_after.gif: the run has no after.mp4" in capsys.readouterr().err


def test_a_machine_that_cannot_render_gets_a_note(
    tiny_policy: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no display")

    monkeypatch.setattr(video, "_grid", fail)
    actor = LikelihoodActor(tiny_policy(), FlowSDEConfig())
    assert not record_video(CONFIG, actor, tmp_path / "film.mp4", seed=0)
    assert "no film film.mp4: no display" in capsys.readouterr().err
    assert not (tmp_path / "film.mp4").exists()


@pytest.mark.parametrize(
    ("num_envs", "num_workers", "expected"), [(8, 0, 0), (8, 2, 2), (8, 7, 4), (2, 2, 4), (9, 9, 4)]
)
def test_a_film_runs_in_processes_if_the_environments_do(
    num_envs: int, num_workers: int, expected: int
) -> None:
    config = envs.EnvConfig(id="mock/Reach", num_envs=num_envs, num_workers=num_workers)
    assert video._film_workers(config, 4) == expected


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


# The filmed episodes


@pytest.mark.parametrize(
    ("num_episodes", "chosen"),
    [
        (200, [0, 50, 100, 150]),
        (10, [0, 2, 5, 7]),
        (4, [0, 1, 2, 3]),
        (3, [0, 1, 2]),
        (1, [0]),
    ],
)
def test_filmed_episodes_are_spread_over_the_evaluation(
    num_episodes: int, chosen: list[int]
) -> None:
    assert filmed_episodes(num_episodes) == chosen


def test_two_policies_are_filmed_from_the_same_starts_of_the_evaluation(
    tiny_policy: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    resets: list[list[int]] = []
    reset = envs.CheckedEnv.reset

    def noted(env: envs.CheckedEnv, seeds: torch.Tensor) -> Any:
        resets.append(seeds.tolist())
        return reset(env, seeds)

    monkeypatch.setattr(envs.CheckedEnv, "reset", noted)
    for seed in (0, 1):
        actor = LikelihoodActor(tiny_policy(seed=seed), FlowSDEConfig())
        _frames(envs.make(CONFIG), actor, seed=3, num_episodes=200)
    evaluated = envs.EvaluationSeeds(4, 200, 3, "test")
    assert resets[0] == resets[1] == [evaluated.seed_of(i) for i in (0, 50, 100, 150)]


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
