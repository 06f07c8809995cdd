"""`ahead`: a chunk of steps in one message gives the results of its steps one by one."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from pitune import envs
from pitune.envs import ChunkEnv, EpisodeSeeds
from pitune.envs.workers import pool as pool_module
from pitune.envs.workers.process import LocalWorker, WorkerDiedError
from pitune.envs.workers.remote.ahead import take_steps
from pitune.envs.workers.sub_envs import SubEnvs

NUM_ENVS, HORIZON = 5, 4


class Counting(LocalWorker):
    """A worker that counts its messages and takes chunks ahead, as one on another machine."""

    messages: ClassVar[list[str]] = []
    dies_at = 0

    def send(self, method: str, *arguments: Any, **settings: Any) -> None:
        self.messages.append(method)
        if method == "take_steps":
            assert isinstance(self._sub_envs, SubEnvs)
            self._result = take_steps(self._sub_envs, *arguments)
        else:
            super().send(method, *arguments, **settings)

    def receive(self, timeout: float) -> Any:
        if Counting.dies_at and self.messages.count("take_steps") == Counting.dies_at:
            Counting.dies_at = 0
            raise WorkerDiedError("ended with its Ray actor (killed)")
        return super().receive(timeout)


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers take chunks ahead."""
    Counting.messages, Counting.dies_at = [], 0
    monkeypatch.setattr(pool_module.WorkerPool, "plans_ahead", True)
    monkeypatch.setattr(pool_module.WorkerPool, "_kind", lambda *_: Counting)


def chunk_env(limit: int = 10) -> ChunkEnv:
    config = envs.EnvConfig(
        id="gym/Pendulum-v1",
        num_envs=NUM_ENVS,
        num_workers=0,
        reward="dense",
        max_episode_steps=limit,
    )
    return ChunkEnv(envs.make(config), HORIZON, EpisodeSeeds(NUM_ENVS, seed=0, split="train"))


def rollout(env: ChunkEnv, num: int = 6) -> Any:
    torch.manual_seed(0)
    return env.rollout(num, break_when_any_done=False)


def test_the_results_are_equal_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = rollout(chunk_env())
    assert expected["next", "done"].sum() == 2 * NUM_ENVS  # the last of an episode in mid-chunk
    monkeypatch.setattr(pool_module.WorkerPool, "plans_ahead", True)
    monkeypatch.setattr(pool_module.WorkerPool, "_kind", lambda *_: Counting)
    assert (rollout(chunk_env()) == expected).all()


def test_a_chunk_is_one_message(remote: None) -> None:
    env = chunk_env(limit=100)
    Counting.messages.clear()
    rollout(env)
    assert Counting.messages == ["reset", *["take_steps"] * 6]


def test_a_worker_that_dies_in_a_chunk_is_replaced_and_its_episodes_are_invalid(
    remote: None,
) -> None:
    env = chunk_env()
    Counting.dies_at = 2
    table = rollout(env)
    assert table["next", "invalid"].flatten(1)[:, 1].all()
    assert table["next", "invalid"].sum() == NUM_ENVS
    assert table["next", "done"].flatten(1)[:, 1].all()
    # the episodes after it are whole
    assert table["next", "duration"][:, 2:4].sum() == 2 * NUM_ENVS * HORIZON


def test_another_step_than_the_announced_one_is_refused(remote: None) -> None:
    env = chunk_env().env
    env.reset(torch.arange(NUM_ENVS))
    active = torch.ones(NUM_ENVS, dtype=torch.bool)
    chunk = torch.zeros(NUM_ENVS, HORIZON, 1)
    env.announce(chunk, active)
    env.step(chunk[:, 0], active)
    with pytest.raises(RuntimeError, match="not the next one of the announced chunk; reset"):
        env.step(torch.ones(NUM_ENVS, 1), active)


def test_steps_end_with_their_episode() -> None:
    import gymnasium

    envs_of = SubEnvs(lambda: gymnasium.make("Pendulum-v1"), "pendulum", 2)
    envs_of.reset([0, 1], [7, 8])
    actions, read = np.zeros((3, 2, 1)), np.zeros((3, 2), bool)
    results = take_steps(envs_of, [0, 1], actions, read, left=np.array([3, 1]))
    assert [len(rows.reward) for rows in results] == [2, 1, 1]
    assert take_steps(envs_of, [0], actions[:, :1], read[:, :1], np.array([0])) == []


@pytest.mark.parametrize(
    ("env_id", "changes", "message"),
    [
        ("mock/Reach", {}, "workers_on='ray' is not supported by mock/Reach, which is not made of"),
        ("gym/Pendulum-v1", {"num_workers": 0}, "num_workers=0 runs the environments in this pr"),
    ],
)
def test_ray_is_refused_where_it_has_no_workers(env_id: str, changes: dict, message: str) -> None:
    config = envs.EnvConfig(id=env_id, reward="dense", workers_on="ray", **changes)
    with pytest.raises(ValueError, match=message):
        envs.make(config)


def test_an_address_of_ray_is_refused_where_the_workers_are_processes() -> None:
    config = envs.EnvConfig(id="gym/Pendulum-v1", reward="dense", num_workers=1, ray_address="auto")
    with pytest.raises(ValueError, match="ray_address='auto' is used with workers_on='ray' only"):
        envs.make(config)
