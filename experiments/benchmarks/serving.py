"""Throughput and latency of a policy server for one client and for many.

    pitune bench serving --checkpoint runs/quickstart/mujoco-PickCube/seed_0/pretrained

The server runs in a process of its own. Every client has another state, pictures and prompt, and a
sample of its answers is compared with the policy itself afterwards, so a lost or crossed answer is
an error. With --disturb there are also 200 malformed messages, clients that leave while their
request is computed, and half-open sockets.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from pitune import policies
from pitune.experiments.benchmarks.disturbance import Disturbance, open_files
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.runs.run import provenance
from pitune.policies import FlowPolicy
from pitune.policies.serving.batching import Answer, Request, infer_batch
from pitune.policies.serving.client import RemoteClient, RemoteConfig
from pitune.policies.serving.config import ServerConfig
from pitune.policies.serving.description import blank_observation
from pitune.policies.serving.server import PolicyServer, connection_seed
from pitune.ranges import NonNegativeInt, PositiveFloat, PositiveInt, Settings, Threads

_CHECK_EVERY = 50
"""Distance of the answers that are checked after the first ones."""
_TOLERANCE = 1e-4
"""Largest difference of an answer from the policy's own [robot units]."""


@dataclass(frozen=True, kw_only=True)
class ServingConfig(Settings):
    """Measure a policy server.

    Example:
        >>> ServingConfig(checkpoint=Path("runs/pick/pretrained"), seconds=5.0).num_clients
        (1, 16)
    """

    checkpoint: Path
    """Folder of the policy: ours, openpi's, lerobot's or orbax."""
    load: policies.LoadConfig = field(default_factory=policies.LoadConfig)
    """Settings that a checkpoint of another format lacks."""
    server: ServerConfig = field(default_factory=lambda: ServerConfig(port=0, seed=0))
    num_clients: tuple[PositiveInt, ...] = (1, 16)
    """Numbers of clients, one after the other."""
    seconds: PositiveFloat = 20.0
    """Time of each measurement [s]."""
    num_checks: NonNegativeInt = 10
    """Answers of each client that are compared with the policy's own, the first ones. So is each
    50th after them, if this is not 0."""
    disturb: bool = False
    """Whether further clients misbehave meanwhile."""
    threads: Threads = 1
    """Threads of the policy's network."""


@dataclass(frozen=True)
class Load:
    """Measurement with one number of clients.

    Example:
        >>> Load(num_clients=1, latency=np.full(50, 0.01), seconds=1.0, memory_mib=0.0).rate
        50.0
    """

    num_clients: int
    latency: np.ndarray
    """Of each answer [s]."""
    seconds: float
    memory_mib: float
    """Growth of the server's memory in the second half of the measurement [MiB]."""
    num_leaked: int = 0
    """Further open files and sockets of the server after the measurement."""
    disturbances: str = ""
    """Clients that misbehaved, in words."""

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latency) / self.seconds


def measure(config: ServingConfig) -> list[Load]:
    """Return a measurement for each number of clients.

    Raises:
        ValueError: an answer is not the policy's own, or the server cannot start.
    """
    policy = policies.load(config.checkpoint, config.load)
    loads = []
    for num_clients in config.num_clients:
        # a server for each measurement, so that connections are numbered from 0
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        server = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(config, theirs), daemon=True
        )
        server.start()
        theirs.close()  # the server's end is then the end of the pipe
        try:
            port = ours.recv()
            loads.append(_load(config, policy, num_clients, port, server.pid or 0))
        except EOFError as error:
            raise ValueError(
                f"the server of {config.server.host}:{config.server.port} did not start, see its "
                "error above; choose another --server.port, 0 for a free one"
            ) from error
        finally:
            with suppress(BrokenPipeError):
                ours.send("stop")
            server.join(30)
    return loads


