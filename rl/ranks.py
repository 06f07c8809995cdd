"""Several processes that train one policy, one on each accelerator, started by torchrun.

Each process is a *rank* with environments and random numbers of its own. A number that all ranks
must agree on goes through a function of this module. In a single process each function returns its
argument, or computes the same operations as without it, so that a run is the same bit for bit.

The ranks stay equal without copying weights: they start from the same weights, and each gradient
step applies the same mean gradient. `pitune.rl.drift` compares them.

Letters: N rows.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies.host_prefixes import placed_as
from pitune.rl.experience.sub_dict import sub_dict

Value = TypeVar("Value")
TIMEOUT_MINUTES = 30
"""Longest time that a rank waits for the others [min]. A film or a large checkpoint of rank 0 must
fit into it."""


def launched() -> bool:
    """Return whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start(device: str) -> None:
    """Join the other ranks that torchrun started, by gloo on the CPU and nccl on CUDA.

    Each rank takes the CUDA device of its `LOCAL_RANK`. In a single process nothing happens.

    Args:
        device: Device of the policy.

    Raises:
        ValueError: the device names one accelerator for all ranks, or this machine has too few.
    """
    if not launched() or dist.is_initialized():
        return
    wait = timedelta(minutes=TIMEOUT_MINUTES)
    if torch.device(device).type != "cuda":
        dist.init_process_group("gloo", timeout=wait)
        return
    local, present = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if torch.device(device).index is not None:
        raise ValueError(
            f"device={device!r} would be that of all ranks; pass --device cuda, and each rank "
            "takes the device of its LOCAL_RANK"
        )
    if local >= present:
        raise ValueError(
            f"LOCAL_RANK={local} needs {local + 1} CUDA devices, this machine has {present}; pass "
            f"torchrun --nproc-per-node {max(1, present)}, or --device cpu"
        )
    torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl", timeout=wait)


def stop() -> None:
    """Leave the other ranks, at the end of a run."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Return the number of this process on its machine, which is that of its accelerator."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world() > 1 else 0


def devices() -> list[int]:
    """Return the CUDA devices of this process: all of the machine, or of several ranks its own."""
    if world() == 1 or not torch.cuda.is_available():
        return list(range(torch.cuda.device_count()))
    return [torch.cuda.current_device()]


def share(num: int) -> int:
    """Return this rank's part of a number of rows that is meant for all ranks, at least 1."""
    return num if world() == 1 else max(1, num // world())


def total(value: Value) -> Value:
    """Return the sum over the ranks of a number, or of a tensor entry by entry."""
    return _reduced(value, dist.ReduceOp.SUM)


def least(value: Value) -> Value:
    """Return the least over the ranks of a number."""
    return _reduced(value, dist.ReduceOp.MIN)


def greatest(value: Value) -> Value:
    """Return the greatest over the ranks of a number."""
    return _reduced(value, dist.ReduceOp.MAX)


def on_any(flag: bool) -> bool:
    """Return whether a flag is set on at least one rank."""
    return flag if world() == 1 else bool(greatest(int(flag)))


def _reduced(value: Any, how: Any) -> Any:
    if world() == 1:
        return value
    if isinstance(value, Tensor):
        # the reduction is in place, and the argument must stay
        copy = value.detach().clone()
        dist.all_reduce(copy, how)
        return copy
    dtype = torch.int64 if isinstance(value, int) else torch.float64
    number = torch.tensor(value, dtype=dtype)
    dist.all_reduce(number, how)
    return number.item()


def mean(values: Tensor) -> Tensor:
    """Return the mean of the entries of all ranks (scalar)."""
    if world() == 1:
        return values.mean()
    count = values.new_tensor(values.numel(), dtype=torch.float64)
    sums = total(torch.stack([values.detach().double().sum(), count]))
    return (sums[0] / sums[1]).to(values.dtype)


def variance(values: Tensor) -> Tensor:
    """Return the variance of the entries of all ranks (scalar), divided by their number."""
    if world() == 1:
        return values.var(correction=0)
    exact = values.detach().double()
    return mean((exact - mean(exact)).square()).to(values.dtype)


def std(values: Tensor, correction: int = 1) -> Tensor:
    """Return the standard deviation of the entries of all ranks (scalar).

    Args:
        values: Entries of this rank.
        correction: Subtracted from their number in the divisor.
    """
    if world() == 1:
        return values.std(correction=correction)
    # two passes, because the difference of squares would lose digits
    exact, num = values.detach().double(), total(values.numel())
    return (variance(exact) * num / max(1, num - correction)).sqrt().to(values.dtype)


def mean_number(value: float) -> float:
    """Return the mean over the ranks of a number."""
    return value if world() == 1 else total(float(value)) / world()


def of_first(value: Value) -> Value:
    """Return rank 0's value, which can be pickled, on all ranks."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: Value) -> list[Value]:
    """Return the values of all ranks, which can be pickled, in their order."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def gathered_numbers(values: list[float]) -> list[float]:
    """Return the numbers of all ranks, of which each has as many, in their order."""
    return values if world() == 1 else [v for part in gathered(values) for v in part]


def joined(rows: Tensor) -> Tensor:
    """Return the rows (N, ...) of all ranks, one after the other. Of several ranks, on the CPU."""
    return rows if world() == 1 else torch.cat(gathered(rows.cpu()))


def wait() -> None:
    """Wait until all ranks are here."""
    if world() > 1:
        dist.barrier()


def balanced(rows: TensorDictBase, group: str | None = None) -> TensorDictBase:
    """Return rows (N) of which each rank has the same number, by moving surplus ones.

    At most (ranks - 1) rows (or groups) of all are left out.

    Args:
        rows: Rows of this rank.
        group: Key of an integer index (N,). Rows with the same index move together, and the index
            is numbered anew.
    """
    if world() == 1:
        return rows
    # units that move: rows, or groups of rows with the same index
    index = torch.arange(len(rows)) if group is None else rows[group].cpu()
    names, unit = index.unique(return_inverse=True)
    counts = gathered(len(names))
    each = sum(counts) // world()

    # surplus units of all ranks, of which each takes as many as it lacks
    units = range(each, len(names))
    surplus = [sub_dict(rows, (unit == u).nonzero().flatten()).cpu() for u in units]
    moved = [part for parts in gathered(surplus) for part in parts]
    # this rank's part of the surplus follows those of the ranks before it
    lacking = [max(0, each - count) for count in counts]
    first = sum(lacking[: rank()])
    parts = [sub_dict(rows, (unit < each).nonzero().flatten())]
    for number, part in enumerate(moved[first : first + lacking[rank()]]):
        if group is not None:
            part[group] = torch.full_like(part[group], int(index.max() if len(index) else 0))
            part[group] += 1 + number
        parts.append(part.to(rows.device) if rows.device is not None else placed_as(part, rows))
    return TensorDict.cat(parts) if len(parts) > 1 else parts[0]
