"""An accelerator that is not there: a device that computes on the host and counts.

`torch.device("pretend")` is a backend of torch's own, written in Python. Its tensors hold their
numbers in a tensor of the host. Operations on them follow the rules of CUDA: tensors of two devices
do not mix, except for scalars and indices of the host. `count` records each read of the host, each
transfer and each synchronization, with the line of this project that caused it.

It does not test kernels, streams, memory or speed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretend"
ROOT = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent

Kind = Literal["sync", "to host", "later to host", "to device", "index"]
"""A wait for the device, a read of the host, a copy to the host that does not wait, a copy to the
device, an index from the host."""

SHAPED_BY_VALUES = frozenset(
    f"aten::{name}"
    for name in (
        "nonzero",
        "masked_select",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "bincount",
        "equal",
        "is_nonzero",
        "histc",
    )
)
"""Operations of CUDA that wait, because the shape of their result depends on values."""
INDEXED = frozenset(f"aten::{name}" for name in ("index", "index_put", "index_put_"))
"""Operations that take indices of the host, and wait for the number of entries of a mask."""


MADE = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step")
"""Operations that make a tensor, and need a kernel of their own: `torch.tensor` passes by the
dispatch of tensor classes and by the fallback, and `arange` resizes a tensor without entries."""


@dataclass
class Events:
    """The events of a part of a program.

    Example:
        >>> with count() as events:  # doctest: +SKIP
        ...     algorithm.update(rollout)
        >>> events.total("sync", "to host")  # doctest: +SKIP
        4
    """

    lines: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    """Number of events by kind and line of this project, `file:line`."""
    operations: Counter[str] = field(default_factory=Counter)
    """Number of operations on the device by name."""
    copied_bytes: Counter[Kind] = field(default_factory=Counter)
    """Size of the copies by kind [bytes]."""
    weight_casts: int = 0
    """Parameters that were converted to another dtype."""

    def total(self, *kinds: Kind) -> int:
        """Return the number of events of some kinds, or of all."""
        return sum(num for (kind, _), num in self.lines.items() if not kinds or kind in kinds)

    @property
    def waits(self) -> int:
        """Number of times that the host waits for the device."""
        return self.total("sync", "to host")

    def files(self, *kinds: Kind) -> dict[str, int]:
        """Return the number of events of some kinds by file, without the package's name."""
        found: Counter[str] = Counter()
        for (kind, line), num in self.lines.items():
            if kind in kinds:
                found[line.removeprefix("pitune/").partition(":")[0]] += num
        return dict(found)

    def text(self) -> str:
        """Return the lines with their events, the most frequent first."""
        rows = [f"{num:6} {kind:10} {line}" for (kind, line), num in self.lines.most_common()]
        return "\n".join(rows)


_open: list[Events] = []
"""Where events are counted now."""


@contextmanager
def count() -> Iterator[Events]:
    """Count the events while the context is open."""
    events = Events()
    _open.append(events)
    try:
        yield events
    finally:
        _open.remove(events)


class PretendTensor(Tensor):
    """A tensor of the device, with its numbers in `host`.

    Example:
        >>> torch.ones(2, device=device()).sum().item()
        2.0
    """

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, host: Tensor) -> PretendTensor:
        made: PretendTensor = Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(NAME, 0),
        )
        made.host = host.detach()
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PretendTensor({self.host})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert a tensor of a device to numpy; copy it to the host first")

    def __array__(self, *_: Any) -> Any:
        return self.numpy()

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.host = value.host  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _on_device(value: Any) -> bool:
    return isinstance(value, PretendTensor)


def _host(value: Any) -> Any:
    """Return the numbers of a tensor, and the host in the place of the device."""
    if isinstance(value, PretendTensor):
        return value.host
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    return value


def _wrap(value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, PretendTensor):
        return PretendTensor(value)
    return value


def _leaves(values: Any) -> list[Any]:
    found: list[Any] = []
    tree_map(found.append, values)
    return found


