"""Replay memory of the off-policy learners: TorchRL's uniform buffer, for tensors only.

Strings are rejected, because TorchRL's storage silently returns the strings of other rows. Tasks
are stored as integers, and pictures as uint8. The buffer uses the global random numbers. A run that
restores them and the memory's state continues bit for bit.

Letters: B minibatch rows, N rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer

from pitune.policies.finetuning.memory import available_bytes, readable


class Replay:
    """A ring buffer of transitions. When it is full, the oldest are overwritten.

    Args:
        capacity: Greatest number of rows.
        device: Device of the rows and of the samples.
        folder: Folder for rows in files instead of in memory. Each memory makes a new folder in it,
            also in a resumed run. Saving a checkpoint copies the new rows through memory.

    Raises:
        ValueError: the capacity is below 1.

    Example:
        >>> replay = Replay(capacity=100)
        >>> replay.push(TensorDict({"action": torch.zeros(5, 2)}, batch_size=[5]))
        >>> len(replay), replay.sample(8)["action"].shape
        (5, torch.Size([8, 2]))
    """

    def __init__(
        self,
        capacity: int,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity} must be at least 1")
        storage: LazyTensorStorage | LazyMemmapStorage
        if folder is None:
            storage = LazyTensorStorage(capacity, device=device)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            scratch = mkdtemp(prefix="replay_", dir=folder)
            storage = LazyMemmapStorage(capacity, scratch_dir=scratch)
        self.capacity, self.device, self.folder = capacity, torch.device(device), folder
        self._buffer = TensorDictReplayBuffer(storage=storage)

    def __len__(self) -> int:
        return len(self._buffer)

    @property
    def num_pushed(self) -> int:
        """Number of pushed rows, with the overwritten ones."""
        return int(self._buffer.writer.state_dict()["_write_count"])

    @property
    def oldest(self) -> int:
        """Number of the oldest stored row among all that were pushed."""
        return self.num_pushed - len(self)

    def push(self, rows: TensorDictBase) -> None:
        """Add rows (B). Of more than `capacity` rows, only the last are stored.

        Raises:
            TypeError: an entry is not a tensor.
            ValueError: a number is not finite, or the full memory would not fit.
        """
        for key, value in rows.flatten_keys(".").items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"replay key {key!r} holds a {type(value).__name__}, only tensors are kept; "
                    "store an index into a table instead"
                )
        self._check_finite(rows)
        if len(rows):
            if not len(self):
                self._check_size(rows)
            self._buffer.extend(rows[-self.capacity :])

    def _check_finite(self, rows: TensorDictBase) -> None:
        """Raise ValueError if a number is not finite. All entries are read together."""
        floats = {
            key: value for key, value in rows.flatten_keys(".").items() if value.is_floating_point()
        }
        finite = [torch.isfinite(value).all() for value in floats.values()]
        if finite and not torch.stack(finite).all():
            key = next(key for key, value in floats.items() if not torch.isfinite(value).all())
            raise ValueError(
                f"replay key {key!r} is not finite; check the observations and rewards of the "
                "environment"
            )

    def _check_size(self, rows: TensorDictBase) -> None:
        """Raise ValueError if the full memory would not fit."""
        needed = self.capacity * sum(v[0].nbytes for v in rows.flatten_keys(".").values())
        available = available_bytes(self.device)
        if self.folder is None and needed > available:
            raise ValueError(
                f"capacity={self.capacity} decisions need {readable(needed)}, but "
                f"{readable(available)} are free; lower the capacity, or keep observations "
                "instead of encoded prefixes (keep_prefix, keep_context)"
            )

    def sample(self, num: int) -> TensorDictBase:
        """Return `num` rows (B), drawn uniformly with replacement."""
        if not len(self):
            raise RuntimeError("the replay memory is empty; push transitions before sampling")
        return self._buffer.sample(num).exclude("index").to(self.device)

    def all(self) -> TensorDictBase:
        """Return all stored rows, in the order of the ring buffer."""
        return self._buffer[:].exclude("index")

    def rows_from(self, first: int) -> dict[str, Tensor]:
        """Return the stored rows (N) from number `first` on, in the order of their pushes.

        Args:
            first: Counted over all pushed rows, `oldest` to `num_pushed`.

        Raises:
            ValueError: that row is not stored any more, or was never pushed.
        """
        if not self.oldest <= first <= self.num_pushed:
            raise ValueError(
                f"first={first} must be a stored row, {self.oldest} to {self.num_pushed}"
            )
        num = self.num_pushed - first
        if not num:
            return {}
        # rows (N) in the ring, of which the writer's cursor is the end
        cursor = int(self._buffer.writer.state_dict()["_cursor"])
        places = torch.arange(cursor - num, cursor) % self.capacity
        rows = self._buffer[places].exclude("index").flatten_keys(".")
        return {key: value.cpu().contiguous() for key, value in rows.items()}

    def writer_state(self) -> dict[str, int]:
        """Return the place of the next row, and the number of pushed ones."""
        return {key: int(value) for key, value in self._buffer.writer.state_dict().items()}

    def restore(self, writer: dict[str, int], num: int, parts: Iterable[dict[str, Tensor]]) -> None:
        """Replace the memory by the rows of several `rows_from`, oldest first.

        Args:
            writer: Result of `writer_state` at the end of these rows.
            num: Number of all rows.
            parts: Some rows each, at least one. They end with the last pushed row.

        Raises:
            ValueError: there are more rows than the capacity.
        """
        self._empty_for(num)
        # the ring as it was when the first of these rows was pushed
        count = writer["_write_count"] - num
        start = {"_cursor": (writer["_cursor"] - num) % self.capacity, "_write_count": count}
        self._buffer.writer.load_state_dict({**writer, **start})
        for part in parts:
            rows = TensorDict(part, batch_size=[len(next(iter(part.values())))])
            self._buffer.extend(rows.unflatten_keys("."))

    def _empty_for(self, num: int) -> None:
        """Remove all rows, to hold a number of saved ones. Raise ValueError if they do not fit."""
        if num > self.capacity:
            raise ValueError(
                f"the saved replay memory has {num} rows, capacity={self.capacity}; resume with "
                "the capacity that it was saved with"
            )
        self._buffer.empty()

    def state(self) -> dict[str, Any]:
        """Return the stored rows and the position of the next one, as tensors and numbers."""
        rows = self.all().flatten_keys(".") if len(self) else TensorDict(batch_size=[0])
        return {
            "rows": {key: value.cpu().clone() for key, value in rows.items()},
            "writer": self._buffer.writer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Replace the memory by the result of `state`.

        Raises:
            ValueError: the state has more rows than the capacity.
        """
        rows = state["rows"]
        num = len(next(iter(rows.values()))) if rows else 0
        self._empty_for(num)
        if num:
            self._buffer.extend(TensorDict(rows, batch_size=[num]).unflatten_keys("."))
        self._buffer.writer.load_state_dict(state["writer"])
