"""The decisions of a deployed policy, with marks.

Letters: N rows, H action horizon, A model action dim.
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
    """Entries of the decisions (N,), by name."""
