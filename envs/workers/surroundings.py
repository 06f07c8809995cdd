"""The global state around the code of an environment: random generators, folder, settings.

User code draws from global generators, seeds them with constants, changes the working directory or
warning filters, and calls `sys.exit`. None of this may reach another environment or the trainer:

- Every sub-environment has generators and a working directory of its own. They are loaded before
  its code runs and stored afterwards, so its numbers do not depend on the other environments of its
  process, and so not on the number of workers.
- In the trainer's process the trainer's own generators, directory, signal handlers and settings are
  put back after every call, and `os._exit` and `os.abort` raise instead of ending the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch


class BreakdownError(RuntimeError):
    """The code of an environment raised; the message is its traceback.

    Example:
        >>> try:
        ...     with user_code():
        ...         sys.exit("no license")
        ... except BreakdownError as error:
        ...     print(str(error).splitlines()[-1])
        SystemExit: no license
    """


@contextlib.contextmanager
def user_code() -> Iterator[None]:
    """Turn everything that is raised inside, also `SystemExit`, into `BreakdownError`.

    Ctrl-C is the exception, because it is meant for the whole process.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BreakdownError(traceback.format_exc()) from error


@dataclass(frozen=True, eq=False)
class Generators:
    """The state of the global generators of Python, numpy and torch, and the working directory.

    Example:
        >>> before = Generators.capture()
        >>> seed_generators(0)
        >>> first = random.random()
        >>> before.load()
    """

    python: Any
    numpy: Any
    """The bit generator, which is exchanged as an object: its state is expensive to copy."""
    cpu: torch.Tensor
    """Of torch."""
    cuda: list[torch.Tensor]
    """One state per device, empty before CUDA is used."""
    folder: str | None
    """None if the directory was removed."""

    @classmethod
    def capture(cls) -> Generators:
        """Return the present state."""
        folder = None
        with contextlib.suppress(OSError):
            folder = os.getcwd()
        return cls(
            random.getstate(),
            np.random.get_bit_generator(),  # type: ignore[attr-defined]
            torch.get_rng_state(),
            torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            folder,
        )

    def load(self) -> None:
        """Make this state the present one. Numpy's cached normal draw is dropped."""
        random.setstate(self.python)
        np.random.set_bit_generator(self.numpy)  # type: ignore[attr-defined]
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        if self.folder is not None:
            with contextlib.suppress(OSError):
                os.chdir(self.folder)


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch.

    Args:
        seed: In [0, 2^32).
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    # torch.manual_seed seeds every kind of device, which takes 100 times as long
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class Surroundings:
    """Global state of several sub-environments, one at a time.

    Example:
        >>> surroundings = Surroundings(2, shared=True)
        >>> with surroundings.borrowed():
        ...     surroundings.enter(0, seed=5)
        ...     first = random.random()
        ...     surroundings.enter(1, seed=5)
        ...     second = random.random()
        >>> first == second
        True

    Args:
        num_envs: Number of sub-environments.
        shared: Whether the process belongs to a trainer, whose state must not change.
    """

    def __init__(self, num_envs: int, *, shared: bool) -> None:
        self._own: list[Generators | None] = [None] * num_envs
        self._loaded: int | None = None
        self._folder = os.getcwd()
        self._settings = Settings() if shared else None
        self._shared = shared

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """Run user code inside. Each sub-environment must `enter` before its code runs."""
        if self._settings is None:
            try:
                yield
            finally:
                self._store()
            return
        outer, cached = Generators.capture(), np.random.get_state()  # noqa: NPY002
        try:
            with self._settings.borrowed():
                yield
        finally:
            self._store()
            outer.load()
            np.random.set_state(cached)  # noqa: NPY002

    def enter(self, row: int, seed: int | None = None) -> None:
        """Load the state of a sub-environment, and seed its generators where a seed is given."""
        self._store()
        own = self._own[row]
        if own is None:
            # bits of its own, so that seeding them does not touch those of another
            bits = np.random.MT19937(0)
            np.random.set_bit_generator(bits)  # type: ignore[attr-defined]
            os.chdir(self._folder)
        else:
            own.load()
        self._loaded = row
        if seed is not None:
            seed_generators(seed)

    def _store(self) -> None:
        """Store the state of the sub-environment that ran last."""
        if self._loaded is not None:
            self._own[self._loaded] = Generators.capture()
        self._loaded = None


Setting = tuple[Callable[[], Any], Callable[[Any], Any]]


def _set_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()  # forgets which warnings were shown under the old filters
    warnings.filters[:] = filters  # type: ignore[index]


def _set_streams(streams: tuple[Any, Any, Any]) -> None:
    sys.stdin, sys.stdout, sys.stderr = streams


def _set_grad(mode: bool) -> None:
    torch.set_grad_enabled(mode)


SETTINGS: tuple[Setting, ...] = (
    (lambda: list(warnings.filters), _set_filters),
    (lambda: (sys.stdin, sys.stdout, sys.stderr), _set_streams),
    (lambda: sys.excepthook, lambda hook: setattr(sys, "excepthook", hook)),
    (lambda: logging.root.manager.disable, logging.disable),
    (np.geterr, lambda kinds: np.seterr(**kinds)),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, _set_grad),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
)
"""Settings of a process that user code may change: how to read and how to write each."""
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Settings:
    """The settings of the trainer's process and those that user code has made for itself.

    Example:
        >>> settings = Settings()
        >>> with settings.borrowed():
        ...     torch.set_default_dtype(torch.float64)
        >>> torch.get_default_dtype()
        torch.float32
        >>> with settings.borrowed():
        ...     torch.get_default_dtype()
        torch.float64
    """

    def __init__(self) -> None:
        self._inner: dict[int, Any] = {}

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """Use the settings of the user code inside, and put the trainer's back."""
        outer = [read() for read, _ in SETTINGS]
        for index, value in self._inner.items():
            if value != outer[index]:
                SETTINGS[index][1](value)
        try:
            with _handlers_kept(), _exits_refused():
                yield
        finally:
            for index, (read, write) in enumerate(SETTINGS):
                value = read()
                self._inner.pop(index, None)
                if value != outer[index]:
                    self._inner[index] = value
                    write(outer[index])


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put the handlers of signals back. Only the main thread can have changed them."""
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in SIGNALS} if is_main else {}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextlib.contextmanager
def _exits_refused() -> Iterator[None]:
    """Make `os._exit` and `os.abort` raise in this process, but not in children that it forks."""
    kept, process = (os._exit, os.abort), os.getpid()

    def refuse(name: str, leave: Callable[..., NoReturn]) -> Callable[..., NoReturn]:
        def call(*arguments: Any) -> NoReturn:
            if os.getpid() != process:
                leave(*arguments)
            raise RuntimeError(f"the environment called os.{name}{arguments}")

        return call

    os._exit, os.abort = refuse("_exit", os._exit), refuse("abort", os.abort)
    try:
        yield
    finally:
        os._exit, os.abort = kept
