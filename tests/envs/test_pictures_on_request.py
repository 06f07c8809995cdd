"""`DrawsOnRequest`: within a chunk only the pictures that are read are drawn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune import envs
from pitune.envs import CheckedEnv, ChunkEnv, EpisodeSeeds
from pitune.envs.mock.reach import Reach
from pitune.envs.tabletop.render import SceneRenderer
from pitune.envs.workers.env import WorkerEnv

NUM_ENVS, HORIZON, TIME_LIMIT = 3, 4, 6
LENGTHS = (2, 4, 99)
"""Steps of the episodes: inside a chunk, at its end, and cut by the time limit."""


class Clock(gymnasium.Env):
    """State and picture show the time. The picture is drawn on request."""

    observation_space = gymnasium.spaces.Dict(
        {
            "state": gymnasium.spaces.Box(-1, 99, (1,)),
            "image/top": gymnasium.spaces.Box(0, 255, (8, 9, 3), np.uint8),
        }
    )
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self) -> None:
        self.time, self.length = 0, 0
        self.drawn: list[int] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.time, self.length = 0, LENGTHS[(seed or 0) % 3]
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        ended = self.time >= self.length
        return self.observe(), float(ended), ended, False, {"success": ended}

    def draw_pictures(self) -> dict[str, np.ndarray]:
        self.drawn.append(self.time)
        return {"image/top": np.full((8, 9, 3), self.time, np.uint8)}

    def observe(self) -> dict[str, np.ndarray]:
        return {"state": np.array([self.time], np.float32)}


class Eager(Clock):
    """The same environment, which returns its picture in every observation."""

    def has_wrapper_attr(self, name: str) -> bool:
        return name != "draw_pictures" and super().has_wrapper_attr(name)

    def observe(self) -> dict[str, np.ndarray]:
        return {**super().observe(), **self.draw_pictures()}


class Scripted(EpisodeSeeds):
    """Seeds 0, 1, 2 of the three environments, and again 0, 1, 2."""

    def _seed_of(self, env: int, episode: int) -> int:
        return env


def make_clocks(kind: type[Clock] = Clock, num_workers: int = 0) -> CheckedEnv:
    return CheckedEnv(
        WorkerEnv(
            functools.partial(kind),
            id="toy/Clock",
            num_envs=NUM_ENVS,
            num_workers=num_workers,
            max_episode_steps=TIME_LIMIT,
            simulator="toy",
            probe=False,
        )
    )


def make_tabletop() -> CheckedEnv:
    config = envs.EnvConfig(
        id="mujoco/PickCube",
        num_envs=NUM_ENVS,
        num_workers=0,
        cameras=("front", "wrist"),
        image_size=16,
        max_episode_steps=TIME_LIMIT,
    )
    try:
        return envs.make(config)
    except RuntimeError as error:
        pytest.skip(f"this machine cannot render: {error}")


def make_reach() -> CheckedEnv:
    return CheckedEnv(Reach(NUM_ENVS, cameras=("top",), max_episode_steps=TIME_LIMIT))


def play(env: CheckedEnv, num_chunks: int) -> list[TensorDictBase]:
    """Return the record of some chunks of random actions, with the observations after each."""
    chunk_env = ChunkEnv(env, HORIZON, Scripted(NUM_ENVS, 0, "train"))
    td, generator = chunk_env.reset(), torch.Generator().manual_seed(0)
    record: list[Any] = [td.clone()]
    for _ in range(num_chunks):
        shape = (NUM_ENVS, HORIZON, env.spec.action_dim)
        td["action"] = 2 * torch.rand(shape, generator=generator) - 1
        td, next_td = chunk_env.step_and_maybe_reset(td)
        record += [td.clone(), next_td.clone()]
        td = next_td
    return record


def same(first: list[TensorDictBase], second: list[TensorDictBase]) -> bool:
    return all(
        torch.equal(one[key], two[key])
        for one, two in zip(first, second, strict=True)
        for key in one.keys(include_nested=True, leaves_only=True)
    )


@pytest.fixture(params=["clocks", "clocks in a process", "tabletop", "reach"])
def env(request: pytest.FixtureRequest) -> Iterator[CheckedEnv]:
    makers: dict[str, Callable[[], CheckedEnv]] = {
        "clocks": make_clocks,
        "clocks in a process": functools.partial(make_clocks, num_workers=2),
        "tabletop": make_tabletop,
        "reach": make_reach,
    }
    made = makers[request.param]()
    yield made
    made.close()


def test_rollouts_are_the_same_as_with_all_pictures_drawn(env: CheckedEnv) -> None:
    """Also those of episodes that end inside a chunk, and their last observations."""
    assert env.draws_on_request
    on_request = play(env, 4)
    env.draws_on_request = False
    everything = play(env, 4)
    assert same(on_request, everything)
    ends = torch.stack([td["next", "done"].flatten() for td in on_request[1::2]])
    assert ends.any(0).all()  # every environment has ended at least once


def test_a_picture_shows_the_state_that_a_policy_reads() -> None:
    for td in play(make_clocks(), 4):
        for part in (td, td.get("next", td)):
            assert (part["image/top"].flatten(1).float() == part["state"]).all()


def test_a_chunk_draws_the_last_picture_of_each_episode_or_chunk() -> None:
    env = make_clocks()
    clocks = env.env._pool.workers[0]._sub_envs.envs  # type: ignore[attr-defined]
    for clock in clocks:
        clock.drawn.clear()
    play(env, 2)
    # with the reset (0) after each end; the third is cut by the time limit after 6 steps
    expected = ([0, 2, 0, 2, 0], [0, 4, 0, 4, 0], [0, 4, 6, 0])
    assert [clock.drawn for clock in clocks] == [list(times) for times in expected]
    assert sum(map(len, expected)) == 14
    env.draws_on_request = False
    for clock in clocks:
        clock.drawn.clear()
    play(env, 2)
    assert [len(clock.drawn) for clock in clocks] == [7, 11, 8]


def test_the_tabletop_draws_the_same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    env, drawn = make_tabletop(), 0
    picture = SceneRenderer.picture

    def counted(*arguments: Any) -> np.ndarray:
        nonlocal drawn
        drawn += 1
        return picture(*arguments)

    monkeypatch.setattr(SceneRenderer, "picture", counted)
    play(env, 2)  # 4 and 2 steps, then the time limit
    assert drawn == NUM_ENVS * 2 * 4  # two cameras; reset, 4 steps, 6 steps, reset
    drawn = 0
    env.draws_on_request = False
    play(env, 2)
    assert drawn == NUM_ENVS * 2 * (1 + 6 + 1)


def test_an_environment_that_returns_its_pictures_itself_gives_the_same() -> None:
    assert same(play(make_clocks(), 3), play(make_clocks(Eager), 3))


def test_pictures_that_nobody_reads_do_not_travel() -> None:
    sub_envs = make_clocks().env._pool.workers[0]._sub_envs  # type: ignore[attr-defined]
    sub_envs.reset([0, 1, 2], [0, 1, 2])
    action, read = np.zeros((3, 1), np.float32), np.zeros(3, bool)
    rows = sub_envs.step([0, 1, 2], action, read)
    assert set(rows.obs) == {"state", "task_id"}
    rows = sub_envs.step([0, 1, 2], action, read)  # the first one ends
    assert rows.drawn.tolist() == [True, False, False]
    assert "image/top" in rows.obs


def test_a_row_that_is_not_requested_keeps_its_picture() -> None:
    env = make_clocks()
    seeds, both = torch.tensor([1, 1, 2]), torch.tensor([True, True, False])
    env.reset(seeds)
    obs = env.step(torch.zeros(3, 1), both, torch.tensor([False, True, False])).obs
    assert obs["image/top"].flatten(1)[:, 0].tolist() == [0, 1, 0]
    assert obs["state"][:, 0].tolist() == [1, 1, 0]


def test_an_adapter_that_knows_no_requests_draws_all() -> None:
    class Simple:
        def __init__(self) -> None:
            self.reach = Reach(NUM_ENVS, cameras=("top",), max_episode_steps=TIME_LIMIT)
            self.spec, self.reset = self.reach.spec, self.reach.reset

        def step(self, action: Tensor, active: Tensor) -> envs.StepResult:
            return self.reach.step(action, active)

    simple = CheckedEnv(Simple())  # type: ignore[arg-type]
    assert not simple.draws_on_request
    assert same(play(simple, 3), play(make_reach(), 3))


def test_pictures_stay_bytes_in_a_rollout() -> None:
    record = TensorDict.stack(play(make_reach(), 2)[1::2], 1)
    for part in (record, record["next"]):
        assert part["image/top"].dtype == torch.uint8
