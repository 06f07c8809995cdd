"""Time of a chunk of steps by where the environments run.

    pitune bench workers --env.id gym/Pendulum-v1 --env.reward dense --env.num-envs 16 \
        --places this_process processes ray

The same environments play the same episodes with actions of zero, in this process, in processes of
this machine, and in actors of a Ray cluster (the extra `ray`). All places are measured in turn, by
the clock on the wall, because other processes work too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Annotated, Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from pitune import envs
from pitune.envs import EpisodeSeeds, Starts
from pitune.experiments.benchmarks.rollout import DoNothing
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.runs.config_file import provenance
from pitune.ranges import PositiveInt, Range, Settings

Place = Literal["this_process", "processes", "ray"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """Compare the places of environments.

    Raises:
        ValueError: no place is named.

    Example:
        >>> BenchmarkConfig(places=("processes", "ray")).config_of("ray").workers_on
        'ray'
    """

    env: envs.EnvConfig = field(default_factory=envs.EnvConfig)
    places: tuple[Place, ...] = ("this_process", "processes")
    """Where the environments run. Each place makes its own."""
    execution_horizon: PositiveInt = 4
    """Steps per chunk."""
    num_chunks: PositiveInt = 50
    """Chunks per measurement."""
    repeats: Annotated[int, Range(low=1)] = 5
    """Measurements of each place, in turn. The table shows their medians."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.places:
            raise ValueError("places is empty; name this_process, processes or ray")

    def config_of(self, place: Place) -> envs.EnvConfig:
        """Return the environment at a place."""
        if place == "this_process":
            return replace(self.env, num_workers=0, workers_on="processes", ray_address=None)
        address = self.env.ray_address if place == "ray" else None
        return replace(self.env, workers_on=place, ray_address=address)


def chunk_env_of(config: BenchmarkConfig, place: Place) -> envs.ChunkEnv:
    """Return new environments at a place."""
    env = envs.make(config.config_of(place))
    seeds = EpisodeSeeds(env.spec.num_envs, 0, "train", starts=Starts.of(env.spec))
    return envs.ChunkEnv(env, config.execution_horizon, seeds)


def milliseconds(env: envs.ChunkEnv, num_chunks: int) -> float:
    """Return the time of a chunk, with the resets of ended episodes [ms]."""
    spec = env.env.spec
    policy = DoNothing((spec.num_envs, env.execution_horizon, spec.action_dim), spec.device)
    start = time.perf_counter()
    with torch.no_grad():
        env.rollout(num_chunks, policy, break_when_any_done=False)
    return 1000 * (time.perf_counter() - start) / num_chunks


def benchmark(config: BenchmarkConfig) -> dict[Any, float]:
    """Measure, print the table, and return the time of a chunk by place [ms]."""
    torch.set_num_threads(1)
    chunk_envs = {place: chunk_env_of(config, place) for place in config.places}
    try:
        # once without a clock: workers import and compile what they need
        for env in chunk_envs.values():
            milliseconds(env, num_chunks=2)
        rounds = [
            {place: milliseconds(env, config.num_chunks) for place, env in chunk_envs.items()}
            for _ in range(config.repeats)
        ]
    finally:
        for env in chunk_envs.values():
            env.env.close()
    show(config, rounds)
    return {place: median(times[place] for times in rounds) for place in config.places}


def show(config: BenchmarkConfig, rounds: Sequence[Mapping[Any, float]]) -> None:
    """Print the table, with the ratio to the first place in front."""
    env, first = config.env, config.places[0]
    title = f"{env.id}, {env.num_envs} envs, {env.num_workers} workers, "
    title += f"chunks of {config.execution_horizon}"
    table = Table(title=title, caption=f"medians of {len(rounds)}; {provenance()['machine']}")
    for column in ("place", f"of {first}", "ms per chunk", "least", "greatest"):
        table.add_column(column, justify="left" if column == "place" else "right")
    for place in config.places:
        times = [one[place] for one in rounds]
        ratio = median(one[place] / one[first] for one in rounds)
        cells = [f"{value:.2f}" for value in (median(times), min(times), max(times))]
        table.add_row(place, f"{ratio:.2f} x", *cells)
    Console(width=100).print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            BenchmarkConfig, arguments(argv), prog=program("bench workers"), description=__doc__
        )
        benchmark(config)


if __name__ == "__main__":
    main()
