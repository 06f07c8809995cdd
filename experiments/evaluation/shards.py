"""Processes that share the episodes of an evaluation, started by the command itself."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pitune.experiments.command_line.outside import IMPORTED
from pitune.experiments.evaluation.rows_file import ROWS
from pitune.experiments.runs.progress import screen

LOG = "log.txt"
"""Output of the process of a share, in its folder."""
WITH_PARENT = "PITUNE_SHARD_ENDS_WITH_ITS_PARENT"
"""Set in the environment of a share whose standard input is a pipe to its parent."""
LAST_LINES = 5
"""Lines of its log that the message about a failed share quotes."""


def run_shards(folder: Path, num: int, words: Sequence[str], total: int) -> None:
    """Start a process for each share, and wait until all have ended.

    Args:
        folder: Of the evaluation.
        num: Number of shares.
        words: Arguments of the command.
        total: Episodes of the whole evaluation, for the progress.

    Raises:
        ValueError: there are no arguments to repeat.
        RuntimeError: a process has failed. The others are stopped.
    """
    if not words:
        raise ValueError(
            f"shards={num} repeats a command line in other processes; use `pitune evaluate`, or "
            "call evaluate with shard='1/4', ..., each in a process of its own"
        )
    with _processes(folder, num, words) as processes, screen.task("evaluation", total) as task:
        while any(process.poll() is None for process in processes):
            task.update(_num_rows(folder))
            for number, process in enumerate(processes, 1):
                if process.poll() not in (None, 0):
                    raise RuntimeError(_failure(_share(folder, number, num), process.returncode))
            time.sleep(0.2)
        for number, process in enumerate(processes, 1):
            if process.returncode:
                raise RuntimeError(_failure(_share(folder, number, num), process.returncode))
        task.update(_num_rows(folder))


def _share(folder: Path, number: int, num: int) -> Path:
    return folder / "shards" / f"{number}_of_{num}"


@contextmanager
def _processes(
    folder: Path, num: int, words: Sequence[str]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yield the processes of all shares, and stop those that still run in the end."""
    imports = [word for name in IMPORTED for word in ("--import", name)]
    others = _without_shards(words)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(1, num + 1):
            share = _share(folder, number, num)
            share.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "pitune.experiments.evaluate", *imports]
            with (share / LOG).open("ab") as log:
                process = subprocess.Popen(
                    [*command, "--shard", f"{number}/{num}", *others],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, WITH_PARENT: "1"},
                )
            processes.append(process)
        yield processes
    finally:
        # all at once, and then their ends
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()


def _without_shards(words: Sequence[str]) -> list[str]:
    """Return arguments without `--shards`."""
    kept, following = [], False
    for word in words:
        if not following and word != "--shards" and not word.startswith("--shards="):
            kept.append(word)
        following = word == "--shards"
    return kept


def _num_rows(folder: Path) -> int:
    """Return the number of episodes that all processes have stored."""
    files = [folder / ROWS, *folder.glob(f"shards/*_of_*/{ROWS}")]
    return sum(file.read_bytes().count(b"\n") for file in files if file.is_file())


def _failure(share: Path, status: int | None) -> str:
    """Return the message about a share that has failed."""
    lines = (share / LOG).read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
    return (
        f"the share in {share} has failed (exit status {status}): {' / '.join(lines)}. The same "
        f"command goes on with the episodes that are missing; {share / LOG} has the whole output"
    )


def end_with_parent() -> None:
    """Let this process end when its parent does, however that ends, if it is a share.

    Its standard input is a pipe that the parent never writes to.
    """
    if not os.environ.pop(WITH_PARENT, ""):
        return

    def wait() -> None:
        while os.read(0, 1):
            continue
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
