"""Children of the test process: they can be killed and signalled, and import nothing again."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Child:
    """A forked process that runs a function, with its output in a file.

    Its signals have the handlers of a command in a terminal, also where the tests run under `nohup`
    or in the background of a shell.
    """

    def __init__(self, function: Callable[[], Any], log: Path) -> None:
        self.log = log
        self.pid = os.fork()
        if self.pid == 0:
            self._run(function)

    def _run(self, function: Callable[[], Any]) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        # pytest has put streams of its own in their places
        sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, closefd=False) for n in (1, 2))
        code: Any = 0
        try:
            function()
        except SystemExit as stopped:
            code = stopped.code or 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            code = 99
        os._exit(code if isinstance(code, int) else 98)

    def wait(self, seconds: float = 120.0) -> int:
        """Return the exit code, negative for a signal, and kill a child that takes too long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        raise TimeoutError(self.output())

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        """Wait until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                os.kill(self.pid, 9)
                raise TimeoutError(self.output())
            time.sleep(0.01)

    def output(self) -> str:
        """Return standard output and standard error so far."""
        return self.log.read_text() if self.log.exists() else ""
