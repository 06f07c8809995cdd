"""Observations of users: converted where that is certain, refused by the key's name elsewhere."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from pitune.envs import CheckedEnv
from pitune.envs.workers.env import WorkerEnv
from user_envs import NUMBERS, Seen, play

STATE = np.arange(4, dtype=np.float32)
PICTURE = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)


def bytes_of(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def floats_of(*shape: int, low: float = 0, high: float = 1) -> spaces.Box:
    return spaces.Box(low, high, shape, np.float32)


def camera(space: spaces.Space) -> spaces.Dict:
    return spaces.Dict({"state": NUMBERS, "image/cam": space})


def seen(space: spaces.Space, value: Any, later: Any = ...) -> CheckedEnv:
    env = WorkerEnv(
        functools.partial(Seen, space, value, later),
        id="toy/Seen",
        num_envs=2,
        num_workers=0,
        max_episode_steps=5,
        simulator="none",
        max_failures=2,
    )
    return CheckedEnv(env)


PICTURES = {
    "(Y, X, 3)": (bytes_of(10, 12, 3), PICTURE),
    "(3, Y, X)": (bytes_of(3, 10, 12), PICTURE.transpose(2, 0, 1)),
    "floats": (floats_of(10, 12, 3), PICTURE / 255),
    "float32": (floats_of(10, 12, 3), (PICTURE / 255).astype(np.float32)),
    "floats in channels": (floats_of(3, 10, 12), PICTURE.transpose(2, 0, 1) / 255),
    "other integers": (bytes_of(10, 12, 3), PICTURE.astype(np.int64)),
    "a tensor": (bytes_of(10, 12, 3), torch.from_numpy(PICTURE)),
    "a list": (bytes_of(10, 12, 3), PICTURE.tolist()),
    "a negative stride": (bytes_of(10, 12, 3), PICTURE[::-1].copy()[::-1]),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_in_a_certain_layout_and_range_are_converted(kind: str) -> None:
    space, value = PICTURES[kind]
    env = seen(camera(space), {"state": STATE, "image/cam": value})
    assert env.spec.cameras == {"cam": (3, 10, 12)}
    obs = env.reset(torch.tensor([1, 2]))
    assert obs["image/cam"].dtype == torch.uint8
    assert np.array_equal(obs["image/cam"][1].numpy(), PICTURE.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "space",
    [
        bytes_of(10, 12),
        bytes_of(10, 12, 1),
        bytes_of(10, 12, 2),
        bytes_of(10, 12, 4),
        bytes_of(4, 10, 12),
        bytes_of(3, 10, 3),
        bytes_of(2, 10, 12, 3),
        floats_of(10, 12, 3, high=255),
        floats_of(10, 12, 3, low=-1),
        spaces.Box(-np.inf, np.inf, (10, 12, 3)),
        spaces.Box(0, 65535, (10, 12, 3), np.uint16),
        spaces.Discrete(3),
    ],
    ids=str,
)
def test_pictures_in_another_form_are_refused_by_name(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=r"toy/Seen: observation 'image/cam' is .*; a picture is"):
        seen(camera(space), {"state": STATE, "image/cam": PICTURE})


WRONG_PICTURES = {
    "floats for bytes": (bytes_of(10, 12, 3), PICTURE / 255),
    "booleans": (bytes_of(10, 12, 3), PICTURE > 3),
    "bytes for floats": (floats_of(10, 12, 3), PICTURE),
    "0 to 255 for 0 to 1": (floats_of(10, 12, 3), PICTURE.astype(np.float32)),
    "negative": (floats_of(10, 12, 3), PICTURE / 255 - 0.5),
    "beyond a byte": (bytes_of(10, 12, 3), PICTURE.astype(int) + 1000),
    "transposed": (bytes_of(10, 12, 3), PICTURE.transpose(1, 0, 2)),
    "channels first": (bytes_of(10, 12, 3), PICTURE.transpose(2, 0, 1)),
    "smaller": (bytes_of(10, 12, 3), PICTURE[:5]),
    "text": (bytes_of(10, 12, 3), "picture"),
    "none": (bytes_of(10, 12, 3), None),
}


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("kind", WRONG_PICTURES)
def test_pictures_unlike_their_space_are_refused_at_any_time(kind: str, later: bool) -> None:
    space, wrong = WRONG_PICTURES[kind]
    right = PICTURE / 255 if space.dtype == np.float32 else PICTURE
    values = [{"state": STATE, "image/cam": value} for value in (right, wrong)]
    with pytest.raises(ValueError, match=r"toy/Seen: observation 'image/cam' (is|has)"):
        play(seen(camera(space), *(values if later else values[1:])), 3)


STATES: dict[str, tuple[spaces.Space, Any]] = {
    "float64": (spaces.Box(-9, 9, (4,), np.float64), STATE.astype(np.float64)),
    "integers": (spaces.Box(-9, 9, (4,), np.int64), STATE.astype(int)),
    "bytes": (bytes_of(4), STATE.astype(np.uint8)),
    "a matrix": (spaces.Box(-9, 9, (2, 2)), STATE.reshape(2, 2)),
    "a column": (spaces.Box(-9, 9, (4, 1)), STATE[:, None]),
    "a flat column": (spaces.Box(-9, 9, (4, 1)), STATE),
    "a list": (NUMBERS, STATE.tolist()),
    "a dict": (spaces.Dict(state=NUMBERS), {"state": STATE}),
    "a nested state": (spaces.Dict(state=spaces.Dict(q=NUMBERS)), {"state": {"q": STATE}}),
    "any names": (
        spaces.Dict(arm=spaces.Box(-9, 9, (3,)), goal=spaces.Dict(x=spaces.Box(-9, 9, ()))),
        {"goal": {"x": 3}, "arm": STATE[:3]},
    ),
}


@pytest.mark.parametrize("kind", STATES)
def test_numbers_become_one_state_of_floats(kind: str) -> None:
    space, value = STATES[kind]
    obs = seen(space, value).reset(torch.tensor([1, 2]))
    assert obs["state"].dtype == torch.float32
    assert obs["state"].tolist() == [STATE.tolist()] * 2


@pytest.mark.parametrize(
    ("key", "space"),
    [
        ("state", bytes_of(16, 16, 3)),
        ("state", bytes_of(84, 84)),
        ("state", bytes_of(4, 84, 84)),
        ("state", floats_of(16, 16, 3)),
        ("pixels", spaces.Dict(pixels=bytes_of(16, 16, 3), agent_pos=NUMBERS)),
        ("pixels/top", spaces.Dict(pixels=spaces.Dict(top=bytes_of(16, 16, 3)), agent_pos=NUMBERS)),
        ("frames", spaces.Dict(frames=floats_of(3, 16, 16), arm=NUMBERS)),
        ("wrist", spaces.Dict(state=NUMBERS, wrist=bytes_of(16, 16, 3))),
    ],
)
def test_pixels_are_not_flattened_into_the_state(key: str, space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=rf"toy/Seen: observation '{key}' is .*image/<camera>"):
        seen(space, space.sample())


@pytest.mark.parametrize(
    ("key", "space"),
    [
        ("state", spaces.Discrete(5)),
        ("state", spaces.MultiDiscrete([2, 3])),
        ("state", spaces.MultiBinary(3)),
        ("state", spaces.Tuple((NUMBERS, NUMBERS))),
        ("state", spaces.Text(5)),
        ("mode", spaces.Dict(mode=spaces.Discrete(3), arm=NUMBERS)),
        ("privileged", spaces.Dict(state=NUMBERS, privileged=NUMBERS)),
        ("task_id", spaces.Dict(state=NUMBERS, task_id=NUMBERS)),
    ],
)
def test_other_spaces_are_refused_by_name(key: str, space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=rf"toy/Seen: observation '{key}' is "):
        seen(space, space.sample())


FULL = camera(bytes_of(10, 12, 3))


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"state": STATE}, r"'image/cam' is missing, .* returned \['state'\]"),
        ({"image/cam": PICTURE, "proprio": STATE}, "'state' is missing"),
        (STATE, "'state' is missing, .* returned ndarray"),
        (None, "'state' is missing, .* returned NoneType"),
        ({"state": STATE[:3], "image/cam": PICTURE}, r"'state' has shape \(3,\)"),
        ({"state": "far", "image/cam": PICTURE}, "'state' is str"),
        ({"state": [[1], [1, 2]], "image/cam": PICTURE}, "'state' is list"),
    ],
)
def test_missing_and_changing_keys_are_refused_by_name(
    wrong: Any, message: str, later: bool
) -> None:
    values = [{"state": STATE, "image/cam": PICTURE}, wrong]
    with pytest.raises(ValueError, match=rf"toy/Seen: observation {message}"):
        play(seen(FULL, *(values if later else values[1:])), 3)


@pytest.mark.parametrize("task_id", [3, -1, 0.5, None])
def test_a_task_outside_its_space_is_refused(task_id: Any) -> None:
    space = spaces.Dict(state=NUMBERS, task_id=spaces.Discrete(3))
    with pytest.raises(ValueError, match="observation 'task_id'"):
        seen(space, {"state": STATE, "task_id": task_id})
    env = seen(space, {"state": STATE, "task_id": 2})
    assert env.reset(torch.tensor([0, 1]))["task_id"].tolist() == [2, 2]
    assert len(env.spec.tasks) == 3


@pytest.mark.parametrize("key", ["state", "image/cam"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_not_finite_costs_its_episode(key: str, number: float) -> None:
    good = {"state": STATE, "image/cam": np.zeros((10, 12, 3), np.float32)}
    bad = {**good, key: np.full_like(good[key], number)}
    env = seen(camera(floats_of(10, 12, 3)), good, bad)
    obs = env.reset(torch.tensor([1, 2]))
    result = env.step(torch.zeros(2, 2), torch.tensor([True, True]))
    assert result.info["invalid"].all()
    assert torch.equal(result.obs["state"], obs["state"])
    assert torch.equal(result.obs["image/cam"], obs["image/cam"])


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (2,), np.int64),
        spaces.Box(0, 255, (2,), np.uint8),
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(0, np.inf, (2,)),
        spaces.MultiDiscrete([3, 3]),
    ],
    ids=str,
)
def test_actions_that_a_policy_cannot_take_are_refused(space: spaces.Space) -> None:
    class Acting(Seen):
        def __init__(self) -> None:
            super().__init__(NUMBERS, STATE)
            self.action_space = space

    with pytest.raises(ValueError, match="toy/Acting: action_space="):
        WorkerEnv(
            Acting,
            id="toy/Acting",
            num_envs=1,
            num_workers=0,
            max_episode_steps=5,
            simulator="none",
        )


def test_the_advice_for_infinite_bounds_works() -> None:
    import gymnasium

    class Endless(Seen):
        def __init__(self) -> None:
            super().__init__(NUMBERS, STATE)
            self.action_space = spaces.Box(-np.inf, np.inf, (2,))

    bounds = spaces.Box(np.array([-1, -2], np.float32), np.array([1, 2], np.float32))
    env = WorkerEnv(
        lambda: gymnasium.wrappers.TransformAction(Endless(), lambda action: action, bounds),
        id="toy/Endless",
        num_envs=1,
        num_workers=0,
        max_episode_steps=5,
        simulator="none",
    )
    assert env.spec.action_high == (1.0, 2.0)


def test_a_float_becomes_the_nearest_byte() -> None:
    picture = np.full((10, 12, 3), 0.999, np.float32)
    env = seen(camera(floats_of(10, 12, 3)), {"state": STATE, "image/cam": picture})
    assert (env.reset(torch.tensor([1, 2]))["image/cam"] == 255).all()
