"""A policy server that speaks openpi's websocket protocol.

    client opens ws://host:port            server sends its metadata
    client sends an observation            server sends {"actions": (H, d), "policy_timing": ...}
    GET /healthz -> OK                     GET /metrics -> figures as text

A text frame is an error message. After bad input the connection stays open. After a fault of the
server it is closed with code 1011.
Source: openpi `src/openpi/serving/websocket_policy_server.py`.
Letters: H action horizon, A model action dim, d robot action dim.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import torch
from torch import Tensor
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response
from websockets.protocol import State

from pitune.policies.policy import FlowPolicy
from pitune.policies.serving.batching import Batcher, Request, infer_batch
from pitune.policies.serving.config import ServerConfig
from pitune.policies.serving.description import blank_observation, policy_metadata
from pitune.policies.serving.metrics import ServerMetrics
from pitune.policies.serving.wire import WireError, pack, unpack

_log = logging.getLogger("pitune.serve")
_DRAIN_SECONDS = 10.0
"""Longest time that a stopping server waits for the requests in flight [s]."""
_CLOSE_SECONDS = 2.0
"""Longest time that a closing connection waits for its client [s]."""


def connection_seed(seed: int, number: int) -> int:
    """Return the seed of the starting noise of a server's connection, counted from 0."""
    return (seed + 1) * 1_000_003 + number


@dataclass
class _Session:
    """The state of one client, which lives as long as its connection."""

    generator: torch.Generator = field(default_factory=torch.Generator)
    """Source of its starting noise."""
    previous_seconds: float | None = None
    """Time of its last request, from its arrival to the sent answer [s]."""

    def noise(self, shape: tuple[int, int]) -> Tensor:
        """Return the next starting point (H, A)."""
        return torch.randn(*shape, generator=self.generator)


