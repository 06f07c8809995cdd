"""Streams: every frame once per epoch, exact resuming, and the same loss as from memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lerobot_datasets import LENGTHS, episodes, recorded, version_2
from tensordict import TensorDictBase

from pitune import rl
from pitune.policies import FlowPolicy, ModelInput
from pitune.rl import BCConfig
from pitune.rl.algorithms.bc import CloningStep, clone
from pitune.rl.datasets.config import DataConfig
from pitune.rl.datasets.dataset import EpisodeDataset
from pitune.rl.datasets.demonstrations import RandomChunks, chunk_source, demonstrations_for
from pitune.rl.datasets.stream import ChunkStream, ShuffledOrder
from pitune.rl.experience.sub_dict import sub_dict
from vision_policies import vision_policy

ROOT = Path(__file__).parents[3]
TINY = 1e-6
"""Memory that holds a few windows of the test's datasets [GiB]."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return recorded(tmp_path / "d", episodes(cameras=("front", "wrist")))


@pytest.fixture
def policy(tiny_policy: Callable[..., FlowPolicy]) -> FlowPolicy:
    return tiny_policy(state_dim=3, action_dim=2, horizon=4)


def stream_of(
    policy: FlowPolicy, folder: Path, seed: int | None = 0, **changes: object
) -> ChunkStream:
    config = DataConfig(**{"memory_gib": TINY, "window": 3, **changes})  # type: ignore[arg-type]
    pictures = policy.preprocessor.config.pictures
    cameras = [] if pictures is None else list(pictures.cameras.values())
    return ChunkStream(EpisodeDataset(folder, config, cameras), policy, seed)


def frames_of(stream: ChunkStream, num: int, block: int = 0) -> torch.Tensor:
    """Return the numbers of the first frames that a stream draws."""
    found: list[torch.Tensor] = []
    while sum(map(len, found)) < num:
        found.append(stream.order.frames(block))
        block += 1
    return torch.cat(found)[:num]


def equal(first: TensorDictBase, second: TensorDictBase) -> bool:
    return set(first.keys(True, True)) == set(second.keys(True, True)) and all(
        torch.equal(first[key], second[key]) for key in first.keys(True, True)
    )


