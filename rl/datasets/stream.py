"""Training chunks from a dataset on the disk, in bounded memory.

Every epoch cuts the episodes into windows of neighboring frames and shuffles the windows. The next
few windows form a block. A block is decoded, each window in one run of the video decoder, while the
block before it is drawn in random order. Two blocks are in memory at any time. Every frame is drawn
once per epoch. The order follows from a seed and the number of the block, so a stream resumes
exactly.
Letters: N rows, B minibatch rows, H action horizon, d robot action dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy
from pitune.policies.preprocessing.model_input import MODEL_INPUT
from pitune.rl.datasets.dataset import EpisodeDataset
from pitune.rl.experience.demonstrations import IS_PAD
from pitune.rl.experience.sub_dict import sub_dict

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Window:
    """Neighboring frames of an episode.

    Example:
        >>> len(Window(episode=0, start=32, stop=64, first=32))
        32
    """

    episode: int
    """Position of the episode among the chosen ones."""
    start: int
    """First frame in the episode."""
    stop: int
    """Frame after the last."""
    first: int
    """Number of the first frame among the frames of all chosen episodes."""

    def __len__(self) -> int:
        return self.stop - self.start


class ShuffledOrder:
    """The order in which a stream draws frames, without the frames.

    Args:
        lengths: Frames of each episode.
        window: Frames of a window.
        windows: Windows of a block.
        seed: Seed of the order.

    Example:
        >>> order = ShuffledOrder([5, 4], window=2, windows=2, seed=0)
        >>> order.num_blocks
        3
        >>> sorted(int(i) for block in range(3) for i in order.frames(block))
        [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """

    def __init__(self, lengths: Sequence[int], window: int, windows: int, seed: int) -> None:
        self.seed, self._windows, first = seed, list[Window](), 0
        for episode, length in enumerate(lengths):
            for start in range(0, length, window):
                stop = min(start + window, length)
                self._windows.append(
                    Window(episode=episode, start=start, stop=stop, first=first + start)
                )
            first += length
        self._size = windows

    @property
    def num_blocks(self) -> int:
        """Blocks in an epoch."""
        return -(-len(self._windows) // self._size)

    def windows(self, block: int) -> list[Window]:
        """Return the windows of a block. Blocks are numbered over all epochs."""
        epoch, part = divmod(block, self.num_blocks)
        order = self._random(epoch, 0).permutation(len(self._windows))
        return [self._windows[i] for i in order[part * self._size : (part + 1) * self._size]]

    def rows(self, block: int) -> Tensor:
        """Return the rows of a block's windows in the order of drawing (N,) int64."""
        num = sum(len(window) for window in self.windows(block))
        epoch, part = divmod(block, self.num_blocks)
        return torch.from_numpy(self._random(epoch, 1 + part).permutation(num))

    def frames(self, block: int) -> Tensor:
        """Return the numbers of a block's frames in the order of drawing (N,) int64."""
        windows = self.windows(block)
        frames = torch.cat([window.first + torch.arange(len(window)) for window in windows])
        return frames[self.rows(block)]

    def _random(self, epoch: int, use: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, epoch, use]))


class ChunkRows:
    """Makes training rows from the frames of windows.

    Args:
        data: The dataset.
        policy: Preprocesses the observations.

    Example:
        >>> rows = ChunkRows(data, policy)  # doctest: +SKIP
        >>> rows.row_bytes * data.num_frames  # doctest: +SKIP
        376320000
    """

    def __init__(self, data: EpisodeDataset, policy: FlowPolicy) -> None:
        self._data, self._policy = data, policy
        self._preprocess = policy.observation_preprocessor(data.tasks)
        self._mask = data.config.padding == "mask"
        self.row_bytes = self(Window(episode=0, start=0, stop=1, first=0)).bytes()
        """Memory of a row."""

    def __call__(self, window: Window) -> TensorDict:
        """Return the rows of a window (N)."""
        frames = self._data.frames(window.episode, window.start, window.stop)
        obs = TensorDict(frames.obs, [len(frames)]).select(*self._policy.obs_keys)
        inputs = self._preprocess(obs).select(MODEL_INPUT).cpu()

        # the next H actions, of which the last is repeated past the episode's end
        horizon = self._policy.chunk_shape[0]
        end = self._data.episodes[window.episode].length
        stop = min(window.stop + horizon - 1, end)
        action = frames.action
        if stop > window.stop:
            later = self._data.actions(window.episode, window.stop, stop)
            action = torch.cat([action, later])
        ahead = torch.arange(len(frames))[:, None] + torch.arange(horizon)  # (N, H)
        last = end - 1 - window.start
        entries: dict[str, Any] = {MODEL_INPUT: inputs[MODEL_INPUT]}
        entries["action"] = action[ahead.clamp(max=last)]
        if self._mask:
            entries[IS_PAD] = ahead > last
        return TensorDict(entries, [len(frames)])


