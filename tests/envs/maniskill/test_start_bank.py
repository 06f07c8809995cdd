"""The bank of ManiSkill's starts: on the CPU, and on a stand-in for a batch on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pitune import envs
from pitune.envs.maniskill.batch import ManiSkillBatch
from pitune.envs.maniskill.start_bank import (
    Start,
    StartBank,
    is_restorable,
    make_starts,
    restore,
    take_start,
)

pytest.importorskip("mani_skill")

from pitune.envs.maniskill import adapter, start_bank

pytestmark = pytest.mark.sim

ROW = torch.tensor([0])
ROUNDING = 2e-7
"""Of float32: PhysX reads the pose of a robot's base back with it. 85 of 100 starts are exact."""


def config_of(task: str, **settings: Any) -> envs.EnvConfig:
    options = envs.ManiSkillOptions(control_mode="pd_joint_delta_pos")
    return envs.EnvConfig(id=f"maniskill/{task}", options=options, **settings)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The simulator, one environment on the CPU


@pytest.mark.parametrize("task", ["PushCube-v1", "PickCube-v1", "StackCube-v1", "RollBall-v1"])
def test_a_start_of_the_bank_is_the_start_of_its_seed(task: str) -> None:
    simulation = adapter._build_alone(task, config_of(task))
    bank = StartBank(lambda seeds: make_starts(simulation, seeds))
    for seed in (3, 4, 2**31 - 1):
        by_seed = simulation.reset(seed=[seed])[0].clone()
        start = bank.rows([seed])
        simulation.reset(seed=[11])  # another start, and then some motion
        for _ in range(3):
            simulation.step(torch.ones(1, 8))
        by_bank, info = restore(simulation, ROW, start)
        assert not info["reconfigure"]
        torch.testing.assert_close(by_bank, by_seed, atol=ROUNDING, rtol=0)
        again = take_start(simulation)
        assert again.keys() == start.keys()
        for name, value in start.items():
            torch.testing.assert_close(again[name], value, atol=ROUNDING, rtol=0)
    simulation.close()


def test_tasks_whose_starts_are_no_states_are_detected() -> None:
    found = {}
    for task in ("PickCube-v1", "PlugCharger-v1", "RotateSingleObjectInHandLevel0-v1"):
        simulation = adapter._build_alone(task, config_of(task))
        found[task] = is_restorable(simulation)
        simulation.close()
    assert list(found.values()) == [True, False, False]


def test_a_batch_with_a_bank_of_processes_starts_as_without() -> None:
    config = config_of("PushCube-v1", num_workers=2)
    bank = adapter.make_bank("PushCube-v1", config)
    assert bank is not None
    simulation = adapter._build_alone("PushCube-v1", config)
    batch = ManiSkillBatch(simulation, task="PushCube-v1", max_episode_steps=50, bank=bank)
    plain = adapter.make_maniskill_batch("PushCube-v1", 1, config, "cpu")
    for seed in (5, 6, 5):
        for env in (batch, plain):
            env.reset(torch.tensor([seed + 1]))
            env.step(torch.ones(1, 8), torch.tensor([True]))
        state = batch.reset(torch.tensor([seed]))["state"]
        by_seed = plain.reset(torch.tensor([seed]))["state"]
        torch.testing.assert_close(state, by_seed, atol=ROUNDING, rtol=0)
    assert bank.num_made == 3  # seeds 5, 6 and 7
    batch.close()
    plain.close()


def test_a_task_without_a_bank_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class Processes:
        def __init__(self, *_: object) -> None: ...

        def is_restorable(self) -> bool:
            return False

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(adapter, "StartProcesses", Processes)
    message = "maniskill/PlugCharger-v1 resets one environment after the other, because its starts"
    with pytest.warns(UserWarning, match=message):
        assert adapter.make_bank("PlugCharger-v1", config_of("PlugCharger-v1")) is None
    assert closed


# Many environments, on a stand-in with ManiSkill's rules for `reset_to_env_states`


class Scene:
    def get_pairwise_contact_impulses(self, first: str, second: str) -> Tensor:
        return torch.zeros(1, 3)


