"""TorchRL's VLA schema: round trips, its own validation, and its tools on our data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.datasets.lerobot import lerobot_columns_to_tensordict
from torchrl.data.replay_buffers.samplers import SliceSampler
from torchrl.data.vla import validate_vla_tensordict
from torchrl.envs.transforms import ActionChunkTransform
from torchrl.objectives import BCLoss

from pitune import envs, rl
from pitune.rl.experience.vla_keys import (
    demonstrations_from_vla,
    demonstrations_to_vla,
    rollout_from_vla,
    rollout_to_vla,
)

WORDS = ("reach the green goal",)


@pytest.fixture(scope="module")
def rollout() -> TensorDictBase:
    """Decisions with pictures, which end in the middle of chunks."""
    config = envs.EnvConfig(
        id="mock/Reach",
        num_envs=3,
        num_workers=0,
        max_episode_steps=5,
        cameras=("front",),
        image_size=12,
    )
    torch.manual_seed(0)
    env = envs.make(config)
    chunk_env = envs.ChunkEnv(env, 3, envs.EpisodeSeeds(3, seed=0, split="train"))
    found: TensorDictBase = chunk_env.rollout(6, break_when_any_done=False)
    return found


@pytest.fixture
def demonstrations(demonstrations_file: Path) -> rl.Demonstrations:
    return rl.Demonstrations.load(demonstrations_file)


def equal(first: TensorDictBase, second: TensorDictBase) -> bool:
    keys = set(first.keys(True, True))
    return keys == set(second.keys(True, True)) and all(
        torch.equal(first[key], second[key]) for key in keys
    )


def test_a_rollout_comes_back(rollout: TensorDictBase) -> None:
    vla = rollout_to_vla(rollout, WORDS)
    assert validate_vla_tensordict(vla) == []
    assert equal(rollout_from_vla(vla), rollout)


def test_a_rollout_has_the_keys_of_the_schema(rollout: TensorDictBase) -> None:
    vla = rollout_to_vla(rollout, WORDS)
    assert torch.equal(vla["observation", "image", "front"], rollout["image/front"])
    assert torch.equal(vla["next", "observation", "state"], rollout["next", "state"])
    assert torch.equal(vla["action"], rollout["action"][:, :, 0])
    assert vla.get("language_instruction").tolist() == [[WORDS[0]] * 6] * 3
    padded = vla["action_is_pad"]
    assert padded.any()
    assert torch.equal(padded.sum(-1, keepdim=True), 3 - rollout["next", "duration"])


def test_words_give_the_number_of_the_task(rollout: TensorDictBase) -> None:
    tasks = ("push", *WORDS)
    vla = rollout_to_vla(rollout.clone().set("task_id", rollout["task_id"] + 1), tasks)
    back = rollout_from_vla(vla.exclude("task_id"), tasks)
    assert set(back["task_id"].flatten().tolist()) == {1}
    with pytest.raises(ValueError, match=r"\['reach the green goal'\] are not among the tasks"):
        rollout_from_vla(vla.exclude("task_id"), ("push",))


def test_missing_entries_are_named(rollout: TensorDictBase) -> None:
    with pytest.raises(ValueError, match=r"the rows lack \['state'\]"):
        rollout_to_vla(rollout.exclude("state"), WORDS)
    vla = rollout_to_vla(rollout, WORDS)
    with pytest.raises(ValueError, match=r"lack \[\('vla_action', 'chunk'\)\]"):
        rollout_from_vla(vla.exclude("vla_action"))
    flat = vla.clone()
    flat["observation", "image"] = rollout["image/front"]
    with pytest.raises(ValueError, match=r"without the name of its camera"):
        rollout_from_vla(flat)


def test_torchrl_clones_the_chunks_of_a_rollout(rollout: TensorDictBase) -> None:
    """Its chunked cloning loss reads our chunks and leaves out the steps that were not executed."""
    vla = rollout_to_vla(rollout, WORDS).flatten(0, 1)
    actor = TensorDictModule(
        nn.Sequential(nn.Linear(4, 6), nn.Unflatten(-1, (3, 2))),
        in_keys=[("observation", "state")],
        out_keys=[("vla_action", "chunk")],
    )
    loss = BCLoss(actor, loss_function="l1")
    loss.set_keys(action=("vla_action", "chunk"), pad_mask="action_is_pad")
    found = loss(vla)["loss_bc"]
    with torch.no_grad():
        chunk = actor(vla.select(("observation", "state")))["vla_action", "chunk"]
    distance = (chunk - vla["vla_action", "chunk"]).abs()
    assert torch.allclose(found, distance[~vla["action_is_pad"]].mean())


def test_demonstrations_come_back(demonstrations: rl.Demonstrations) -> None:
    vla = demonstrations_to_vla(demonstrations)
    assert validate_vla_tensordict(vla) == []
    back = demonstrations_from_vla(vla, reward=demonstrations.reward_definition)
    for name in ("action", "episode", "reward", "terminated"):
        assert torch.equal(getattr(back, name), getattr(demonstrations, name)), name
    assert torch.equal(back.obs["state"], demonstrations.obs["state"])
    assert back.tasks == demonstrations.tasks
    assert back.reward_definition == demonstrations.reward_definition
    ends = demonstrations_from_vla(vla.exclude("episode"))
    assert torch.equal(ends.episode, demonstrations.episode)
    with pytest.raises(ValueError, match=r"neither 'episode' nor \('next', 'done'\)"):
        demonstrations_from_vla(vla.exclude("episode", "next"))


def test_torchrl_cuts_the_chunks_that_we_cut(demonstrations: rl.Demonstrations) -> None:
    vla = demonstrations_to_vla(demonstrations)
    row = ActionChunkTransform(chunk_size=4)(vla.exclude("language_instruction")[None])[0]
    chunks = rl.Demonstrations(**{**vars(demonstrations), "mask_padding": True}).chunks(4)
    assert torch.equal(row["vla_action", "chunk"], chunks["action"])
    assert torch.equal(row["action_is_pad"], chunks["action_is_pad"])
    assert row["action_is_pad"].any()


def test_torchrl_samples_slices_of_our_episodes(demonstrations: rl.Demonstrations) -> None:
    vla = demonstrations_to_vla(demonstrations).exclude("language_instruction")
    memory = TensorDictReplayBuffer(
        storage=LazyTensorStorage(len(vla)),
        sampler=SliceSampler(slice_len=3, traj_key="episode", strict_length=True),
        batch_size=12,
    )
    memory.extend(vla)
    slices = memory.sample().reshape(4, 3)
    assert (slices["episode"] == slices["episode"][:, :1]).all()


def test_rows_of_torchrls_lerobot_reader_become_demonstrations() -> None:
    rows: TensorDict = lerobot_columns_to_tensordict(
        {
            "observation.state": torch.rand(4, 7),
            "observation.images.top": torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
            "action": torch.rand(4, 6),
            "episode_index": torch.tensor([0, 0, 1, 1]),
            "task": ["pick", "pick", "place", "place"],
        }
    )
    table = demonstrations_from_vla(rows)
    assert (table.num_episodes, table.tasks) == (2, ("pick", "place"))
    assert table.obs["task_id"].tolist() == [0, 0, 1, 1]
    assert table.obs["image/top"].shape == (4, 3, 8, 8)