class ChunkStream:
    """Chunks of a dataset with a policy's `model_input`, drawn in a shuffled order.

    Args:
        data: The dataset, with the policy's cameras.
        policy: Preprocesses the observations.
        seed: Seed of the order. It is drawn from PyTorch's generator by default.

    Raises:
        ValueError: the dataset does not fit the policy, or `memory_gib` does not hold two windows.

    Example:
        >>> stream = ChunkStream(data, policy)  # doctest: +SKIP
        >>> stream.draw(32)["action"].shape  # doctest: +SKIP
        torch.Size([32, 50, 7])
    """

    def __init__(self, data: EpisodeDataset, policy: FlowPolicy, seed: int | None = None) -> None:
        data.check_policy(policy.preprocessor.state_dim, policy.preprocessor.action_dim)
        self.data = data
        self._make_rows = ChunkRows(data, policy)
        config = data.config
        self.row_bytes = self._make_rows.row_bytes
        """Memory of a row."""
        # half of the memory, because the next block is decoded beside the present one
        window_bytes = config.window * self.row_bytes
        self._block_windows = int(config.memory_gib * GIB / 2) // window_bytes
        if self._block_windows < 1:
            raise ValueError(
                f"memory_gib={config.memory_gib} does not hold two windows of {config.window} "
                f"frames, {2 * window_bytes / GIB:.3g} GiB; raise it, or take a smaller "
                "data.window"
            )
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        self._set_order(seed)
        self._pool = ThreadPoolExecutor(1)
        self._block, self._position = 0, 0
        self._now: TensorDictBase | None = None
        self._free: TensorDictBase | None = None
        self._next: Future[TensorDictBase] | None = None

    @property
    def fps(self) -> float | None:
        return self.data.required_fps

    @property
    def entries(self) -> set[str]:
        return {MODEL_INPUT, "action"}

    def __len__(self) -> int:
        return self.data.num_frames

    @property
    def num_windows(self) -> int:
        """Windows in a block."""
        return self._block_windows

    def draw(self, size: int) -> TensorDictBase:
        """Return the next rows (B): `model_input`, `action` (B, H, d) and `action_is_pad` (B, H).

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged; the message names it, and the row.
        """
        parts: list[TensorDictBase] = []
        while size > 0:
            block = self._current()
            order = self.order.rows(self._block)
            chosen = order[self._position : self._position + size]
            parts.append(sub_dict(block, chosen))
            size -= len(chosen)
            self._position += len(chosen)
            if self._position == len(order):
                self._advance()
        rows: TensorDictBase = TensorDict.cat(parts)
        return rows

    def state(self) -> dict[str, Any]:
        """Return the place in the order, from which another stream continues."""
        return {"seed": self.order.seed, "block": self._block, "position": self._position}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state`."""
        self._drop()
        self._set_order(state["seed"])
        self._block, self._position = state["block"], state["position"]

    def close(self) -> None:
        """Stop decoding."""
        self._drop()
        self._pool.shutdown()

    def _set_order(self, seed: int) -> None:
        lengths = [episode.length for episode in self.data.episodes]
        self.order = ShuffledOrder(lengths, self.data.config.window, self._block_windows, seed)

    def _current(self) -> TensorDictBase:
        """Return the current block, and begin to decode the next one."""
        if self._now is None:
            here = self._load(self._block, None) if self._next is None else self._next.result()
            self._now, free, self._free = here, self._free, None
            self._next = self._pool.submit(self._load, self._block + 1, free)
        return self._now

    def _advance(self) -> None:
        # its memory is used again, because new blocks would fragment the process's
        self._now, self._free = None, self._now
        self._block, self._position = self._block + 1, 0

    def _drop(self) -> None:
        if self._next is not None and not self._next.cancel():
            self._next.exception()  # wait for it
        self._now = self._next = None

    def _load(self, block: int, table: TensorDictBase | None) -> TensorDictBase:
        """Decode and preprocess the windows of a block into a table, whose first rows they are.

        Args:
            block: Number of the block.
            table: Rows that may be overwritten, or None for new ones.
        """
        first = 0
        for window in self.order.windows(block):
            rows = self._make_rows(window)
            if table is None:
                num = self._block_windows * self.data.config.window
                table = sub_dict(rows, slice(1)).expand(num).clone()
            table[first : first + len(rows)] = rows
            first += len(rows)
        if table is None:
            raise ValueError(f"{self.data.name} holds no frames")
        return table
