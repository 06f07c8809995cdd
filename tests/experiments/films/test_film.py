"""Films: the episodes that they show, their captions, grids and pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import pytest
import torch
from PIL import Image

from pitune import envs, rl
from pitune.experiments.films import layout
from pitune.experiments.films.choose import choose_episodes
from pitune.experiments.films.files import save_films, save_grid, save_pairs, small_gif, write
from pitune.experiments.films.film import Film, FilmedEnv, Take, shrunk
from pitune.experiments.films.layout import SUCCESS_COLOR, beside, captioned, grid, held
from pitune.experiments.films.record import _marks, differing, film_config, film_episodes
from pitune.policies import Actor

CONFIG = envs.config_for(
    "mock/Reach",
    num_envs=4,
    num_workers=0,
    max_episode_steps=6,
    options=envs.MockOptions(num_tasks=2),
)
PLAIN = replace(CONFIG, options=envs.MockOptions())


class Straight(Actor):
    """Moves to the goal on the straight line, in the place of the policy's own actions."""

    def forward(self, td: Any) -> Any:
        td = super().forward(td)
        point, goal = td["state"][:, None, :2], td["state"][:, None, 2:4]  # (E, 1, 2)
        action = (goal - point).expand_as(td["action"]) / 0.1
        return td.set("action", action.clamp(-1, 1))


@pytest.fixture
def actor(tiny_policy: Callable) -> Straight:
    return Straight(tiny_policy())


def evaluate(actor: Actor, num: int = 12) -> rl.Evaluation:
    return rl.evaluate(envs.make(PLAIN), actor, num, seed=3)


# Recording


def test_a_film_replays_the_episode_of_the_evaluation(actor: Straight) -> None:
    """Chosen by its outcome, in any order, with a picture of the start and of every step."""
    result = evaluate(actor)
    assert 0 < sum(result.success) < 12
    chosen = choose_episodes(result.rows, 4, result.success_rule)[::-1]
    films = film_episodes(PLAIN, actor, chosen, num_episodes=12, seed=3)
    assert [film.outcome for film in films] == [result.rows[index] for index in chosen]
    assert differing(films, result.rows) == []
    for film in films:
        row = result.rows[film.index]
        assert (film.seed, film.success) == (row.seed, row.success_once)
        assert film.steps == list(range(row.length + 1))
        assert len(film.frames) == row.length + 1
        assert film.solved_at == (row.length if row.success_once else None)
        env = envs.make(replace(PLAIN, num_envs=1))
        env.reset(torch.tensor([film.seed]))
        assert np.array_equal(film.frames[0], env.render()[0].numpy())
    assert len({film.frames[-1].tobytes() for film in films}) == 4


def test_the_film_of_a_policy_s_own_actions_is_the_evaluated_episode(tiny_policy: Callable) -> None:
    """The starting noise belongs to the episode and not to the batch."""
    actor = Actor(tiny_policy())
    result = rl.evaluate(envs.make(PLAIN), actor, 8, seed=3)
    (film,) = film_episodes(PLAIN, actor, [5], num_episodes=8, seed=3)
    assert film.outcome == result.rows[5]