class PolicyServer:
    """Answers observations of robots with action chunks.

    Args:
        policy: Acts as deployed, by the flow's ODE and a trained noise source.
        config: Address, limits and batches.
        metadata: First message to every client, `policy_metadata(policy)` by default.
        api_key: Clients must send it as the header `Authorization: Api-Key <key>`.

    Raises:
        ValueError: the policy has a memory.

    Attributes:
        metrics: Latencies, batch sizes and counts.
        port: The port on which the server listens, while it runs.

    Example:
        >>> server = PolicyServer(policy, ServerConfig(port=8000))  # doctest: +SKIP
        >>> asyncio.run(server.run(asyncio.Event()))  # doctest: +SKIP
    """

    def __init__(
        self,
        policy: FlowPolicy,
        config: ServerConfig,
        metadata: Mapping[str, Any] | None = None,
        api_key: str | None = None,
    ) -> None:
        if policy.has_memory:
            raise ValueError(
                "the policy has a memory (options.memory), and openpi's protocol has no message "
                "for the beginning of an episode; act in the robot's process with "
                "`policies.InferenceSession`"
            )
        self.policy, self.config, self.api_key = policy, config, api_key
        self.metadata = dict(policy_metadata(policy) if metadata is None else metadata)
        self.metrics = ServerMetrics()
        self.port = config.port
        self._stopping, self._num_open = False, 0
        self._connections = itertools.count()
        self._admitted: set[ServerConnection] = set()

    def warm_up(self) -> float:
        """Compute one batch of zeros, so that the first client does not wait. Return its time [s].

        Raises:
            ValueError: the policy cannot act, for example without its tokenizer.
        """
        start = time.perf_counter()
        raw = blank_observation(self.policy)
        noise = torch.zeros(*self.policy.chunk_shape)
        for answer in infer_batch(self.policy, [Request(raw, noise)]):
            if isinstance(answer, Exception):
                raise answer
        return time.perf_counter() - start

    async def run(self, stop: asyncio.Event, ready: asyncio.Event | None = None) -> None:
        """Serve until `stop` is set, then finish the requests in flight.

        Args:
            stop: Ends the server.
            ready: Is set as soon as clients can connect.

        Raises:
            OSError: the address is taken or not one of this machine.
        """
        config = self.config
        wait = config.max_wait_ms / 1000
        async with Batcher(self.policy, config.max_batch, wait, self.metrics) as batcher:
            self._batcher = batcher
            server = await serve(
                self._serve_client,
                config.host,
                config.port,
                process_request=self._process_request,
                compression=None,
                max_size=int(config.max_message_mib * 2**20),
                ping_interval=config.ping_seconds,
                ping_timeout=config.ping_seconds,
                close_timeout=_CLOSE_SECONDS,
            )
            self.port = next(iter(server.sockets)).getsockname()[1]
            if ready is not None:
                ready.set()
            await stop.wait()
            await self._drain(server)

    async def _drain(self, server: Server) -> None:
        """Take no further clients, answer the requests in flight, and close all connections."""
        self._stopping = True
        server.close(close_connections=False)
        end = time.monotonic() + _DRAIN_SECONDS
        while self._num_open and time.monotonic() < end:
            await asyncio.sleep(0.01)
        # the clients that ask nothing now
        idle = [c.close(CloseCode.GOING_AWAY, "the server stops") for c in server.connections]
        await asyncio.gather(*idle, return_exceptions=True)
        await server.wait_closed()
        _log.info("stopped after %s", self.metrics.line())

    def _process_request(self, connection: ServerConnection, http: HttpRequest) -> Response | None:
        """Answer plain HTTP requests, and refuse clients that may not connect."""
        if http.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if self.api_key is not None:
            given = http.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Api-Key {self.api_key}".encode()):
                return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong or missing API key\n")
        if http.path == "/metrics":
            return connection.respond(HTTPStatus.OK, self.metrics.page())
        # connections whose handshake is under way count too
        self._admitted = {c for c in self._admitted if c.state is not State.CLOSED}
        if self._stopping or len(self._admitted) >= self.config.max_clients:
            reason = "stops" if self._stopping else f"has {self.config.max_clients} clients already"
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, f"the server {reason}\n")
        self._admitted.add(connection)
        return None

    async def _serve_client(self, connection: ServerConnection) -> None:
        """Answer the requests of one client, one after the other."""
        session = self._new_session()
        self.metrics.num_clients += 1
        try:
            await connection.send(pack(self.metadata))
            async for frame in connection:
                self._num_open += 1
                try:
                    await self._answer(connection, session, frame)
                finally:
                    self._num_open -= 1
                if self._stopping:
                    await connection.close(CloseCode.GOING_AWAY, "the server stops")
        except ConnectionClosed:
            pass  # the client left, which ends its session and nothing else
        finally:
            self.metrics.num_clients -= 1
            self._admitted.discard(connection)

    def _new_session(self) -> _Session:
        session, number = _Session(), next(self._connections)
        if self.config.seed is None:
            session.generator.seed()
        else:
            session.generator.manual_seed(connection_seed(self.config.seed, number))
        return session

    async def _answer(
        self, connection: ServerConnection, session: _Session, frame: str | bytes
    ) -> None:
        """Send the answer to one frame: actions, or an error as text.

        Raises:
            ConnectionClosed: the client left.
        """
        start = time.perf_counter()
        try:
            reply = await self._reply(session, frame, start)
        except ValueError as error:  # bad input, a WireError among them
            self.metrics.num_rejected += 1
            await connection.send(f"error: {error}")
            return
        except Exception:
            # strangers get no traceback, the log has it
            _log.exception("a request failed")
            self.metrics.num_rejected += 1
            await connection.send("error: internal error of the policy server, see its log")
            await connection.close(CloseCode.INTERNAL_ERROR, "internal error")
            return
        try:
            await connection.send(reply)
        except ConnectionClosed:
            self.metrics.num_lost += 1
            raise
        session.previous_seconds = time.perf_counter() - start
        self.metrics.add_request(session.previous_seconds)

    async def _reply(self, session: _Session, frame: str | bytes, start: float) -> bytes:
        """Return the message with the actions of an observation.

        Raises:
            ValueError: the frame or its observation is invalid.
        """
        if isinstance(frame, str):
            raise WireError("a text frame is no observation; send a binary frame of msgpack")
        raw = unpack(frame)
        answer = await self._batcher.infer(Request(raw, session.noise(self.policy.chunk_shape)))
        timing = {"infer_ms": 1000 * (time.perf_counter() - start)}
        if session.previous_seconds is not None:
            timing["prev_total_ms"] = 1000 * session.previous_seconds
        return pack(
            {
                "actions": answer.actions,
                "policy_timing": {"infer_ms": 1000 * answer.seconds},
                "server_timing": timing,
            }
        )
