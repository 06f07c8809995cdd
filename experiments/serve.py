"""Serve a checkpoint to robots and simulators by openpi's websocket protocol.

    pitune serve --checkpoint runs/pick/ppo/final
    pitune serve --checkpoint pi05_libero --load.pipeline pi05_libero --server.host 0.0.0.0 \
        --api-key-file key.txt

An unchanged openpi-client connects to it. Requests of several clients are computed together.
`http://HOST:PORT/healthz` and `/metrics` answer a browser. Ctrl-C or SIGTERM finishes the requests
in flight and ends the server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pitune import policies
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.find_checkpoint import find_checkpoint
from pitune.policies.serving.client import read_api_key
from pitune.policies.serving.config import ServerConfig
from pitune.policies.serving.description import policy_metadata
from pitune.policies.serving.server import PolicyServer
from pitune.ranges import DeviceName, PositiveInt, Settings

_log = logging.getLogger("pitune.serve")
_LOG_SECONDS = 60.0
"""Time between two lines of figures in the log [s]."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Settings):
    """Serve a checkpoint to robots and simulators.

    Example:
        >>> ServeConfig(checkpoint=Path("runs/pick/ppo/final")).server.port
        8000
    """

    checkpoint: Path
    """Folder of the policy: ours, openpi's, lerobot's or orbax."""
    load: policies.LoadConfig = field(default_factory=policies.LoadConfig)
    """Settings that a checkpoint of another format lacks."""
    server: ServerConfig = field(default_factory=ServerConfig)
    flow_steps: PositiveInt | None = None
    """Flow steps, those of the checkpoint by default."""
    api_key_file: Path | None = None
    """Text file with the key that clients must send. Without one every client may connect."""
    metadata: Path | None = None
    """JSON file with further entries of the first message, such as ALOHA's `reset_pose`."""
    device: DeviceName = "cuda" if torch.cuda.is_available() else "cpu"
    """Device of the policy."""


def make_server(config: ServeConfig) -> PolicyServer:
    """Return the server of a checkpoint, warmed up.

    Raises:
        ValueError: the checkpoint, the key file or the metadata is invalid.
    """
    metadata, api_key = _extra_metadata(config.metadata), read_api_key(config.api_key_file)
    policy = policies.load(find_checkpoint(config.checkpoint), config.load).to(config.device).eval()
    if config.flow_steps is not None:
        policy = policy.replace(sampler=replace(policy.sampler, flow_steps=config.flow_steps))
    server = PolicyServer(policy, config.server, {**policy_metadata(policy), **metadata}, api_key)
    _log.info("warm-up took %.2f s", server.warm_up())
    if config.server.host not in ("127.0.0.1", "localhost", "::1") and api_key is None:
        _log.warning(
            "host=%s takes connections of other machines, and there is no API key: anybody who "
            "reaches the port can use the policy; set --api-key-file",
            config.server.host,
        )
    return server


async def serve(server: PolicyServer) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop, ready = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    task = asyncio.create_task(server.run(stop, ready))
    started = asyncio.create_task(ready.wait())
    await asyncio.wait([task, started], return_when=asyncio.FIRST_COMPLETED)
    started.cancel()
    if not task.done():
        # port 0 asks for a free one, so the line is printed after it is known
        print(f"serving on ws://{server.config.host}:{server.port}", flush=True)
        log = asyncio.create_task(_log_figures(server))
        task.add_done_callback(lambda _: log.cancel())
    await task


async def _log_figures(server: PolicyServer) -> None:
    """Log a line of figures every minute with traffic."""
    last = 0
    while True:
        await asyncio.sleep(_LOG_SECONDS)
        answered = server.metrics.num_requests + server.metrics.num_rejected
        if answered > last:
            _log.info(server.metrics.line())
        last = answered


def _extra_metadata(file: Path | None) -> dict[str, Any]:
    """Return the entries of a JSON file, none without a file.

    Raises:
        ValueError: the file holds no JSON object.
    """
    if file is None:
        return {}
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a JSON object, not {type(values).__name__}")
    return values


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(ServeConfig, arguments(argv), prog=program("serve"), description=__doc__)
        logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
        _log.setLevel(logging.INFO)
        server = make_server(config)
        try:
            asyncio.run(serve(server))
        except OSError as error:
            address = f"{config.server.host}:{config.server.port}"
            raise ValueError(
                f"cannot listen on {address}: {error.strerror or error}; choose another "
                "--server.port, 0 for a free one"
            ) from error


if __name__ == "__main__":
    main()
