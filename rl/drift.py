"""Whether the ranks of a run still have the same weights, by a checksum of each tensor.

Ranks that came apart go on without an error, each with gradients that belong to none of them.

Letters: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pitune.rl import ranks


def checksums(state: Mapping[str, Tensor]) -> Tensor:
    """Return a number for each tensor (N,) int64, which changes with any of its bits.

    Parts of sharded tensors, which differ between ranks by design, have 0.
    """
    return torch.tensor([_checksum(value) for value in state.values()], dtype=torch.int64)


def _checksum(tensor: Tensor) -> int:
    if isinstance(tensor, DTensor) or tensor.is_meta or not tensor.numel():
        return 0
    # the bytes as 32-bit words, padded to a whole number of them
    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    pad = -len(data) % 4
    words = torch.cat([data, data.new_zeros(pad)]).view(torch.int32).long()
    place = torch.arange(1, len(words) + 1, device=words.device)
    return int((words * (2 * place + 1)).sum())  # odd factors, so that each bit counts


def drifted(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that differ between ranks."""
    if ranks.world() == 1:
        return []
    sums = checksums(state)
    differ = ranks.least(sums) != ranks.greatest(sums)
    return [name for name, flag in zip(state, differ.tolist(), strict=True) if flag]
