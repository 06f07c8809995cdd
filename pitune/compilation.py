"""Compiled forms of a policy's computations, by `torch.compile`.

A policy computes through a few functions: encode pictures and prompt, encode the state, evaluate
the velocity, sample a chunk, and the losses. `FlowPolicy.compiled` returns the compiled form of
each, or the function itself as long as nobody asked for compilation. Weights, their names and
checkpoints are those of the eager policy, because functions are compiled and not modules.

The number of rows is a variable of the compiled code, so the last minibatch or an evaluation of
another size compiles nothing anew. One row has a form of its own.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import time
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])

LOOP_LAYERS = 64
"""Greatest number of layers in a sampling loop that is compiled whole. Its compilation takes time
in proportion. The steps of a longer loop are compiled one by one."""
RECOMPILE_LIMIT = 64
"""Greatest number of forms of one function. Each has its own number of flow times, of rows (one or
many) and of trained weights."""


class Compilation:
    """Compiles functions when they are called first, and keeps their compiled forms.

    Copies of a policy share it, because the weights are arguments of the compiled code.

    Args:
        device: Device of the policy. On CUDA, functions without a gradient become CUDA graphs.
        backend: Of `torch.compile`. "eager" traces functions and computes as they do, for tests.

    Raises:
        RuntimeError: the machine has no C++ compiler.

    Example:
        >>> compilation = Compilation(torch.device("cpu"))  # doctest: +SKIP
        >>> compilation(torch.sin)(torch.zeros(3))  # doctest: +SKIP
        tensor([0., 0., 0.])
    """

    def __init__(self, device: torch.device, backend: str = "inductor") -> None:
        if backend == "inductor":
            check_compiler()
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
        self.backend, self._cuda_graphs = backend, device.type == "cuda"
        self._forms: dict[tuple[Any, bool], Callable[..., Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Compilation:
        return self

    def __call__(self, function: Function) -> Function:
        """Return the compiled form of a function of tensors with rows (N, ...)."""
        key = function, self._cuda_graphs and not torch.is_grad_enabled()
        if key not in self._forms:
            self._forms[key] = _compiled(*key, self.backend)
        return self._forms[key]  # type: ignore[return-value]


def compilable(method: Function) -> Function:
    """Let the `compilation` of an object, if it has one, compile the decorated method."""

    @wraps(method)
    def run(self: Any, *args: Any, **named: Any) -> Any:
        compilation: Compilation | None = self.compilation
        # a function inside a compiled one becomes part of it
        if compilation is None or torch.compiler.is_compiling():
            return method(self, *args, **named)
        return compilation(method)(self, *args, **named)

    return run  # type: ignore[return-value]


def _compiled(function: Callable[..., Any], cuda_graphs: bool, backend: str) -> Callable[..., Any]:
    """Return the compiled form of a function, which marks the rows of its arguments."""
    options: dict[str, Any] | None = None
    if backend == "inductor":  # with the random numbers of the eager function
        options = {"fallback_random": True, "triton.cudagraphs": cuda_graphs}
    compiled = torch.compile(function, backend=backend, options=options)

    def run(*args: Any, **named: Any) -> Any:
        mark_rows((args, named))
        if not cuda_graphs:
            return compiled(*args, **named)
        # the next replay of a graph overwrites its outputs
        torch.compiler.cudagraph_mark_step_begin()
        return torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, compiled(*args, **named))

    return run


def mark_rows(value: Any) -> None:
    """Mark the first dimension of all tensors as one whose length varies, unless it is 1.

    Args:
        value: A tensor, or tuples, lists, mappings and dataclasses of tensors. Other values are
            passed over.
    """
    if isinstance(value, Tensor):
        if value.ndim and value.shape[0] > 1:
            torch._dynamo.maybe_mark_dynamic(value, 0)
    elif isinstance(value, (tuple, list)):
        for part in value:
            mark_rows(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            mark_rows(part)
    elif is_dataclass(value):
        mark_rows(vars(value))


def check_compiler() -> None:
    """Check that the machine can compile.

    Raises:
        RuntimeError: it lacks a C++ compiler or the header files of Python.
    """
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        raise RuntimeError(
            f"compile=True needs a C++ compiler, and there is no {name!r} on the PATH; install one "
            "(apt install g++), name another in the variable CXX, or leave out --compile"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise RuntimeError(
            f"compile=True needs the header files of Python, and {header} does not exist; install "
            "them (apt install python3-dev), or leave out --compile"
        )


class CompileClock:
    """Counts compilations and their time, from its creation until it is stopped.

    Example:
        >>> clock = CompileClock()
        >>> clock.number, clock.seconds
        (0, 0.0)
        >>> clock.stop()
    """

    def __init__(self) -> None:
        self.number, self.seconds = 0, 0.0
        self._started = 0.0
        # imported when used: it takes a second
        from torch._dynamo.callback import callback_handler

        self._handler = callback_handler
        self._handler.register_start_callback(self._start)
        self._handler.register_end_callback(self._end)

    def stop(self) -> None:
        """Count no more."""
        self._handler.remove_start_callback(self._start)
        self._handler.remove_end_callback(self._end)

    def _start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.number += 1
        self.seconds += time.perf_counter() - self._started