class Simulation:
    """A body per environment, and a goal of the task's own. Starts come from the first seed."""

    single_action_space: Any = None
    control_freq, control_mode = 20, "pd"

    def __init__(self, num_envs: int) -> None:
        from gymnasium.spaces import Box

        self.single_action_space = Box(-1.0, 1.0, (2,))
        self.num_envs, self.scene = num_envs, Scene()
        self.body, self.goal = torch.zeros(num_envs, 13), torch.zeros(num_envs)
        self.constant = torch.ones(7)
        self.resets: list[Any] = []

    def get_info(self) -> dict[str, Tensor]:
        return {"success": torch.zeros(self.num_envs, dtype=torch.bool)}

    def get_obs(self) -> Tensor:
        return torch.cat([self.body, self.goal[:, None]], dim=1)

    def get_state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"actors": {"cube": self.body}, "controller": {"arm": torch.zeros(1)}}

    def reset(self, seed: list[int] | None, options: Any = None) -> tuple[Tensor, dict[str, bool]]:
        options = options or {"env_idx": torch.arange(self.num_envs)}
        rows = options["env_idx"]
        self.resets.append(rows.tolist())
        mask = torch.zeros(self.num_envs, dtype=torch.bool)
        mask[rows] = True
        if "reset_to_env_states" in options:
            assert seed is None
            # as ManiSkill's masks do: in ascending order, whatever the order of env_idx
            self.body[mask] = options["reset_to_env_states"]["env_states"]["actors"]["cube"]
        else:
            assert seed is not None
            generator = torch.Generator().manual_seed(seed[0])
            self.body[mask] = torch.rand(len(rows), 13, generator=generator)
            self.goal[mask] = torch.rand(len(rows), generator=generator)
        return self.get_obs().clone(), {"reconfigure": False}


def make_batch(num_envs: int) -> tuple[Simulation, ManiSkillBatch, StartBank]:
    one, many = Simulation(1), Simulation(num_envs)
    bank = StartBank(lambda seeds: make_starts(one, seeds))
    batch = ManiSkillBatch(many, task="Fake-v1", max_episode_steps=4, bank=bank)
    return many, batch, bank


def test_one_reset_starts_many_environments_each_by_its_own_seed() -> None:
    many, batch, bank = make_batch(6)
    seeds = torch.tensor([5, 7, 5, 8, 9, 7])
    state = batch.reset(seeds)["state"]
    assert many.resets == [[0, 1, 2, 3, 4, 5]]
    one = Simulation(1)
    for row, seed in enumerate(seeds.tolist()):
        assert torch.equal(state[row], one.reset([seed])[0][0])  # the goal is its last entry
    assert bank.num_made == 4

    # some rows, in any order: one more reset, and the others stay
    after = batch.reset(torch.tensor([8, 20, 5]), torch.tensor([4, 0, 2]))["state"]
    assert many.resets[1:] == [[0, 2, 4]]
    assert torch.equal(after[[1, 3, 5]], state[[1, 3, 5]])
    assert torch.equal(after[4], state[3])
    assert torch.equal(after[2], state[0])
    assert torch.equal(after[0], one.reset([20])[0][0])
    assert bank.num_made == 5
    assert batch.spec.deterministic_reset


def test_without_a_bank_exact_seeds_take_a_reset_per_environment() -> None:
    simulation = Simulation(6)
    batch = ManiSkillBatch(simulation, task="Fake-v1", max_episode_steps=4)
    batch.reset(torch.arange(6))
    assert simulation.resets == [[row] for row in range(6)]


def test_tensors_without_a_row_per_environment_are_no_part_of_a_start() -> None:
    start = take_start(Simulation(3))
    assert start.keys() == {"actors/cube", "own/body", "own/goal"}


def test_a_bank_drops_its_oldest_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_bank, "CAPACITY", 2)
    asked: list[list[int]] = []

    def make(seeds: list[int]) -> list[Start]:
        asked.append(seeds)
        return [{"own/goal": torch.tensor([seed])} for seed in seeds]

    bank = StartBank(make)
    for seeds in ([1, 2, 1], [3], [2, 3], [1]):
        assert bank.rows(seeds)["own/goal"].tolist() == seeds
    assert asked == [[1, 2], [3], [1]]
