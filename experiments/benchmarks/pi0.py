"""Time and memory of a π0 network: prefix, flow steps, sampling, scoring, one training step.

    pitune bench pi0 --preset tiny --batch-size 4
    pitune bench pi0 --preset pi0 --dtype bfloat16 --batch-size 1 --repeats 1 --no-training

The second line measures the real size, which needs 7 GB and takes minutes on a CPU. The weights are
random, as time does not depend on their values. A measurement is the median of --repeats runs after
a discarded first run. With --repeats 1 no run is discarded.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pitune.compilation import Compilation
from pitune.experiments.benchmarks.parts.clock import wait_for
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.runs.run import provenance
from pitune.policies.finetuning.memory import readable
from pitune.policies.finetuning.trainable import stays_float32
from pitune.policies.flow.chain import sample_chain, score_chain
from pitune.policies.flow.kernels import FlowSDE
from pitune.policies.flow.ode import integrate
from pitune.policies.flow.path import TimeGrid
from pitune.policies.network.config import Pi0Config, pi0, pi05, tiny
from pitune.policies.network.context import Context
from pitune.policies.network.pi0 import Pi0
from pitune.ranges import DeviceName, PositiveInt, Settings, Threads


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """Time the parts of a π0 network.

    Example:
        >>> BenchmarkConfig(preset="tiny05", training=False).flow_steps
        10
    """

    preset: Literal["tiny", "tiny05", "pi0", "pi05"] = "tiny"
    """Sizes of the network."""
    batch_size: PositiveInt = 1
    """Observations at once."""
    cameras: PositiveInt = 3
    """Pictures per observation."""
    prompt_tokens: PositiveInt = 48
    """Length of the prompt."""
    flow_steps: PositiveInt = 10
    """K."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the towers; norms, embeddings of pictures and projections stay float32."""
    compile: bool = False
    """Whether to compile the network with `torch.compile`, which takes minutes."""
    training: bool = True
    """Whether to also time a training step of all parameters, which needs memory for gradients."""
    repeats: PositiveInt = 3
    """Measurements of each part."""
    device: DeviceName = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""
    torch_threads: Threads = 2
    """Threads of PyTorch on the CPU."""


def network_of(config: BenchmarkConfig) -> Pi0:
    """Return a network with random weights, allocated in its own precision from the start."""
    presets: dict[str, Pi0Config] = {
        "tiny": tiny("pi0"),
        "tiny05": tiny("pi05"),
        "pi0": pi0(),
        "pi05": pi05(),
    }
    dtype = getattr(torch, config.dtype)
    with torch.device("meta"):
        network = Pi0(presets[config.preset])
    # random values in place of the meta tensors, one parameter at a time
    for name, parameter in network.named_parameters():
        parent = network.get_submodule(name.rpartition(".")[0])
        kind = torch.float32 if stays_float32(name) else dtype
        value = torch.empty(parameter.shape, dtype=kind, device=config.device)
        nn.init.normal_(value, std=0.02)
        setattr(parent, name.rpartition(".")[2], nn.Parameter(value))
    network.compute_dtype = dtype
    if config.compile:
        network.compilation = Compilation(torch.device(config.device))
    return network


def measure(config: BenchmarkConfig) -> list[tuple[str, float, str]]:
    """Return the name of each part, its time [s], and the peak memory of the process so far."""
    network = network_of(config)
    # inputs of the network
    n, horizon = config.batch_size, network.config.action_horizon
    shape = (n, horizon, network.config.action_dim)
    size = network.config.vision.image_size if network.config.vision else 224
    device = torch.device(config.device)
    inputs = {
        "state": torch.randn(n, network.config.state_dim, device=device),
        "images": 2 * torch.rand(n, config.cameras, 3, size, size, device=device) - 1,
        "tokens": torch.randint(network.config.vocab_size, (n, config.prompt_tokens)).to(device),
    }
    # (N, H, A) and (N, 1)
    noise, flow_time = torch.randn(shape, device=device), torch.full((n, 1), 0.5, device=device)
    grid, kernel = TimeGrid(config.flow_steps), FlowSDE(0.5, torch.ones(shape[1:], device=device))
    rows = [("weights", 0.0, peak_memory(device))]

    def timed(part: str, act: Callable[[], object]) -> None:
        rows.append((part, seconds(act, config.repeats, device), peak_memory(device)))

    # inference
    with torch.no_grad():
        context = network.encode(**inputs)
        field = lambda x, t: network.velocity(context, x, t)  # noqa: E731
        chain, _ = sample_chain(field, noise, grid, kernel, None)
        timed("encode the prefix", lambda: network.encode(**inputs))
        timed("one flow step", lambda: network.velocity(context, noise[:, None], flow_time))
        timed(f"sample {grid.flow_steps} steps", lambda: integrate(field, noise, grid, "euler"))
        timed(
            f"score {grid.flow_steps} steps, one pass",
            lambda: score_chain(field, chain, grid, kernel, None),
        )

    # training
    if config.training:
        timed("training step, all weights", lambda: training_step(network, inputs, noise))
    return rows


def training_step(network: Pi0, inputs: dict[str, Tensor], noise: Tensor) -> None:
    """Compute the gradient of a flow-matching loss and discard it."""
    context: Context = network.encode(**inputs)
    time_half = torch.full((len(noise), 1), 0.5, device=noise.device)
    velocity = network.velocity(context, noise[:, None], time_half).velocity[:, 0]
    (velocity - noise).square().mean().backward()
    network.zero_grad(set_to_none=True)


def seconds(act: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the median time of a function [s]."""
    durations = []
    for _ in range(repeats + (repeats > 1)):
        wait_for(device)
        start = time.perf_counter()
        act()
        wait_for(device)
        durations.append(time.perf_counter() - start)
    return statistics.median(durations[1:] if repeats > 1 else durations)


def peak_memory(device: torch.device) -> str:
    """Return the peak memory so far, of the device or of this process."""
    if device.type == "cuda":
        return readable(torch.cuda.max_memory_allocated(device))
    return readable(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            BenchmarkConfig, arguments(argv), prog=program("bench pi0"), description=__doc__
        )
        torch.set_num_threads(config.torch_threads)
        torch.manual_seed(0)
        table = Table(title=f"{config.preset}, {config.dtype}, batch {config.batch_size}")
        for column in ("part", "seconds", "peak memory so far"):
            table.add_column(column, justify="left" if column == "part" else "right")
        for part, duration, memory in measure(config):
            table.add_row(part, f"{duration:.4f}" if duration else "", memory)
        Console().print(table)
        where = provenance()
        Console().print(f"commit {where.get('commit', '')}, {where.get('machine', '')}")


if __name__ == "__main__":
    main()