def _record(kind: Kind, num_bytes: int = 0) -> None:
    if not _open:
        return
    line = _line()
    for events in _open:
        events.lines[kind, line] += 1
        events.copied_bytes[kind] += num_bytes


def _line() -> str:
    """Return the innermost line of this project that is running."""
    frame = sys._getframe(2)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and not file.is_relative_to(SUPPORT):
            return f"{file.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the hosts' numbers, by the rules of CUDA."""
    name = func._schema.name
    for events in _open:
        events.operations[name] += 1
    if name == "aten::copy_":
        return _copy(*args, **kwargs)
    if name == "aten::_local_scalar_dense":
        _record("to host")
        return func(args[0].host)
    if name == "aten::_to_copy":
        return _to_copy(func, args, kwargs)
    if name in SHAPED_BY_VALUES:
        _record("sync")
    if name in INDEXED:
        _index(args)
        args = (args[0], tree_map(_indexable, args[1]), *args[2:])
    _check_devices(name, args, kwargs)
    result = func(*tree_map(_host, args), **tree_map(_host, kwargs))
    wrapped = tree_map(_wrap, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _indexable(index: Any) -> Any:
    if isinstance(index, Tensor) and not _on_device(index):
        return PretendTensor(index)
    return index


def _index(args: tuple[Any, ...]) -> None:
    for index in args[1]:
        if isinstance(index, Tensor):
            if not _on_device(index):
                _record("index")
            if index.dtype == torch.bool:
                _record("sync")


def _check_devices(name: str, args: Any, kwargs: Any) -> None:
    """Raise RuntimeError for tensors of the host, as CUDA does, except for scalars."""
    tensors = [value for value in _leaves((args, kwargs)) if isinstance(value, Tensor)]
    strangers = [value for value in tensors if not _on_device(value) and value.ndim]
    if strangers and any(map(_on_device, tensors)):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"{NAME}:0 and cpu! ({name})"
        )


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if _on_device(target) and not _on_device(source):
        _record("to device", source.nbytes)
    if _on_device(source) and not _on_device(target):
        _record("later to host" if non_blocking else "to host", source.nbytes)
    _host(target).copy_(_host(source))
    return target


def _to_copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    wanted = kwargs.get("device")
    leaves = wanted is not None and torch.device(wanted).type != NAME
    if leaves:
        _record("to host", args[0].nbytes)
    elif isinstance(args[0], torch.nn.Parameter) and kwargs.get("dtype") != args[0].dtype:
        for events in _open:
            events.weight_casts += 1
    result = func(*tree_map(_host, args), **tree_map(_host, kwargs))
    return result if leaves else PretendTensor(result)


def _made_on_device(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Make a tensor on the device: `empty` and others that no tensor of the device is given to."""
    result = func(*tree_map(_host, args), **tree_map(_host, kwargs))
    return tree_map(_wrap, result)


class _Module(_DummyBackendModule):
    """`torch.pretend`."""

    # the device draws from the host's random numbers, so it has no state of its own
    def get_rng_state(self, _: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, _: Any = None) -> None:
        """Do nothing."""

    def synchronize(self, _: Any = None) -> None:
        # tensordict waits after a copy to this device, and not after one to CUDA
        if "tensordict" not in sys._getframe(1).f_code.co_filename:
            _record("sync")


def _operation(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


_library: list[torch.library.Library] = []


def device() -> torch.device:
    """Return the device, which torch gets to know in the first call."""
    if not _library:
        _setup_privateuseone_for_python_backend(NAME, _Module())
        rest, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
        rest.fallback(_made_on_device, "PrivateUse1")
        for name in MADE:
            aten.impl(name, partial(_made_on_device, _operation(name)), "PrivateUse1")
        aten.impl("copy_", _copy, "PrivateUse1")
        _library.extend((rest, aten))
    return torch.device(NAME, 0)
