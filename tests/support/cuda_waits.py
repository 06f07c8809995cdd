"""Count the waits of the host for CUDA, by the line of this repository that causes each."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve()


def _line() -> str:
    """Return the innermost line of this repository on the stack."""
    for frame in reversed(traceback.extract_stack()):
        file = Path(frame.filename).resolve()
        if file != HERE and ROOT in file.parents:
            return f"{file.relative_to(ROOT)}:{frame.lineno}"
    return "elsewhere"


@contextmanager
def cuda_waits() -> Iterator[Counter[str]]:
    """Give the waits by line, as CUDA's own debug mode reports them."""
    found: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            found[_line()] += 1

    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
