"""Suites of vector environments, and of sub-environments in workers."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict

from pitune.envs.mock.reach import Reach, Script
from pitune.envs.suite.env import SuiteEnv
from pitune.envs.suite.sub_env import MemberSpaces, SuiteSubEnv
from pitune.envs.workers.env import WorkerEnv
from pitune.envs.workers.process import LocalWorker

ALL = torch.ones(4, dtype=torch.bool)


def two_goals(**options: Any) -> SuiteEnv:
    return SuiteEnv("mock/two", [Reach(4, max_episode_steps=9), Reach(4, **options)])


# Vector environments


def test_each_environment_is_played_by_the_member_of_its_task() -> None:
    env, single = two_goals(), Reach(1)
    obs = env.reset(torch.tensor([0, 1, 20, 21]))
    assert obs["task_id"].tolist() == [0, 1, 0, 1]
    assert torch.equal(obs["state"][0], obs["state"][1])  # both have start 0
    assert torch.equal(obs["state"][3], single.reset(torch.tensor([10]))["state"][0])
    assert env.spec.max_episode_steps == 20
    assert env.spec.task_names == ("mock/Reach", "mock/Reach")


def test_tasks_are_exchanged_at_resets_and_others_go_on() -> None:
    env = two_goals()
    env.reset(torch.tensor([0, 1, 2, 3]))
    before = env.step(torch.ones(4, 2), ALL).obs
    after = env.reset(torch.tensor([5]), torch.tensor([0]))
    assert after["task_id"].tolist() == [1, 1, 0, 1]
    assert torch.equal(after["state"][1:], before["state"][1:])
    result = env.step(-torch.ones(4, 2), torch.tensor([True, False, False, True]))
    assert torch.equal(result.obs["state"][1:3], before["state"][1:3])
    assert not torch.equal(result.obs["state"][3], before["state"][3])
    assert not torch.equal(result.obs["state"][0], after["state"][0])


def test_every_member_has_its_own_time_limit() -> None:
    env = two_goals()
    env.reset(torch.tensor([0, 1, 2, 3]))
    env.members[0].point[:] = 0  # type: ignore[attr-defined]
    env.members[0].goals[:] = 1  # type: ignore[attr-defined]
    env.members[1].point[:] = 0  # type: ignore[attr-defined]
    env.members[1].goals[:] = 1  # type: ignore[attr-defined]
    for _ in range(8):
        assert not env.step(torch.zeros(4, 2), ALL).truncated.any()
    assert env.step(torch.zeros(4, 2), ALL).truncated.tolist() == [True, False, True, False]


def test_the_experts_solve_their_own_tasks() -> None:
    env = two_goals()
    env.reset(torch.tensor([0, 1, 2, 3]))
    active, solved = ALL.clone(), ~ALL
    expert = env.expert()
    while active.any():
        result = env.step(expert.act(), active)
        solved |= result.info["success"]
        active &= ~(result.terminated | result.truncated)
    assert solved.all()


def test_a_suite_without_an_expert_is_refused_and_one_of_two_acts_in_its_task() -> None:
    script = partial(Script, 4, lengths=(3,) * 4, ends=("time",) * 4)
    with pytest.raises(ValueError, match="x has no expert for any of its tasks"):
        SuiteEnv("x", [script(), script()]).expert()

    class Blind(Reach):
        def expert(self) -> Any:
            raise ValueError("no expert")

    env = SuiteEnv("y", [Reach(4), Blind(4)])
    assert env.spec.tasks_without_expert == (1,)
    env.reset(torch.tensor([0, 1, 2, 3]))
    action = env.expert().act()
    assert action[0].any()
    assert not action[[1, 3]].any()


def test_pictures_are_those_of_the_present_task() -> None:
    env = two_goals()
    with pytest.raises(RuntimeError, match="mock/two has nothing to render yet; reset it first"):
        env.render()
    obs = env.reset(torch.tensor([0, 1, 4, 7]))
    pictures = env.render()
    assert pictures.shape == (4, 64, 64, 3)
    for row, member in enumerate(obs["task_id"].tolist()):
        assert torch.equal(pictures[row], env.members[member].render()[row])


def test_only_requested_pictures_are_drawn() -> None:
    members = [Reach(4, cameras=("top",)), Reach(4, cameras=("top",))]
    env = SuiteEnv("x", members)
    before = env.reset(torch.tensor([0, 1, 2, 3]))["image/top"]
    asked = torch.tensor([True, True, False, False])
    after = env.step(torch.ones(4, 2), ALL, asked).obs["image/top"]
    assert (before != after).flatten(1).any(1).tolist() == [True, True, False, False]


def test_closing_a_suite_closes_its_members() -> None:
    closed = []

    class Closing(Reach):
        def close(self) -> None:
            closed.append(self)

    members = [Closing(2), Closing(2)]
    SuiteEnv("x", members).close()
    assert closed == members


# Sub-environments


class Clock(gymnasium.Env):
    """Shows its number, the seed and the time."""

    observation_space: Any = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)
    open: list[int] = []  # noqa: RUF012

    def __init__(self, number: int) -> None:
        self.number, self.dt = number, 0.1
        self.open.append(number)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self.seed_, self.time = seed or 0, 0
        return self._obs(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        if action[0] > 0.9:
            raise RuntimeError("broke")
        self.time += 1
        return self._obs(), 1.0, False, False, {"success": self.time == 3}

    def expert_action(self) -> np.ndarray:
        return np.full(1, self.number / 10, np.float32)

    def close(self) -> None:
        self.open.remove(self.number)

    def _obs(self) -> np.ndarray:
        return np.array([self.number, self.seed_, self.time], np.float32)


class Wide(Clock):
    observation_space = Box(-np.inf, np.inf, (4,), np.float32)


@pytest.fixture(autouse=True)
def nothing_open() -> None:
    Clock.open.clear()


def sub_env(held: int, *factories: Any) -> SuiteSubEnv:
    named = {f"clock{n}": factory for n, factory in enumerate(factories)}
    return SuiteSubEnv("toy/all", named, MemberSpaces.of(factories[0]), held)


def test_a_seed_chooses_the_task_and_its_start() -> None:
    env = sub_env(3, *(partial(Clock, number) for number in range(3)))
    assert Clock.open == []  # nothing is made before an episode
    for seed in (0, 7, 5):
        obs, _ = env.reset(seed=seed)
        assert obs["state"].tolist() == [seed % 3, seed // 3, 0]
        assert obs["task_id"] == seed % 3
    assert env.step(np.zeros(1, np.float32))[0]["state"].tolist() == [2, 1, 1]
    assert sorted(Clock.open) == [0, 1, 2]
    env.close()
    assert Clock.open == []


@pytest.mark.parametrize(("held", "still"), [(1, [2]), (2, [0, 2]), (3, [0, 1, 2])])
def test_the_simulator_that_was_used_longest_ago_is_closed(held: int, still: list[int]) -> None:
    env = sub_env(held, *(partial(Clock, number) for number in range(3)))
    for seed in (1, 0, 2):
        env.reset(seed=seed)
        assert len(Clock.open) <= held
    assert sorted(Clock.open) == still
    env.reset(seed=4)
    assert env.step(np.zeros(1, np.float32))[0]["state"].tolist() == [1, 1, 1]


def test_a_member_with_other_spaces_is_refused_with_both_layouts() -> None:
    env = sub_env(1, partial(Clock, 0), partial(Wide, 1))
    env.reset(seed=0)
    message = (
        r"toy/all: its tasks must share one layout, but clock0 has \{'state': \(3,\)\} and clock1 "
        r"has \{'state': \(4,\)\}; leave one of them out"
    )
    with pytest.raises(ValueError, match=message):
        env.reset(seed=1)


def worker_env(num_workers: int = 0, **spec_fields: Any) -> WorkerEnv:
    factories = {f"clock{number}": partial(Clock, number) for number in range(2)}
    return WorkerEnv(
        partial(SuiteSubEnv, "toy/all", factories, MemberSpaces.of(factories["clock0"]), 1),
        id="toy/all",
        num_envs=4,
        num_workers=num_workers,
        max_episode_steps=5,
        tasks=("zero", "one"),
        simulator="toy",
        probe=False,
        seeded_tasks=True,
        task_names=tuple(factories),
        **spec_fields,
    )


def test_workers_play_a_suite() -> None:
    env = worker_env(num_starts=50)
    assert (env.spec.seeded_tasks, env.spec.num_starts, env.spec.control_hz) == (True, 50, 10)
    obs = env.reset(torch.tensor([0, 1, 8, 5]))
    assert obs["task_id"].tolist() == [0, 1, 0, 1]
    assert obs["state"].tolist() == [[0, 0, 0], [1, 0, 0], [0, 4, 0], [1, 2, 0]]
    torch.testing.assert_close(env.expert().act(), torch.tensor([[0.0], [0.1], [0.0], [0.1]]))
    obs = env.reset(torch.tensor([3]), torch.tensor([0]))
    assert obs["task_id"].tolist() == [1, 1, 0, 1]
    env.close()
    assert Clock.open == []


def test_a_breakdown_costs_one_episode_of_a_suite() -> None:
    env = worker_env()
    env.reset(torch.tensor([0, 1, 2, 3]))
    result = env.step(torch.tensor([[0.0], [1.0], [0.0], [0.0]]), ALL)
    assert result.info["invalid"].tolist() == [False, True, False, False]
    obs = env.reset(torch.tensor([2]), torch.tensor([1]))
    assert obs["task_id"].tolist() == [0, 0, 0, 1]
    assert obs["state"][1].tolist() == [0, 1, 0]


class NoStart(Clock):
    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        raise RuntimeError("no start")


def test_an_episode_that_cannot_begin_has_the_task_of_its_seed() -> None:
    env = worker_env()
    env.reset(torch.tensor([0, 0, 2, 2]))
    worker = env._pool.workers[0]
    assert isinstance(worker, LocalWorker)
    assert worker._sub_envs is not None
    for sub in worker._sub_envs.envs:
        assert isinstance(sub, SuiteSubEnv)
        sub._factories = (partial(Clock, 0), partial(NoStart, 1))
    obs = env.reset(torch.tensor([1]), torch.tensor([0]))
    # the second try is in a new sub-environment, which has a start
    assert obs["task_id"].tolist() == [1, 0, 0, 0]


def test_a_dict_member_keeps_its_pictures() -> None:
    class Seeing(Clock):
        observation_space = Dict(
            {"state": Clock.observation_space, "image/top": Box(0, 255, (2, 2, 3), np.uint8)}
        )

        def _obs(self) -> Any:
            return {"state": super()._obs()}

        def draw_pictures(self) -> dict[str, np.ndarray]:
            return {"image/top": np.full((2, 2, 3), self.number, np.uint8)}

    env = sub_env(2, partial(Seeing, 0), partial(Seeing, 1))
    env.reset(seed=1)
    assert env.draw_pictures()["image/top"].max() == 1
    assert isinstance(env.observation_space, Dict)
    assert set(env.observation_space.spaces) == {"state", "image/top", "task_id"}
