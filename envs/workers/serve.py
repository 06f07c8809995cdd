"""The loop inside a worker process.

A request is `(number, method of SubEnvs, arguments, keyword arguments)` and a reply is
`(number, result)`. The first request to a process carries the arguments of `SubEnvs`, and its
result is None.
"""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from pitune.envs.workers.launch import end_group, lead_group
from pitune.envs.workers.sub_envs import SubEnvs


@dataclass(frozen=True)
class Failure:
    """The result of a request that raised.

    Example:
        >>> try:
        ...     raise ValueError("speed=-1 must be at least 0; raise it")
        ... except ValueError as error:
        ...     failure = Failure.of(error)
        >>> failure.message, failure.wrong_value
        ('speed=-1 must be at least 0; raise it', True)
    """

    message: str
    """Text of the exception."""
    traceback: str
    """Traceback of the exception."""
    wrong_value: bool
    """Whether it was a ValueError, whose message is meant for the caller who passed the value."""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return the exception that is being handled as text, because not every one pickles."""
        return cls(str(error), traceback.format_exc(), isinstance(error, ValueError))


def serve(connection: Connection, environment: Mapping[str, str]) -> None:
    """Handle requests until one asks to close or until the parent is gone.

    Args:
        connection: To the parent.
        environment: The parent's environment variables. Those of the fork server may be older.
    """
    lead_group()
    # one thread, because the workers share the cores
    os.environ.update(environment, OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole process group, but only the parent decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sub_envs: SubEnvs | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, method, arguments, settings = connection.recv()
            result: Any = None
            try:
                if sub_envs is None and method != "close":
                    # the first request makes the sub-environments
                    sub_envs = SubEnvs(*arguments, **settings)
                elif sub_envs is not None:
                    result = getattr(sub_envs, method)(*arguments, **settings)
            except BaseException as error:
                result = Failure.of(error)
            connection.send((number, result))
            if method == "close":
                break
    end_group()
