"""Encoded observations of a rollout that are too many for the device, in memory of the host.

The actor copies those of each decision to the host without waiting. A rollout holds them as an
entry of its own device, so it has none itself. Rows are chosen on the host, and those of a
minibatch are copied to the device together, one copy per entry. Beside an accelerator the memory
of both copies is pinned: a copy from it does not stop the host, and torch's allocator gives it to
nobody else before the copy is done.

Letters: N rows, E envs, T chunk decisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

PREFIX = "prefix"
"""Key of the encoded observations."""


class HostPrefixes:
    """The encoded observations of a rollout while it is collected.

    Args:
        num_decisions: T.

    Example:
        >>> prefixes = HostPrefixes(2)
        >>> for _ in range(2):
        ...     prefixes.add(TensorDict({"keys": torch.zeros(3, 5)}, [3]))
        >>> prefixes.rollout()["keys"].shape
        torch.Size([3, 2, 5])
    """

    def __init__(self, num_decisions: int) -> None:
        self.num_decisions = num_decisions
        self._added = 0
        self._blocks: TensorDict | None = None  # (T, E), so that each decision is contiguous
        self._device = torch.device("cpu")

    def add(self, packed: TensorDict) -> None:
        """Copy the encoded observations of the next decision (E) to the host, without waiting.

        Raises:
            RuntimeError: all decisions are there already.
        """
        if self._added == self.num_decisions:
            raise RuntimeError(
                f"the rollout has num_decisions={self.num_decisions} decisions, and the actor took "
                "another one; collect with one `HostPrefixes` per rollout"
            )
        if self._blocks is None:
            self._device = next(iter(packed.values(True, True))).device
            self._blocks = _empty_like(packed, self.num_decisions, self._device)
        for key in packed.keys(True, True):
            self._blocks[key][self._added].copy_(packed[key], non_blocking=True)
        self._added += 1

    def rollout(self) -> TensorDict:
        """Return the encoded observations (E, T), after their copies are done.

        Raises:
            RuntimeError: decisions are missing.
        """
        if self._blocks is None or self._added < self.num_decisions:
            raise RuntimeError(
                f"the rollout has num_decisions={self.num_decisions} decisions, and the actor took "
                f"{self._added}; collect a whole rollout"
            )
        if self._device.type != "cpu":
            torch.get_device_module(self._device).synchronize(self._device)
        return self._blocks.transpose(0, 1)  # (T, E) -> (E, T)


def _empty_like(packed: TensorDict, num: int, device: torch.device) -> TensorDict:
    """Return memory of the host for some copies of rows (N), as a table (num, N)."""
    blocks = TensorDict(batch_size=[num, *packed.batch_size], device="cpu")
    for key in packed.keys(True, True):
        value = packed[key]
        blocks[key] = _host_memory((num, *value.shape), value.dtype, device)
    return blocks


def _host_memory(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory of the host, pinned if a CUDA device is to copy from or to it."""
    return torch.empty(*shape, dtype=dtype, pin_memory=device.type == "cuda")


def on_host(rows: TensorDictBase) -> TensorDictBase | None:
    """Return the encoded observations of rows (N) that stay on the host, or None."""
    if rows.device is not None:
        return None
    prefix = rows.get(PREFIX, None)
    kept = isinstance(prefix, TensorDictBase) and prefix.device == torch.device("cpu")
    return prefix if kept else None


def device_of(rows: TensorDictBase) -> torch.device:
    """Return the device of the other entries of rows (N) with a prefix of the host."""
    device: torch.device = next(iter(rows.exclude(PREFIX).values(True, True))).device
    return device


def with_host_prefix(rows: TensorDictBase, prefix: TensorDictBase) -> TensorDictBase:
    """Return rows (N) with their encoded observations on the host."""
    rows = rows.copy().clear_device_()
    return rows.set(PREFIX, prefix.to("cpu"))


def on_device(rows: TensorDictBase, device: torch.device) -> TensorDictBase:
    """Return a copy of rows (N) on a device, with encoded observations of the host left there."""
    prefix = on_host(rows)
    if prefix is None:
        return rows.to(device).copy()
    return with_host_prefix(rows.exclude(PREFIX).to(device), prefix)


def placed_as(rows: TensorDictBase, others: TensorDictBase) -> TensorDictBase:
    """Return rows (N) of the host with each entry where that of other rows is."""
    if on_host(others) is None:
        return rows
    return with_host_prefix(rows.to(device_of(others)), rows.select(PREFIX)[PREFIX])


def select_rows(rows: TensorDictBase, index: Any) -> Any:
    """Return `rows[index]`, of which encoded observations of the host are chosen there.

    Args:
        rows: Rows (N, ...).
        index: Rows, as an index of a tensor. It is copied to the host, or to the rows' device.
    """
    prefix = None if isinstance(index, str) else on_host(rows)
    if prefix is None:
        return rows[index]
    here, there = _moved(index, device_of(rows)), _moved(index, torch.device("cpu"))
    chosen: TensorDictBase = rows.exclude(PREFIX)[here]
    return chosen.set(PREFIX, prefix[there])


def _moved(index: Any, device: torch.device) -> Any:
    """Return an index with its tensors on a device."""
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(part.to(device) if isinstance(part, Tensor) else part for part in parts)


def fetched(rows: TensorDictBase) -> TensorDictBase:
    """Return rows (N) whose encoded observations are beside their other entries."""
    prefix = on_host(rows)
    if prefix is None:
        return rows
    return rows.copy().set(PREFIX, to_device(prefix, device_of(rows)))


def to_device(prefix: TensorDictBase, device: torch.device) -> TensorDictBase:
    """Return encoded observations (N) on a device, by one copy per entry that nobody waits for."""
    if device.type == "cpu" or prefix.device == device:
        return prefix
    moved = TensorDict(batch_size=prefix.batch_size, device=device)
    for key in prefix.keys(True, True):
        value = prefix[key]
        if value.device.type == "cpu" and not value.is_pinned():
            value = _host_memory(value.shape, value.dtype, device).copy_(value)
        moved[key] = value.to(device, non_blocking=True)
    return moved


def minibatches(batch: TensorDictBase, rows: Sequence[Tensor]) -> Iterator[TensorDictBase]:
    """Yield the minibatches of some rows (B) of a batch, with their encoded observations.

    Rows of the host are chosen with indices that are read once for all minibatches.

    Args:
        batch: Decisions (B).
        rows: Row indices of each minibatch, on the device.
    """
    prefix = on_host(batch)
    if prefix is None or not rows:
        yield from (batch[part] for part in rows)
        return
    rest, device = batch.exclude(PREFIX), device_of(batch)
    indices = torch.cat(list(rows)).cpu().split([len(part) for part in rows])
    for part, index in zip(rows, indices, strict=True):
        minibatch = rest[part]
        yield minibatch.set(PREFIX, _gathered(prefix, index, device))


def _gathered(prefix: TensorDictBase, index: Tensor, device: torch.device) -> TensorDictBase:
    """Return some rows of encoded observations on a device."""
    chosen = TensorDict(batch_size=[len(index)], device="cpu")
    for key in prefix.keys(True, True):
        value = prefix[key]
        memory = _host_memory((len(index), *value.shape[1:]), value.dtype, device)
        chosen[key] = torch.index_select(value, 0, index, out=memory)
    return to_device(chosen, device)
