"""Speed of chunked collection against the bare simulator.

    pitune bench rollout --env.id mujoco/PickCube

Chunks go through collector, chunk environment and checks. Both measurements use a policy whose
actions are zero.
Letters: E envs, h executed actions, d robot action dim.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector

from pitune import envs
from pitune.envs import EpisodeSeeds, Starts
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.runs.run import provenance
from pitune.ranges import PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """Compare chunked collection with the bare simulator.

    Example:
        >>> BenchmarkConfig(env=envs.EnvConfig(id="mock/Reach"), repeats=1).num_chunks
        30
    """

    env: envs.EnvConfig = field(default_factory=envs.EnvConfig)
    execution_horizon: PositiveInt = 4
    """Steps per chunk."""
    num_chunks: PositiveInt = 30
    """Chunks per environment and measurement."""
    repeats: PositiveInt = 5
    """Measurements of each kind, in turn. The table shows their medians."""


class DoNothing(TensorDictModuleBase):
    """A policy whose every action is zero.

    Example:
        >>> from tensordict import TensorDict
        >>> policy = DoNothing((2, 4, 3), torch.device("cpu"))
        >>> policy(TensorDict({"state": torch.zeros(2, 5)}, [2]))["action"].shape  # (E, h, d)
        torch.Size([2, 4, 3])

    Args:
        shape: (E, h, d).
    """

    out_keys: list[str]
    """Written entries. They are declared because mypy does not see the base class's setter."""

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        super().__init__()
        self.in_keys, self.out_keys = ["state"], ["action"]
        self.action = torch.zeros(shape, device=device)

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        return td.set("action", self.action.clone())


def raw_steps_per_second(env: envs.VectorEnv, num_steps: int) -> float:
    """Return the speed of the adapter alone, with resets of ended episodes [steps/s]."""
    # new episodes, which are not measured
    seeds = EpisodeSeeds(env.spec.num_envs, 0, "train", starts=Starts.of(env.spec))
    all_envs = torch.arange(env.spec.num_envs, device=env.spec.device)
    active = torch.ones(env.spec.num_envs, dtype=torch.bool, device=env.spec.device)
    action = torch.zeros(env.spec.num_envs, env.spec.action_dim, device=env.spec.device)
    env.reset(seeds.next(all_envs).to(all_envs.device), all_envs)

    # steps and resets
    start = time.perf_counter()
    for _ in range(num_steps):
        result = env.step(action, active)
        ended = (result.terminated | result.truncated).nonzero().flatten()
        if len(ended):
            env.reset(seeds.next(ended).to(ended.device), ended)
    return num_steps * env.spec.num_envs / (time.perf_counter() - start)


def chunked_steps_per_second(env: envs.CheckedEnv, horizon: int, num_chunks: int) -> float:
    """Return the speed through `Collector`, `ChunkEnv` and `CheckedEnv` [steps/s]."""
    spec = env.spec
    seeds = EpisodeSeeds(spec.num_envs, 0, "train", starts=Starts.of(spec))
    chunk_env = envs.ChunkEnv(env, horizon, seeds)
    policy = DoNothing((spec.num_envs, horizon, spec.action_dim), spec.device)
    collector = Collector(
        chunk_env,
        policy,
        frames_per_batch=spec.num_envs * num_chunks,
        total_frames=-1,
        use_buffers=False,
        track_traj_ids=False,
        auto_register_policy_transforms=False,
    )
    rollouts = iter(collector)

    # one rollout
    steps, start = chunk_env.num_env_steps, time.perf_counter()
    next(rollouts)
    return (chunk_env.num_env_steps - steps) / (time.perf_counter() - start)


def benchmark(config: BenchmarkConfig) -> float:
    """Measure, print the table, and return the chunked speed as a share of the raw speed."""
    torch.set_num_threads(1)
    env = envs.make(config.env)
    # in turn, because the load of the machine may change
    raw, chunked = [], []
    for _ in range(config.repeats):
        num_steps = config.num_chunks * config.execution_horizon
        raw.append(raw_steps_per_second(env.env, num_steps))
        chunked.append(chunked_steps_per_second(env, config.execution_horizon, config.num_chunks))
    share = median(c / r for c, r in zip(chunked, raw, strict=True))

    # table of medians
    title = f"{config.env.id}, {config.env.num_envs} envs, {config.env.num_workers} workers"
    table = Table(title=title, caption=f"medians of {config.repeats}; {provenance()['machine']}")
    for column in ("", "environment steps/s", "share of raw (each pair)"):
        table.add_column(column)
    table.add_row("raw simulator", f"{median(raw):,.0f}", "")
    pairs = ", ".join(f"{c / r:.1%}" for c, r in zip(chunked, raw, strict=True))
    table.add_row("Collector + ChunkEnv", f"{median(chunked):,.0f}", f"{share:.1%} ({pairs})")
    Console().print(table)
    env.close()
    return share


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            BenchmarkConfig,
            arguments(argv),
            prog=program("bench rollout"),
            description=__doc__ or "",
        )
        benchmark(config)


if __name__ == "__main__":
    main()
