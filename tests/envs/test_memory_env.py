"""`MemoryChunkEnv`: the memory that a decision writes is in the next observation of its episode."""

from __future__ import annotations

import pytest
import torch
from memory_policies import recall

from pitune import envs
from pitune.envs import EpisodeSeeds, MemoryChunkEnv


def test_a_memory_is_carried_and_partial_resets_begin_with_zeros() -> None:
    config = envs.EnvConfig(id="mock/Recall", num_envs=2, max_episode_steps=14)
    seeds = EpisodeSeeds(2, seed=0, split="train")
    env = MemoryChunkEnv(envs.make(config), 7, seeds, memory_shape=(1, 2))
    td = env.reset()
    read = []
    for number in range(1, 5):
        read.append(td["memory"][:, 0, 0].tolist())
        action = torch.zeros(2, 7, 2)
        if number == 2:  # the second environment reaches a goal, right or wrong
            action[1] = env.env.env.directions[0]  # type: ignore[attr-defined]
        td = td.set("action", action).set("written_memory", torch.full((2, 1, 2), float(number)))
        td, following = env.step_and_maybe_reset(td)
        assert (td["next", "memory"] == number).all()  # also that of an episode that ended
        td = following
    # both episodes end after decision 2 by the time limit or the goal
    assert read == [[0, 0], [1, 1], [0, 0], [3, 3]]


def test_one_environment_of_several_begins_anew() -> None:
    env = MemoryChunkEnv(recall(2), 2, EpisodeSeeds(2, seed=0, split="train"), memory_shape=(1, 2))
    td = env.reset()
    td.set("action", torch.zeros(2, 2, 2)).set("written_memory", torch.ones(2, 1, 2))
    following = env.step(td)["next"]
    following["_reset"] = torch.tensor([[False], [True]])
    after = env.reset(following)
    assert after["memory"].sum((1, 2)).tolist() == [2, 0]


def test_a_decision_without_a_memory_is_refused() -> None:
    env = MemoryChunkEnv(recall(2), 2, EpisodeSeeds(2, seed=0, split="train"), memory_shape=(1, 2))
    td = env.reset().set("action", torch.zeros(2, 2, 2))
    message = r"must write a memory of shape \(2, 1, 2\) as 'written_memory', and it has "
    with pytest.raises(ValueError, match=f"{message}none; act with the policy's actor"):
        env.step(td)
    with pytest.raises(ValueError, match=rf"{message}one of shape \(2, 1, 3\)"):
        env.step(td.set("written_memory", torch.zeros(2, 1, 3)))
