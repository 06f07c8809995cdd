"""A policy server that runs in a thread of the test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

from pitune.policies import FlowPolicy
from pitune.policies.serving.config import ServerConfig
from pitune.policies.serving.server import PolicyServer
from pitune.policies.serving.wire import pack, unpack


@contextmanager
def serving(
    policy: FlowPolicy,
    metadata: Mapping[str, Any] | None = None,
    api_key: str | None = None,
    **changes: Any,
) -> Iterator[PolicyServer]:
    """Run a server on a free port until the end of the block."""
    server = PolicyServer(policy, ServerConfig(port=0, **changes), metadata, api_key)
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        ready = asyncio.Event()
        task = asyncio.create_task(server.run(stop, ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        started.set()
        await task

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    started.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        alive = thread.is_alive()
        if not alive:
            loop.close()
        assert not alive, "the server did not stop"


@contextmanager
def client(server: PolicyServer, **options: Any) -> Iterator[ClientConnection]:
    """Connect as openpi's client does, and read the metadata."""
    uri = f"ws://127.0.0.1:{server.port}"
    with connect(uri, compression=None, max_size=None, **options) as connection:
        unpack(received(connection))
        yield connection


def received(connection: ClientConnection) -> bytes:
    """Return the next binary frame."""
    frame = connection.recv(timeout=20)
    assert isinstance(frame, bytes), frame
    return frame


def ask(connection: ClientConnection, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Send an observation and return the answer."""
    connection.send(pack(raw))
    return unpack(received(connection))
