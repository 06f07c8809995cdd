"""A counter of copies from a device to the host, which works on the CPU too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("cpu", "numpy", "tolist", "item", "__array__", "__bool__", "__int__", "__float__")
"""Methods of a tensor that wait for its device and read it on the host."""
SHAPED_BY_VALUES = ("nonzero", "_local_scalar_dense", "masked_select", "_unique2", "unique_dim")
"""Operations that read a value on the host, or whose result has a shape that depends on values."""


class _Operations(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__.partition(".")[0]
        masks = [
            index
            for index in (args[1] if name in ("index", "index_put", "index_put_") else ())
            if index is not None and index.dtype == torch.bool
        ]
        if name in SHAPED_BY_VALUES or masks:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def host_copies(*others: tuple[type, str]) -> Iterator[list[str]]:
    """Give the list of all reads on the host while the context is open.

    Args:
        others: Further classes and names of their methods that read on the host.
    """
    found: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for kind, name in (*((Tensor, name) for name in READS), *others):
            patch.setattr(kind, name, _counted(getattr(kind, name), name, found))
        with _Operations(found):
            yield found


def _counted(method: Any, name: str, found: list[str]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        found.append(name)
        return method(*args, **kwargs)

    return call
