"""The start and the end of a worker process, as a part of the operating system.

A worker leads a process group of its own, so that the processes that an environment starts end with
it. It may start such processes, although it is itself ended with the trainer.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.util
import os
import signal
import tempfile
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

MAX_FOLDER = 70
"""Longest name of the folder of a socket. Linux cuts the name of a socket at 108 bytes."""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def fork_server() -> ForkServerContext:
    """Return the context that starts workers.

    A fork server imports torch once for all workers, and it is never forked from a parent that has
    threads or a GPU.

    Raises:
        ValueError: there is no folder whose name is short enough for a socket.
    """
    keep_sockets_short()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pitune.envs.workers.serve"])
    return context


def keep_sockets_short() -> None:
    """Let multiprocessing keep its sockets in a folder with a short name, if TMPDIR's is long.

    Raises:
        ValueError: no such folder can be written.
    """
    if len(os.fsencode(tempfile.gettempdir())) <= MAX_FOLDER:
        return
    before = tempfile.tempdir
    for folder in SHORT_FOLDERS:
        if os.access(folder, os.W_OK | os.X_OK) and Path(folder).is_dir():
            tempfile.tempdir = folder
            try:
                multiprocessing.util.get_temp_dir()  # keeps its first answer
            finally:
                tempfile.tempdir = before
            return
    raise ValueError(
        f"TMPDIR={before} has {len(os.fsencode(before or ''))} bytes, but the name of a socket has "
        f"at most 108, and none of {SHORT_FOLDERS} can be written; set TMPDIR to a shorter folder, "
        "or use num_workers=0"
    )


def lead_group() -> None:
    """Make this process the leader of a process group, and let it start processes."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    # A daemon may have no children, but the trainer's end must still end this process.
    multiprocessing.current_process().daemon = False


def end_group() -> None:
    """Kill this process and all processes that its environments started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)


def kill_group(process: ForkServerProcess) -> None:
    """Kill a worker and all processes that its environments started."""
    if process.pid is not None:
        # also if the leader has died: the group lives as long as one of its members
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


@contextlib.contextmanager
def limit_to_one_thread() -> Iterator[None]:
    """Make a process that starts inside load its libraries with one thread each.

    A worker has work for one core, and more threads would compete with the other workers.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
