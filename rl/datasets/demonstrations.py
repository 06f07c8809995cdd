"""Demonstrations for a policy from a file of ours or from a LeRobot dataset.

Letters: N rows, B minibatch rows, H action horizon, d robot action dim.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy
from pitune.policies.preprocessing.model_input import MODEL_INPUT
from pitune.rl.datasets.config import DataConfig
from pitune.rl.datasets.dataset import EpisodeDataset, Frames
from pitune.rl.datasets.layout import is_dataset
from pitune.rl.datasets.stream import GIB, ChunkRows, ChunkStream
from pitune.rl.experience import demonstrations as files
from pitune.rl.experience.demonstrations import Demonstrations
from pitune.rl.experience.history import ChunksWithHistory
from pitune.rl.experience.status_rows import with_status_rows
from pitune.rl.experience.sub_dict import sub_dict


class ChunkSource(Protocol):
    """Training chunks, from memory or from the disk.

    Example:
        >>> source: ChunkSource = RandomChunks(TensorDict({"action": torch.ones(9, 4, 2)}, [9]))
        >>> source.draw(3)["action"].shape
        torch.Size([3, 4, 2])
    """

    @property
    def fps(self) -> float | None:
        """Steps per second that must be those of the environment [Hz], None for any."""

    @property
    def entries(self) -> set[str]:
        """Names of the entries of a chunk."""

    def __len__(self) -> int:
        """Return the number of different chunks."""

    def draw(self, size: int) -> TensorDictBase:
        """Return the next minibatch (B)."""

    def state(self) -> dict[str, Any]:
        """Return the place in the order, beside PyTorch's random numbers."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state`."""


class RandomChunks:
    """Chunks in memory (N), drawn with replacement by PyTorch's generator.

    Args:
        chunks: Rows of `Demonstrations.chunks`.
        fps: See `Demonstrations.fps`.

    Example:
        >>> RandomChunks(TensorDict({"action": torch.ones(9, 4, 2)}, [9])).draw(20).batch_size
        torch.Size([9])
    """

    def __init__(self, chunks: TensorDictBase, fps: float | None = None) -> None:
        self.chunks, self._fps = chunks, fps

    @property
    def fps(self) -> float | None:
        return self._fps

    @property
    def entries(self) -> set[str]:
        return set(self.chunks.keys())

    def __len__(self) -> int:
        return len(self.chunks)

    def draw(self, size: int) -> TensorDictBase:
        size = min(size, len(self.chunks))
        # drawn on the host, and moved once instead of for each entry
        rows = torch.randint(len(self.chunks), (size,)).to(self.chunks.device)
        return sub_dict(self.chunks, rows)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass


def random_chunks(
    policy: FlowPolicy,
    table: Demonstrations,
    burn_in: int | None = None,
    recorded: Demonstrations | None = None,
) -> ChunkSource:
    """Return the chunks of demonstrations in memory, with their histories for a memory.

    Args:
        policy: The cloned policy.
        table: Steps with its `model_input`.
        burn_in: See `ChunksWithHistory`.
        recorded: The same steps as they were recorded, for a status head.
    """
    chunks = table.chunks(policy.chunk_shape[0])
    if recorded is not None:
        chunks = with_status_rows(policy, recorded, chunks)
    if policy.has_memory:
        return ChunksWithHistory(chunks, table, policy, burn_in)
    return RandomChunks(chunks, table.fps)


def chunk_source(
    policy: FlowPolicy, path: Path, data: DataConfig | None = None, burn_in: int | None = None
) -> ChunkSource:
    """Return the chunks of demonstrations for cloning.

    A dataset that fits into `memory_gib` is held in memory, and a larger one is streamed.

    Args:
        policy: Preprocesses the observations.
        path: File of demonstrations, folder of a dataset, or name on the hub.
        data: Features of a dataset.
        burn_in: See `ChunksWithHistory`, for a policy with a memory.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or does not match the policy, or the policy has a memory and
            the dataset does not fit into `memory_gib`.
    """
    if is_file_of_ours(path):
        recorded = files.recorded_for(policy, path)
        return random_chunks(policy, recorded.preprocess(policy), burn_in, recorded)
    dataset = open_for(policy, path, data)
    needed = ChunkRows(dataset, policy).row_bytes * dataset.num_frames / GIB
    if needed > dataset.config.memory_gib:
        if policy.has_memory:
            raise ValueError(
                f"{path} needs {needed:.3g} GiB, more than memory_gib={dataset.config.memory_gib}, "
                "and a policy with a memory reads the decisions before each chunk, which a stream "
                "does not hold; raise memory_gib, or read fewer episodes (data.max_episodes)"
            )
        return ChunkStream(dataset, policy)
    return random_chunks(policy, _in_memory(dataset, policy)[0], burn_in)


def demonstrations_for(
    policy: FlowPolicy, path: Path, data: DataConfig | None = None
) -> Demonstrations:
    """Load and preprocess demonstrations for a policy, all into memory.

    Args and errors are those of `demonstrations_and_tasks`.
    """
    return demonstrations_and_tasks(policy, path, data)[0]


