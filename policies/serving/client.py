"""A client of openpi's websocket protocol, with time limits, retries and clear errors.

Letters: H action horizon, d robot action dim.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from pitune.policies.serving.wire import WireError, pack, unpack
from pitune.ranges import NonNegativeInt, PositiveFloat, PositiveInt, Settings

Keys = Literal["openpi", "droid", "aloha", "lerobot"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RemoteOptions(Settings):
    """Settings of a policy behind a websocket, without its address.

    Example:
        >>> RemoteOptions().keys
        'openpi'
    """

    keys: Keys = "openpi"
    """Names of the observation's entries: `observation/state` and `observation/<camera>` (LIBERO
    and pitune), DROID's, ALOHA's or lerobot's."""
    execution_horizon: PositiveInt | None = None
    """h, executed actions of each chunk. The default is the server's own, or else its chunk."""
    timeout_seconds: PositiveFloat = 60.0
    """Longest time until an answer [s]. The first request may compile the server's policy."""
    retries: NonNegativeInt = 3
    """Further attempts after a lost connection, each after twice the time of the last one."""
    api_key_file: Path | None = None
    """Text file with the key that the server demands."""


@dataclass(frozen=True, kw_only=True)
class RemoteConfig(RemoteOptions):
    """Settings of a policy behind a websocket.

    Raises:
        ValueError: a setting is unknown or out of range, or the key's file is empty.

    Example:
        >>> RemoteConfig(uri="ws://127.0.0.1:8000").retries
        3
    """

    uri: str
    """Address, such as ws://127.0.0.1:8000."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.uri.startswith(("ws://", "wss://")):
            raise ValueError(f"uri={self.uri!r} must begin with ws:// or wss://")

    def headers(self) -> dict[str, str] | None:
        """Return the headers of the connection."""
        key = read_api_key(self.api_key_file)
        return None if key is None else {"Authorization": f"Api-Key {key}"}


def read_api_key(file: Path | None) -> str | None:
    """Return the key in a file, or None without a file.

    Raises:
        ValueError: the file is empty.
    """
    if file is None:
        return None
    key = file.read_text().strip()
    if not key:
        raise ValueError(f"{file} is empty; write the API key of the server into it")
    return key


class RemoteError(ValueError):
    """A server that cannot be reached, or that refuses a request.

    Example:
        >>> try:
        ...     RemoteClient(RemoteConfig(uri="ws://127.0.0.1:1", retries=0))
        ... except RemoteError as error:
        ...     print(str(error).partition(":1 ")[2].partition(":")[0])
        cannot be reached
    """


class RemoteClient:
    """One connection to a policy server, which is opened again after it was lost.

    A request changes nothing on the server, so it is sent again after a lost connection.

    Args:
        config: Address, time limit and retries.

    Attributes:
        metadata: The server's first message.
        waiting_seconds: Time spent in waiting for answers so far [s].

    Raises:
        RemoteError: the server cannot be reached, or refuses the key.

    Example:
        >>> client = RemoteClient(RemoteConfig(uri="ws://127.0.0.1:8000"))  # doctest: +SKIP
        >>> client.send({"observation/state": np.zeros(8), "prompt": "push"})  # doctest: +SKIP
        >>> client.receive()["actions"].shape  # doctest: +SKIP
        (50, 7)
    """

    def __init__(self, config: RemoteConfig) -> None:
        self.config = config
        self.waiting_seconds = 0.0
        self._stack = ExitStack()
        self._message: bytes | None = None
        self._unanswered = False
        self.metadata: dict[str, Any] = {}
        self._connection = self._retried(self._connect)

    def send(self, observation: Mapping[str, Any]) -> None:
        """Send an observation, whose answer `receive` returns.

        Raises:
            RemoteError: the server cannot be reached.
            ValueError: the observation has no form in the protocol.
        """
        self._message = pack(observation)
        if self._unanswered:
            # a late answer would be taken for this observation's
            self._connection = self._retried(self._connect)
        self._retried(self._send)
        self._unanswered = True

    def receive(self) -> dict[str, Any]:
        """Return the answer to the last observation.

        Raises:
            RemoteError: the server refuses the observation, answers nothing in time, or its answer
                holds no actions.
        """
        start = time.perf_counter()
        frame = self._retried(self._receive)
        self.waiting_seconds += time.perf_counter() - start
        self._unanswered = False
        if isinstance(frame, str):
            raise RemoteError(f"{self.config.uri} refused the observation: {frame.strip()}")
        try:
            answer = unpack(frame)
        except WireError as error:
            raise RemoteError(f"{self.config.uri} gave no valid answer: {error}") from error
        actions = answer.get("actions")
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or not actions.size:
            raise RemoteError(
                f"{self.config.uri} gave no action chunk (H, d): its answer has {sorted(answer)}"
            )
        if not np.isfinite(actions).all():
            raise RemoteError(f"{self.config.uri} gave actions that are not finite")
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._stack.close()

    def _send(self) -> None:
        if self._message is not None:
            self._connection.send(self._message)

    def _receive(self) -> str | bytes:
        try:
            return self._connection.recv(timeout=self.config.timeout_seconds)
        except TimeoutError as error:
            raise RemoteError(
                f"{self.config.uri} gave no answer within timeout_seconds="
                f"{self.config.timeout_seconds}; is it still compiling, or too slow?"
            ) from error

    def _connect(self) -> ClientConnection:
        """Open the connection in the place of the last one, and read the metadata.

        Raises:
            RemoteError: the server refuses the connection, or its metadata is invalid.
        """
        self._stack.close()
        connection = self._stack.enter_context(
            connect(
                self.config.uri,
                compression=None,
                max_size=None,
                open_timeout=self.config.timeout_seconds,
                additional_headers=self.config.headers(),
            )
        )
        try:
            frame = connection.recv(timeout=self.config.timeout_seconds)
            if isinstance(frame, str):
                raise RemoteError(f"{self.config.uri} refused the connection: {frame.strip()}")
            self.metadata = unpack(frame)
        except WireError as error:
            self._stack.close()
            raise RemoteError(f"{self.config.uri} gave no valid metadata: {error}") from error
        except Exception:
            self._stack.close()
            raise
        return connection

    def _retried(self, action: Callable[[], T]) -> T:
        """Return an action's result, after as many new connections as are allowed.

        Raises:
            RemoteError: all attempts failed.
        """
        pause = 0.1
        for attempt in range(self.config.retries + 1):
            try:
                if attempt and action != self._connect:
                    self._connection = self._connect()
                    # the lost connection took the observation with it
                    if action == self._receive:
                        self._send()
                return action()
            except InvalidStatus as error:
                cause: Exception = error
                refusal = _refusal(error)
                if error.response.status_code == 401:
                    break
            except (OSError, WebSocketException) as error:
                cause, refusal = error, f"cannot be reached: {error}; is the server running?"
            if attempt < self.config.retries:
                time.sleep(pause)
                pause *= 2
        raise RemoteError(f"{self.config.uri} {refusal}") from cause


def _refusal(error: InvalidStatus) -> str:
    """Return the reason for which a server refused a connection."""
    if error.response.status_code == 401:
        return "demands an API key, or another one than it was given"
    reason = (error.response.body or b"").decode(errors="replace").strip()
    return f"refused the connection with status {error.response.status_code}: {reason[:200]}"