def test_only_the_chosen_episodes_are_drawn(
    actor: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    render = FilmedEnv.render

    def counted(env: FilmedEnv) -> torch.Tensor:
        drawn.append(env.spec.num_envs)
        return render(env)

    monkeypatch.setattr(FilmedEnv, "render", counted)
    films = film_episodes(PLAIN, actor, [2, 7], num_episodes=12, seed=3)
    assert sum(drawn) == sum(len(film.frames) for film in films)


def test_several_environments_give_the_same_films(actor: Straight) -> None:
    chosen = [1, 2, 5, 9]
    one, four = (
        film_episodes(PLAIN, actor, chosen, num_episodes=12, seed=3, num_envs=num) for num in (1, 4)
    )
    for first, second in zip(one, four, strict=True):
        assert first.outcome == second.outcome
        assert all(map(np.array_equal, first.frames, second.frames))


def test_an_episode_that_ended_otherwise_is_named(actor: Straight) -> None:
    result = evaluate(actor)
    films = film_episodes(PLAIN, actor, [0, 1], num_episodes=12, seed=3)
    rows = [replace(row, length=row.length + (row.index == 1)) for row in result.rows]
    assert differing(films, rows) == [1]


def test_a_film_of_a_population_is_its_best_member_s(tiny_policy: Callable) -> None:
    torch.manual_seed(0)
    algorithm = rl.EPO(rl.EPOConfig(), tiny_policy())
    torch.nn.init.normal_(algorithm.actor.population.to_policy)
    films = []
    for member in (0, 1):
        algorithm.actor.best = member
        films += film_episodes(PLAIN, algorithm.actor, [0], num_episodes=1, seed=0)
    first, second = (film.frames for film in films)
    assert any((a != b).any() for a, b in zip(first, second, strict=False))


def test_a_fast_simulation_is_drawn_at_25_hertz_and_at_its_end(actor: Straight) -> None:
    env = FilmedEnv(envs.make(replace(PLAIN, num_envs=1)))
    env.stride = 4
    env.reset(torch.tensor([0]))
    for _ in range(6):
        env.step(torch.zeros(1, 2), torch.tensor([True]))
    assert env.takes[0].steps == [0, 4, 6]


def test_large_pictures_are_made_smaller() -> None:
    assert shrunk(np.zeros((512, 640, 3), np.uint8)).shape == (256, 320, 3)
    small = np.zeros((64, 64, 3), np.uint8)
    assert shrunk(small).shape == small.shape
    assert shrunk(small) is not small


@pytest.mark.parametrize(
    ("num_envs", "num_workers", "expected"), [(8, 0, 0), (8, 2, 1), (2, 2, 1), (2, 4, 1)]
)
def test_a_film_runs_in_a_process_if_the_environments_do(
    num_envs: int, num_workers: int, expected: int
) -> None:
    config = envs.EnvConfig(id="mock/Reach", num_envs=num_envs, num_workers=num_workers)
    assert film_config(config, 1).num_workers == expected


# Frames


def make_film(
    num: int = 4, *, success: bool | None = True, solved_at: int | None = 2, **changes: Any
) -> Film:
    """Return a film of gray pictures (48, 64), each brighter than the last."""
    outcome = rl.EpisodeOutcome(
        index=7,
        seed=5,
        task_id=0,
        success_once=bool(success),
        success_at_end=bool(success),
        length=num - 1,
    )
    fields: dict[str, Any] = {
        "outcome": outcome,
        "seed": 5,
        "instruction": "push the cube",
        "frames": [np.full((48, 64, 3), 5 * (i + 1), np.uint8) for i in range(num)],
        "steps": list(range(num)),
        "marks": [bool(success) and i >= 2 for i in range(num)],
        "solved_at": solved_at,
        "success": success,
        "fps": 10.0,
    }
    return Film(**fields | changes)


def is_green(frame: np.ndarray) -> bool:
    return bool((frame[0, :64] == SUCCESS_COLOR).all() and (frame[47, :64] == SUCCESS_COLOR).all())


def test_a_border_marks_success_from_its_step_on() -> None:
    frames = captioned(make_film())
    assert [is_green(frame) for frame in frames] == [False, False, True, True]
    for number, frame in enumerate(frames):  # the picture is above the words
        assert (frame[24, 32] == 5 * (number + 1)).all()
        assert (frame[-1] == 255).all()
    assert not any(is_green(frame) for frame in captioned(make_film(success=False)))
    assert not any(is_green(frame) for frame in captioned(make_film(success=None, solved_at=None)))


@pytest.mark.parametrize(
    ("rule", "marks"),
    [
        ("once", [False, True, True, True]),
        ("at_end", [False, True, False, True]),
        (None, [False] * 4),
    ],
)
def test_marks_follow_the_definition_of_success(rule: Any, marks: list[bool]) -> None:
    """The cube was at the goal after 2 and after 4 steps, not after 3."""
    solved = [False, True, False, True]
    take = Take(seed=0, steps=[0, 2, 3, 4], solved=solved, solved_at=2, num_steps=4)
    assert _marks(take, rule) == marks


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["episode 7, step 0", "episode 7, step 1"] + ["episode 7, success at step 2"] * 2),
        (
            {"success": False, "solved_at": None},
            [*(f"episode 7, step {n}" for n in range(3)), "episode 7, no success in 3 steps"],
        ),
        ({"success": None, "solved_at": None}, [f"episode 7, step {n}" for n in range(4)]),
    ],
)
def test_the_words_name_the_outcome_as_soon_as_it_is_known(
    changes: dict[str, Any], words: list[str]
) -> None:
    film = make_film(**changes)
    assert [layout._status(film, number, 3, "") for number in range(4)] == words
    assert layout._status(film, 0, 3, "after training") == "after training, episode 7, step 0"