@pytest.mark.parametrize("window", [1, 3, 8, 50])
@pytest.mark.parametrize("windows", [1, 2, 7])
def test_every_frame_is_drawn_once_per_epoch(window: int, windows: int) -> None:
    order = ShuffledOrder(LENGTHS, window, windows, seed=3)
    for epoch in range(3):
        blocks = range(epoch * order.num_blocks, (epoch + 1) * order.num_blocks)
        frames = torch.cat([order.frames(block) for block in blocks])
        assert sorted(frames.tolist()) == list(range(sum(LENGTHS)))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    order = ShuffledOrder((40, 40), 4, 5, seed=0)
    first, later = order.frames(0).tolist(), order.frames(order.num_blocks).tolist()
    assert first != later
    assert first == ShuffledOrder((40, 40), 4, 5, seed=0).frames(0).tolist()
    assert first != ShuffledOrder((40, 40), 4, 5, seed=1).frames(0).tolist()
    # a block mixes distant frames
    assert len({frame // 40 for frame in first}) == 2
    assert first != sorted(first)


@pytest.mark.parametrize("make", [recorded, version_2])
@pytest.mark.parametrize("padding", ["mask", "repeat"])
def test_a_stream_gives_the_chunks_of_memory(
    make: Callable[..., Path], padding: str, tmp_path: Path
) -> None:
    folder = make(tmp_path / "d", episodes(cameras=("front", "wrist")))
    policy = three_dim_vision_policy()
    stream = stream_of(policy, folder, padding=padding, memory_gib=2e-4)
    assert 1 <= stream.num_windows < 9
    config = DataConfig(padding=padding)  # type: ignore[arg-type]
    chunks = demonstrations_for(policy, folder, config).chunks(4)
    assert ("action_is_pad" in chunks.keys()) == (padding == "mask")
    frames = frames_of(stream, 60)
    for start in range(0, 60, 10):
        assert equal(stream.draw(10), sub_dict(chunks, frames[start : start + 10]))


def three_dim_vision_policy() -> FlowPolicy:
    """A tiny policy with cameras and a prompt, for the robot of the test's datasets."""
    policy = vision_policy()
    config = policy.preprocessor.config
    stats = replace(config.state, **{k: v[:3] for k, v in vars(config.state).items()})
    return FlowPolicy(
        policy.network, replace(config, state=stats), policy.sampler, info=policy.info
    )


def test_the_words_reach_the_prompt(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "d", episodes(cameras=("front", "wrist")))
    policy = three_dim_vision_policy()
    rows = demonstrations_for(policy, folder)
    inputs = rows.obs["model_input"]
    assert isinstance(inputs, TensorDictBase)
    tokens = inputs["tokens"]
    first, second = tokens[0], tokens[LENGTHS[0]]
    assert not torch.equal(first, second)
    assert torch.equal(tokens[LENGTHS[0] + LENGTHS[1]], first)


def test_padding_ends_at_the_episode(policy: FlowPolicy, folder: Path) -> None:
    stream = stream_of(policy, folder)
    frames = frames_of(stream, sum(LENGTHS))
    rows = stream.draw(sum(LENGTHS))
    ends = torch.tensor(LENGTHS).cumsum(0)
    left = ends[torch.searchsorted(ends, frames, right=True)] - frames
    assert rows["action_is_pad"].sum(1).tolist() == (4 - left).clamp(min=0).tolist()
    table = torch.cat([episode.action for episode in episodes()])
    ahead = torch.minimum(torch.arange(4), left[:, None] - 1)
    assert torch.equal(rows["action"], table[frames[:, None] + ahead])


def test_a_stream_resumes_exactly(policy: FlowPolicy, folder: Path) -> None:
    stream = stream_of(policy, folder)
    drawn = 0
    for size in (1, 5, 8, 13, 25):
        stream.draw(size)
        drawn += size
        other = stream_of(policy, folder, seed=99)
        other.draw(3)
        other.load_state(json.loads(json.dumps(stream.state())))
        expected = frames_of(stream, drawn + 12)[drawn:]
        assert torch.equal(frames_of(other, drawn + 12)[drawn:], expected)
        assert equal(other.draw(12), stream.draw(12))
        drawn += 12


def test_the_seed_comes_from_the_random_numbers_of_the_run(
    policy: FlowPolicy, folder: Path
) -> None:
    seeds = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        seeds.append(stream_of(policy, folder, seed=None).order.seed)
    assert seeds[0] == seeds[1] != seeds[2]


def test_cloning_a_stream_gives_the_loss_of_memory(policy: FlowPolicy, folder: Path) -> None:
    """The same frames in the same order, once from the disk and once from memory."""

    class InOrder(RandomChunks):
        frames = torch.arange(0)

        def draw(self, size: int) -> TensorDictBase:
            chosen, self.frames = self.frames[:size], self.frames[size:]
            return sub_dict(self.chunks, chosen)

    stream = stream_of(policy, folder)
    memory = InOrder(demonstrations_for(policy, folder).chunks(4))
    memory.frames = frames_of(stream, 300)
    losses = []
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    for source in (stream, memory):
        policy.load_state_dict(start)
        torch.manual_seed(5)
        step = CloningStep(policy, BCConfig(minibatch_size=10, learning_rate=1e-3))
        losses.append([step(source.draw(10)) for _ in range(30)])
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]


def test_bc_gives_the_loss_of_the_same_demonstrations_in_a_file(
    policy: FlowPolicy, folder: Path, tmp_path: Path
) -> None:
    """A dataset that fits into memory is drawn by the random numbers of a file's chunks."""
    table = episodes()
    demonstrations = rl.Demonstrations(
        obs={"state": torch.cat([episode.state for episode in table])},
        action=torch.cat([episode.action for episode in table]),
        episode=torch.arange(4).repeat_interleave(torch.tensor(LENGTHS)),
    )
    demonstrations.save(tmp_path / "d.safetensors")
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    losses = []
    for path in (folder, tmp_path / "d.safetensors"):
        policy.load_state_dict(start)
        torch.manual_seed(5)
        config = BCConfig(demonstrations=path, data=DataConfig(padding="repeat"), gradient_steps=20)
        losses.append(rl.make(config, policy).update(torch.empty(0))["flow_loss"])  # type: ignore[arg-type]
    assert losses[0] == losses[1]


def test_masked_steps_are_left_out_of_the_loss(policy: FlowPolicy, folder: Path) -> None:
    rows = demonstrations_for(policy, folder).chunks(4)
    rows["noise"] = torch.zeros(len(rows), 4, 2)
    rows["flow_time"] = torch.full((len(rows),), 0.5)
    step = CloningStep(policy, BCConfig())
    with torch.no_grad():
        inputs, action = ModelInput.of(rows), rows["action"]
        entries = policy.loss(inputs, action, rows["noise"], rows["flow_time"])
        masked, counted = step.loss(rows)[0], step.loss(rows.exclude("action_is_pad"))[0]
    assert torch.equal(masked, (entries * ~rows["action_is_pad"][..., None]).mean())
    assert torch.equal(counted, entries.mean())
    assert masked < counted


def test_a_resumed_run_of_bc_goes_on_in_the_same_order(policy: FlowPolicy, folder: Path) -> None:
    data = DataConfig(memory_gib=TINY, window=3)
    config = BCConfig(demonstrations=folder, data=data, gradient_steps=3, minibatch_size=4)
    first = rl.make(config, policy)
    assert isinstance(first, rl.BehaviorCloning)
    assert isinstance(first.chunks, ChunkStream)
    first.update(torch.empty(0))  # type: ignore[arg-type]
    second = rl.make(config, policy)
    assert isinstance(second, rl.BehaviorCloning)
    assert isinstance(second.chunks, ChunkStream)
    second.load_extra_state(first.extra_state())
    assert equal(second.chunks.draw(9), first.chunks.draw(9))


def test_memory_without_room_for_two_windows_is_refused(policy: FlowPolicy, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"memory_gib=1e-08 does not hold two windows of 3 frames"):
        stream_of(policy, folder, memory_gib=1e-8)


def test_an_algorithm_that_needs_memory_names_it(policy: FlowPolicy, folder: Path) -> None:
    message = r"needs .* GiB for 25 frames, more than memory_gib=1e-07; .*\(data.max_episodes"
    with pytest.raises(ValueError, match=message):
        demonstrations_for(policy, folder, DataConfig(memory_gib=1e-7))


def test_an_error_of_the_decoding_thread_is_raised(policy: FlowPolicy, folder: Path) -> None:
    stream = stream_of(policy, folder)
    (folder / "data/chunk-000/file-000.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"file-000.parquet is missing"):
        stream.draw(25)


@pytest.mark.parametrize("name", ["dgn", "wsrl", "dsrl"])
def test_algorithms_with_demonstrations_take_a_dataset(
    name: str,
    tmp_path: Path,
    demonstrations_file: Path,
    small_preset: Callable[[str], rl.AlgorithmConfig],
    tiny_policy: Callable[..., FlowPolicy],
) -> None:
    from pitune.rl.datasets.recorder import write_demonstrations

    table = rl.Demonstrations.load(demonstrations_file)
    write_demonstrations(table, tmp_path / "d", fps=10.0)
    algorithm = rl.make(small_preset(name).with_demonstrations(tmp_path / "d"), tiny_policy())
    if name == "dgn":
        assert algorithm.demonstrated_fps == 10.0


def test_another_frame_rate_is_refused(
    tmp_path: Path, demonstrations_file: Path, tiny_policy: Callable[..., FlowPolicy]
) -> None:
    from pitune import envs
    from pitune.rl.datasets.recorder import write_demonstrations

    table = rl.Demonstrations.load(demonstrations_file)
    write_demonstrations(table, tmp_path / "d", fps=15.0)
    env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2, num_workers=0))
    config = BCConfig(demonstrations=tmp_path / "d")
    with pytest.raises(ValueError, match=r"15 frames per second, mock/Reach has control_hz=10"):
        rl.Rollouts(env, rl.make(config, tiny_policy()), 4, 0)
    accepted = replace(config, data=DataConfig(any_rate=True))
    rl.Rollouts(env, rl.make(accepted, tiny_policy()), 4, 0)


