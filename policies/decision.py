"""The decisions of a deployed policy, with marks.

In shapes, `memory` is the number of memory tokens.
Letters: N rows, H action horizon, A model action dim, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

FAST_FAILED, STATUS = "fast_failed", "status"
"""Marks: FAST tokens that could not be decoded (N,) bool, and the status of the task (N,) int64."""


class Decision(NamedTuple):
    """Chunks, and what an evaluation should count about them.

    Example:
        >>> import torch
        >>> Decision(torch.zeros(3, 4, 2)).marks
        {}
    """

    chunk: Tensor
    """Chunks (N, H, A) [normalized action]."""
    marks: dict[str, Tensor] = {}  # noqa: RUF012 - never changed
    """Entries of the decisions (N, ...), by name."""


def memory_marks(written: Tensor | None) -> dict[str, Tensor]:
    """Return the memory that decisions wrote (N, memory, D) as an entry, none without a memory."""
    return {} if written is None else {"written_memory": written}
