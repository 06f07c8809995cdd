"""`chunk_env`: environments that have played their episodes wait until all are reset."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from pitune.envs import CheckedEnv, ChunkEnv, EpisodeSeeds
from pitune.envs.mock.reach import Script


def played(num_episodes: int | None, num_chunks: int = 6) -> tuple[ChunkEnv, TensorDictBase]:
    """Return chunks of two steps (2, T) of episodes of two and of four steps, and their env."""
    script = Script(2, lengths=(2, 4), ends=("success", "time"))
    env = ChunkEnv(CheckedEnv(script), 2, EpisodeSeeds(2, 0, "train"), num_episodes)
    td, columns = env.reset(), []
    for _ in range(num_chunks):
        td["action"] = torch.zeros(2, 2, 1)
        td, following = env.step_and_maybe_reset(td)
        columns.append(td)
        td = following
    return env, TensorDict.stack(columns, 1)


@pytest.mark.parametrize(
    ("num_episodes", "durations", "ends"),
    [
        (None, [[2] * 6, [2] * 6], [[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1]]),
        (2, [[2, 2, 0, 0, 0, 0], [2, 2, 2, 2, 0, 0]], [[1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0]]),
        (1, [[2, 0, 0, 0, 0, 0], [2, 2, 0, 0, 0, 0]], [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]),
    ],
)
def test_an_environment_plays_its_number_of_episodes_and_waits(
    num_episodes: int | None, durations: list[list[int]], ends: list[list[int]]
) -> None:
    env, rollout = played(num_episodes)
    assert rollout["next", "duration"].squeeze(-1).tolist() == durations
    assert rollout["next", "done"].squeeze(-1).long().tolist() == ends
    assert env.num_env_steps == sum(map(sum, durations))
    live = rollout["next", "live"]
    assert live.sum(-1).tolist() == durations
    assert rollout["next", "reward_steps"][~live].eq(0).all()


def test_a_waiting_environment_takes_no_new_start() -> None:
    env, rollout = played(1)
    assert env.seeds.episodes.tolist() == [1, 1]
    waiting = rollout["next", "duration"].squeeze(-1) == 0
    first = rollout["state"][:, :1, 1].expand(2, 6)
    assert torch.equal(rollout["state"][..., 1][waiting], first[waiting])
    env.reset()
    assert env.seeds.episodes.tolist() == [2, 2]
    assert not env._played.any()