def test_sources_follow_the_memory(policy: FlowPolicy, folder: Path) -> None:
    assert isinstance(chunk_source(policy, folder), RandomChunks)
    small = chunk_source(policy, folder, DataConfig(memory_gib=TINY, window=3))
    assert isinstance(small, ChunkStream)
    assert len(small) == sum(LENGTHS)
    small.close()


def test_a_full_minibatch_is_drawn_across_epochs(policy: FlowPolicy, folder: Path) -> None:
    stream = stream_of(policy, folder)
    step = CloningStep(policy, BCConfig(minibatch_size=60))
    assert clone(step, stream, 2) > 0
    assert stream.state()["block"] >= 3 * stream.order.num_blocks


@pytest.mark.slow
def test_a_stream_of_20000_frames_stays_in_its_memory(tmp_path: Path) -> None:
    def run(*words: str) -> dict[str, float]:
        command = [sys.executable, str(ROOT / "tests/support/stream_memory.py"), *words]
        path = f"{ROOT}:{ROOT / 'tests/support'}"
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={"PYTHONPATH": path}
        )
        values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return values

    run("write", str(tmp_path / "d"))
    result = run("train", str(tmp_path / "d"), "--steps", "100")
    assert result["streamed"]
    assert result["raw_mib"] > 400
    assert result["growth_mib"] < result["stated_mib"] + 64
