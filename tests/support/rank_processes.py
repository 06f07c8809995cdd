"""Several ranks on this machine: forked processes that talk by gloo, with a time limit."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from forks import Child
from pitune.rl import ranks

SECONDS = 300.0
"""A hang fails the test after this time [s]."""


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def start_ranks(function: Callable[[], Any], world: int, folder: Path) -> list[Child]:
    """Fork `world` ranks that call a function and write its result into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    values = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(world):

        def work(rank: int = rank) -> None:
            os.environ |= {**values, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            torch.set_num_threads(1)
            ranks.start("cpu")
            torch.save(function(), folder / f"result_{rank}.pt")
            ranks.stop()

        children.append(Child(work, folder / f"log_{rank}.txt"))
    return children


def on_ranks(
    function: Callable[[], Any], world: int, folder: Path, seconds: float = SECONDS
) -> list[Any]:
    """Return the results of a function on `world` ranks.

    Raises:
        RuntimeError: a rank failed.
        TimeoutError: a rank hung.
    """
    children = start_ranks(function, world, folder)
    try:
        codes = [child.wait(seconds) for child in children]
    finally:
        for child in children:
            stop(child)
    if any(codes):
        raise RuntimeError("\n".join(child.output() for child in children))
    return [torch.load(folder / f"result_{r}.pt", weights_only=False) for r in range(world)]


def stop(child: Child) -> None:
    """Kill a rank that is still running."""
    try:
        os.kill(child.pid, 9)
        os.waitpid(child.pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