def _serve(config: ServingConfig, pipe: Connection) -> None:
    """Serve in a process of its own until the pipe has a message."""
    os.environ["OMP_NUM_THREADS"] = str(config.threads)
    torch.set_num_threads(config.threads)
    server = PolicyServer(policies.load(config.checkpoint, config.load), config.server)
    server.warm_up()

    async def run() -> None:
        stop, ready = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(server.run(stop, ready))
        listening = asyncio.create_task(ready.wait())
        await asyncio.wait([task, listening], return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if not task.done():
            pipe.send(server.port)
            await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
            stop.set()
        await task

    asyncio.run(run())


def _load(config: ServingConfig, policy: FlowPolicy, num_clients: int, port: int, pid: int) -> Load:
    """Let clients ask as fast as they are answered, and check their answers.

    Raises:
        ValueError: an answer is lost, or not the policy's own.
    """
    uri, process = f"ws://127.0.0.1:{port}", psutil.Process(pid)
    num_files = process.num_fds()
    clients = [RemoteClient(RemoteConfig(uri=uri, retries=0)) for _ in range(num_clients)]
    observations = [_observation(policy, number) for number in range(num_clients)]
    latency: list[list[float]] = [[] for _ in clients]
    answers: list[dict[int, np.ndarray]] = [{} for _ in clients]
    end = time.perf_counter() + config.seconds

    def ask(number: int) -> None:
        while time.perf_counter() < end:
            start = time.perf_counter()
            clients[number].send(observations[number])
            actions = clients[number].receive()["actions"]
            index = len(latency[number])
            latency[number].append(time.perf_counter() - start)
            if index < config.num_checks or (config.num_checks and index % _CHECK_EVERY == 0):
                answers[number][index] = actions

    crowd = None
    with ThreadPoolExecutor(num_clients) as threads, ExitStack() as stack:
        asking = [threads.submit(ask, number) for number in range(num_clients)]
        if config.disturb:
            size = config.server.max_message_mib
            crowd = Disturbance(port, _observation(policy, num_clients), size, config.seconds)
            stack.enter_context(crowd)
        time.sleep(config.seconds / 2)
        memory = process.memory_info().rss
    for future in asking:
        future.result()  # raises a client's error
    growth = (process.memory_info().rss - memory) / 2**20
    for client in clients:
        client.close()
    for number, given in enumerate(answers):
        _check(policy, config, number, observations[number], given)
    leaked = open_files(process, num_files) - num_files
    times = np.concatenate(latency)
    return Load(
        num_clients, times, config.seconds, growth, leaked, crowd.summary() if crowd else ""
    )


def _observation(policy: FlowPolicy, number: int) -> dict[str, Any]:
    """Return the observation of one client, different from that of all others."""
    rng = np.random.default_rng(number)
    raw = blank_observation(policy)
    for key, value in raw.items():
        if isinstance(value, np.ndarray) and value.ndim == 3:
            raw[key] = rng.integers(0, 255, value.shape, np.uint8)
        elif isinstance(value, np.ndarray):
            raw[key] = rng.normal(scale=0.1, size=value.shape)
    if "prompt" in raw:
        raw["prompt"] = f"push block {number}"
    return raw


def _check(
    policy: FlowPolicy,
    config: ServingConfig,
    number: int,
    raw: dict[str, Any],
    given: Mapping[int, np.ndarray],
) -> None:
    """Compare some answers of a client, by their number, with the policy's own.

    Raises:
        ValueError: they differ.
    """
    generator = torch.Generator().manual_seed(connection_seed(config.server.seed or 0, number))
    for index in range(1 + max(given, default=-1)):
        noise = torch.randn(*policy.chunk_shape, generator=generator)
        if index not in given:
            continue
        [expected] = infer_batch(policy, [Request(raw, noise)])
        if not isinstance(expected, Answer):
            raise expected
        difference = float(np.abs(given[index] - expected.actions).max())
        if not difference < _TOLERANCE:
            raise ValueError(
                f"answer {index} of client {number} differs from the policy's own by {difference}"
            )


def report(loads: Sequence[Load]) -> Table:
    """Return the measurements as a table, with the rate relative to the first one."""
    table = Table(title=f"policy server, commit {provenance()['commit'][:10]}")
    for name in (
        "clients",
        "answers / s",
        "relative",
        "p50 [ms]",
        "p95",
        "p99",
        "growth [MiB]",
        "leaked",
    ):
        table.add_column(name, justify="right")
    for load in loads:
        percentiles = (f"{1000 * np.percentile(load.latency, p):.1f}" for p in (50, 95, 99))
        relative = f"{load.rate / loads[0].rate:.2f}"
        growth = f"{load.memory_mib:.1f}"
        figures = (f"{load.rate:.1f}", relative, *percentiles, growth, str(load.num_leaked))
        table.add_row(str(load.num_clients), *figures)
    table.caption = loads[-1].disturbances or None
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            ServingConfig, arguments(argv), prog=program("bench serving"), description=__doc__
        )
        if config.server.seed is None:
            config = replace(config, server=replace(config.server, seed=0))
        Console().print(report(measure(config)))


if __name__ == "__main__":
    main()