def test_the_instruction_is_in_the_picture() -> None:
    one, other = captioned(make_film()), captioned(make_film(instruction="pull the drawer"))
    assert one[0].shape == other[0].shape
    assert (one[0][48:] != other[0][48:]).any()
    assert (one[0][:48] == other[0][:48]).all()
    long = captioned(make_film(instruction="put the black bowl on the plate " * 9))
    assert long[0].shape == one[0].shape


def test_a_grid_holds_the_last_frames_of_films_that_have_ended() -> None:
    films = [make_film(2), make_film(4), make_film(3)]
    frames = grid(films)
    height, width = captioned(films[0])[0].shape[:2]
    assert len(frames) == 4
    assert frames[0].shape == (2 * height, 2 * width, 3)
    corners = [(24, 32), (24, width + 32), (height + 24, 32)]
    assert [[int(frame[y, x, 0]) for y, x in corners] for frame in frames] == [
        [5, 5, 5],
        [10, 10, 10],
        [10, 15, 15],
        [10, 20, 15],
    ]
    assert (frames[0][height:, width:] == 255).all()  # the missing film
    assert grid(films, 3)[0].shape == (height, 3 * width, 3)
    assert grid(films[:1], 5)[0].shape == (height, width, 3)


@pytest.mark.parametrize(
    ("films", "columns", "message"),
    [
        ([], None, "a grid of 0 films in columns=0 needs at least one"),
        ([make_film()], 0, "in columns=0 needs at least one"),
        ([make_film(), make_film(fps=5.0)], None, "must have one size and one rate of pictures"),
    ],
)
def test_films_that_make_no_grid_are_refused(
    films: list[Film], columns: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        grid(films, columns)


def test_the_last_frame_is_held_for_two_seconds() -> None:
    frames = captioned(make_film())
    assert len(held(frames, 10.0)) == 4 + 20
    assert held(frames, 10.0)[-1] is frames[-1]


def test_beside_each_other_the_shorter_film_waits() -> None:
    left, right = captioned(make_film(2)), captioned(make_film(4))
    pair = beside(left, right)
    assert len(pair) == 4
    assert pair[3][24, 32].tolist() == [10] * 3
    assert pair[3][24, -32].tolist() == [20] * 3


# Files


def test_each_film_is_a_file_named_by_its_outcome(tmp_path: Path) -> None:
    broken = make_film(success=False)
    broken = replace(broken, outcome=replace(broken.outcome, index=9, invalid=True))
    silent = make_film(success=None, solved_at=None)
    silent = replace(silent, outcome=replace(silent.outcome, index=8))
    files = save_films([make_film(), silent, broken], tmp_path / "films")
    assert [file.name for file in files] == [
        "episode_0007_success.mp4",
        "episode_0008.mp4",
        "episode_0009_broken.mp4",
    ]
    frames = imageio.mimread(files[0], memtest=False)
    assert len(frames) == 24
    assert frames[0].shape[0] % 8 == frames[0].shape[1] % 8 == 0


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_grids_and_pairs_are_written_whole(suffix: str, tmp_path: Path) -> None:
    films = [make_film(), make_film(3)]
    save_grid(films, tmp_path / f"grid{suffix}")
    save_pairs(films, films, tmp_path / f"pairs{suffix}")
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == [f"grid{suffix}", f"pairs{suffix}"]
    for name in names:
        assert len(imageio.mimread(tmp_path / name, memtest=False)) >= 4


def test_pairs_must_show_the_same_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must show the same starts; they show"):
        save_pairs([make_film()], [make_film(seed=6)], tmp_path / "pairs.gif")


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"file='.*film.avi' must end in .mp4 or .gif"):
        write(captioned(make_film()), 10.0, tmp_path / "film.avi")


def test_a_gif_keeps_real_time_and_holds_its_end(tmp_path: Path) -> None:
    frames = captioned(make_film(30))
    file = tmp_path / "film.gif"
    file.write_bytes(small_gif(frames, fps=10.0))
    with Image.open(file) as picture:
        durations = []
        for number in range(picture.n_frames):  # type: ignore[attr-defined]
            picture.seek(number)
            durations.append(picture.info["duration"])
    assert sum(durations[:-1]) == pytest.approx(3000, rel=0.05)
    assert durations[-1] == 2000