def demonstrations_and_tasks(
    policy: FlowPolicy, path: Path, data: DataConfig | None = None
) -> tuple[Demonstrations, Tensor]:
    """Load and preprocess demonstrations, and return the index of each step's task (N,) too.

    All are held in memory, and read once.

    Args:
        policy: Preprocesses the observations.
        path: File of demonstrations, folder of a dataset, or name on the hub.
        data: Features of a dataset.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, does not match the policy, or needs more than `memory_gib`.
    """
    if is_file_of_ours(path):
        recorded = files.recorded_for(policy, path)
        # without an index, all steps are of one task
        task = recorded.obs.get("task_id", torch.zeros_like(recorded.episode))
        return recorded.preprocess(policy), cast(Tensor, task)
    dataset = open_for(policy, path, data)
    first = _preprocess(policy, dataset, dataset.frames(0, 0, 1))
    needed = first.bytes() * dataset.num_frames / GIB
    if needed > dataset.config.memory_gib:
        raise ValueError(
            f"{path} needs {needed:.3g} GiB for {dataset.num_frames} frames, more than "
            f"memory_gib={dataset.config.memory_gib}; this algorithm holds its demonstrations in "
            "memory: raise memory_gib, or read fewer episodes (data.max_episodes)"
        )
    return _in_memory(dataset, policy)


def load_demonstrations(path: Path, data: DataConfig | None = None) -> Demonstrations:
    """Load states and actions of demonstrations, without the pictures of a dataset.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    if is_file_of_ours(path):
        return Demonstrations.load(path)
    dataset = EpisodeDataset(path, data)
    return _joined(dataset, [_all_frames(dataset, i) for i in range(len(dataset.episodes))])


def is_file_of_ours(path: Path) -> bool:
    """Return whether a path names a file of demonstrations and not a dataset.

    Example:
        >>> is_file_of_ours(Path("demonstrations.safetensors")), is_file_of_ours(Path("me/data"))
        (True, False)
    """
    return not is_dataset(path) and (path.is_file() or path.suffix == ".safetensors")


def open_for(policy: FlowPolicy, path: Path, data: DataConfig | None = None) -> EpisodeDataset:
    """Open a dataset with the cameras of a policy.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the dataset lacks a camera, or has other dimensions than the policy.
    """
    pictures = policy.preprocessor.config.pictures
    cameras = [] if pictures is None else list(pictures.cameras.values())
    dataset = EpisodeDataset(path, data, cameras)
    dataset.check_policy(policy.preprocessor.state_dim, policy.preprocessor.action_dim)
    return dataset


def _in_memory(dataset: EpisodeDataset, policy: FlowPolicy) -> tuple[Demonstrations, Tensor]:
    """Return a dataset with the policy's input as observations, and the tasks of its steps (N,).

    It is read one episode after the other.
    """
    parts: list[Frames] = []
    table: TensorDictBase | None = None
    first = 0
    for number in range(len(dataset.episodes)):
        frames = _all_frames(dataset, number)
        rows = _preprocess(policy, dataset, frames)
        if table is None:  # filled in place, because parts and their whole would need twice as much
            table = sub_dict(rows, slice(1)).expand(dataset.num_frames).clone()
        table[first : first + len(rows)] = rows
        first += len(rows)
        parts.append(replace(frames, obs={"task_id": frames.obs["task_id"]}))
    if table is None:
        raise ValueError(f"{dataset.name} holds no episode")
    joined = _joined(dataset, parts)
    task = cast(Tensor, joined.obs["task_id"])
    return replace(joined, obs={MODEL_INPUT: table[MODEL_INPUT]}), task


def _preprocess(policy: FlowPolicy, dataset: EpisodeDataset, frames: Frames) -> TensorDictBase:
    """Return the policy's input for frames (N)."""
    obs = TensorDict(frames.obs, [len(frames)]).select(*policy.obs_keys)
    preprocess = policy.observation_preprocessor(dataset.tasks)
    return preprocess(obs).select(MODEL_INPUT).cpu()


def _all_frames(dataset: EpisodeDataset, number: int) -> Frames:
    return dataset.frames(number, 0, dataset.episodes[number].length)


def _joined(dataset: EpisodeDataset, parts: list[Frames]) -> Demonstrations:
    """Return the frames of all episodes as one table."""
    lengths = torch.tensor([len(part) for part in parts])
    # recorded by all episodes, or by none
    rewards = [part.reward for part in parts if part.reward is not None]
    ended = [part.terminated for part in parts if part.terminated is not None]
    corrected = [part.intervention for part in parts if part.intervention is not None]
    solved = torch.tensor([dataset.succeeded(episode) for episode in dataset.episodes])
    return Demonstrations(
        obs={key: torch.cat([part.obs[key] for part in parts]) for key in parts[0].obs},
        action=torch.cat([part.action for part in parts]),
        episode=torch.arange(len(parts)).repeat_interleave(lengths),
        tasks=dataset.tasks,
        reward=torch.cat(rewards) if rewards else None,
        terminated=torch.cat(ended) if ended else None,
        success=solved.repeat_interleave(lengths),
        intervention=torch.cat(corrected) if corrected else None,
        reward_definition=dataset.reward_definition if rewards else files.SPARSE_REWARD,
        fps=dataset.required_fps,
        mask_padding=dataset.config.padding == "mask",
    )
