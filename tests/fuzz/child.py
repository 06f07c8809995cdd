"""Run a command of a case in a forked child, which has all imports already, and judge its end."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 900.0
"""Longest time of a case on a busy machine [s]."""
MEMORY = 12 * 2**30
"""Address space of a case, so that a size without sense fails at once [bytes]."""


@dataclass(frozen=True)
class Ending:
    """The end of a command.

    Example:
        >>> Ending(2, "", "error: no run in x").status
        2
    """

    status: int
    """Exit status, or the negative number of a signal; -9 after the time limit."""
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both outputs."""
        return self.out + self.err


def run_command(words: Sequence[str], folder: Path) -> Ending:
    """Run `pitune` with these words in a folder."""
    outputs = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
    process = os.fork()
    if not process:
        _become_command(words, folder, outputs)
    started, status = time.monotonic(), None
    while status is None:
        ended, code = os.waitpid(process, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(code)
        elif time.monotonic() - started > SECONDS:
            os.killpg(process, signal.SIGKILL)  # its own group, see `_become_command`
        time.sleep(0.02)
    out, err = (file.read_text(errors="replace") for file in outputs)
    for file in outputs:
        file.unlink()
    return Ending(status, out, err)


def _become_command(words: Sequence[str], folder: Path, outputs: Sequence[Path]) -> None:
    """Run the command in this process, the child, and never return."""
    status = 70
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        for number, file in enumerate(outputs, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        status = _status_of(words)
    except BaseException as error:
        os.write(2, f"Traceback of the fuzz: {error!r}\n".encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _status_of(words: Sequence[str]) -> int:
    from pitune.experiments.command_line.main import main
    from pitune.experiments.runs.progress import screen

    screen.console.file = sys.stderr
    try:
        main(list(words))
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder; of a link, its target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"-> {os.readlink(path)}"
        elif path.is_file():
            code = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = code
    return found


def faults_of_text(ending: Ending) -> list[str]:
    """Return what the outputs show that no command may show."""
    faults = []
    if "Traceback" in ending.text:
        lines = [line for line in ending.err.splitlines() if line.strip()]
        faults.append(f"traceback: {lines[-1][:160] if lines else ''}")
    if ending.status < 0:
        faults.append("ran past its time" if ending.status == -9 else f"signal {-ending.status}")
    if ending.status > 0 and not ("error: " in ending.err or ending.out.strip()):
        faults.append(f"status {ending.status} without a message")
    return faults
