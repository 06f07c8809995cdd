"""Clients that misbehave, beside those that a benchmark of serving measures.

They send malformed messages, leave while their request is computed, and leave sockets half open.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from pitune.policies.serving.wire import pack

KINDS = ("cut off", "noise", "text", "not finite", "wrong shape", "wrong type", "huge")
_HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Disturbance:
    """A thread of clients that misbehave in turn, spread over the time of a measurement.

    Args:
        port: Port of the server on this machine.
        observation: A valid observation, which is damaged in several ways.
        max_message_mib: Largest message that the server takes [MiB].
        seconds: Time of the measurement [s].
        num_malformed: Malformed messages.
        num_killed: Clients that leave in mid-request.
        num_half_open: Sockets that connect and are silent from then on.

    Attributes:
        num_refused: Malformed messages that got an error or closed their connection.

    Example:
        >>> with Disturbance(8000, observation, 64.0, seconds=60.0) as crowd:  # doctest: +SKIP
        ...     measure()
        >>> crowd.num_refused  # doctest: +SKIP
        200
    """

    def __init__(
        self,
        port: int,
        observation: Mapping[str, Any],
        max_message_mib: float,
        seconds: float,
        num_malformed: int = 200,
        num_killed: int = 50,
        num_half_open: int = 10,
    ) -> None:
        self.port, self.observation = port, observation
        self.huge = bytes(int(max_message_mib * 2**20) + 1)
        self.num_malformed, self.num_killed = num_malformed, num_killed
        self.num_half_open, self.num_refused = num_half_open, 0
        # a part of the time is left for the last answers
        self._pause = 0.8 * seconds / max(1, num_malformed)
        self._rng = np.random.default_rng(0)
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Disturbance:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if any(exception):
            self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def summary(self) -> str:
        """Return the number of clients that misbehaved.

        Raises:
            ValueError: a malformed message was answered with actions.
        """
        if self.num_refused != self.num_malformed:
            raise ValueError(
                f"only {self.num_refused} of {self.num_malformed} malformed messages were refused"
            )
        return (
            f"{self.num_malformed} malformed messages refused, {self.num_killed} clients left in "
            f"mid-request, {self.num_half_open} half-open sockets"
        )

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                self._disturb(stack)
        except BaseException as error:  # for the thread that waits
            self._error = error

    def _disturb(self, sockets: ExitStack) -> None:
        valid = pack(self.observation)
        for number in range(self.num_malformed):
            if self._stop.wait(self._pause):
                return
            # each kind of disturbance has its share of the turns
            if _is_due(number, self.num_half_open, self.num_malformed):
                opened = sockets.enter_context(socket.create_connection(("127.0.0.1", self.port)))
                opened.sendall(_HANDSHAKE)
            if _is_due(number, self.num_killed, self.num_malformed):
                with self._connected() as lost, suppress(ConnectionClosed):
                    lost.send(valid)
                    lost.socket.shutdown(socket.SHUT_RDWR)
            self.num_refused += self._is_refused(self._malformed(number, valid))

    def _connected(self) -> ClientConnection:
        return connect(f"ws://127.0.0.1:{self.port}", compression=None, max_size=None)

    def _is_refused(self, message: bytes | str) -> bool:
        """Send a malformed message, and return whether it got an error."""
        # a connection of its own, because a huge message closes it
        with self._connected() as bad:
            bad.recv(timeout=60)  # metadata
            try:
                bad.send(message)
                return isinstance(bad.recv(timeout=60), str)
            except ConnectionClosed:
                return True

    def _malformed(self, number: int, valid: bytes) -> bytes | str:
        """Return a message that is not an observation of the policy."""
        kind, rng = KINDS[number % len(KINDS)], self._rng
        if kind == "cut off":
            return valid[: int(rng.integers(len(valid)))]
        if kind == "noise":
            return rng.bytes(int(rng.integers(1, 200)))
        if kind == "text":
            return "give me actions"
        if kind == "huge":
            return self.huge
        # a valid message with a damaged state
        damaged = dict(self.observation)
        arrays = [key for key, value in damaged.items() if isinstance(value, np.ndarray)]
        state = next(key for key in arrays if damaged[key].ndim == 1)
        values: dict[str, Any] = {
            "not finite": np.full_like(damaged[state], np.nan, dtype=np.float64),
            "wrong shape": np.zeros(len(damaged[state]) + 1),
            "wrong type": "seven",
        }
        return pack({**damaged, state: values[kind]})


def open_files(process: psutil.Process, expected: int) -> int:
    """Return the open files of a server, as soon as they are as few as expected or after 60 s.

    A half-open socket is closed by the keep-alive, up to twice `ping_seconds` later.
    """
    end = time.perf_counter() + 60
    while process.num_fds() > expected and time.perf_counter() < end:
        time.sleep(0.2)
    return process.num_fds()


def _is_due(number: int, share: int, total: int) -> bool:
    """Return whether one of `share` events falls on a turn of `total`.

    Example:
        >>> [number for number in range(6) if _is_due(number, 2, 6)]
        [2, 5]
    """
    return (number + 1) * share // total > number * share // total
