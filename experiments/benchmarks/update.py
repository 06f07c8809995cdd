"""Time per environment step of the off-policy algorithms, by update-to-data ratio.

    pitune bench update --checkpoint runs/quickstart/mujoco-PickCube/seed_0/pretrained \
        --demonstrations runs/quickstart/mujoco-PickCube/seed_0/demonstrations.safetensors \
        --ratios 0.1 0.25 0.5

The table has the time of the policy, the simulator and the update, for each algorithm and ratio.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pitune import envs, policies, rl
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.find_checkpoint import find_checkpoint
from pitune.experiments.runs.run import provenance
from pitune.ranges import DeviceName, PositiveFloat, PositiveInt, Settings

PHASES = ("policy", "simulator", "update")
VARIANTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "dsrl noise_aliased": ("dsrl", {"variant": "noise_aliased"}),
    "dsrl sac": ("dsrl", {"variant": "sac"}),
    "wsrl": ("wsrl", {}),
    "dgn": ("dgn", {}),
}
"""Rows of the table: the registered name and the settings of each."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """Measure the time of off-policy learning per environment step.

    Example:
        >>> BenchmarkConfig(checkpoint=Path("runs/a/pretrained"), ratios=(1.0,)).num_rollouts
        3
    """

    checkpoint: Path = Path("runs/quickstart/mujoco-PickCube/seed_0/pretrained")
    """Folder of the policy."""
    demonstrations: Path = Path("runs/quickstart/mujoco-PickCube/seed_0/demonstrations.safetensors")
    """File of `pitune pretrain`, for `dgn`."""
    env: envs.EnvConfig = field(default_factory=envs.EnvConfig)
    ratios: tuple[PositiveFloat, ...] = (0.1, 0.25, 0.5)
    """Update-to-data ratios [rounds of gradient steps per decision]."""
    num_chunks: PositiveInt = 2
    """Decisions per environment and rollout."""
    num_rollouts: PositiveInt = 3
    """Rollouts that are measured, after a first one that is not."""
    device: DeviceName = "cuda" if torch.cuda.is_available() else "cpu"
    """Where the policy computes."""


def with_settings(config: Any, values: Mapping[str, Any]) -> Any:
    """Return a config with the fields in `values` replaced, also in nested configs."""
    changes = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if entry.name in values:
            changes[entry.name] = values[entry.name]
        elif is_dataclass(value):
            changes[entry.name] = with_settings(value, values)
    return replace(config, **changes)


def seconds_per_step(config: BenchmarkConfig, variant: str, ratio: float) -> dict[str, float]:
    """Return the time per environment step of each phase [s]."""
    name, settings = VARIANTS[variant]
    values = {**settings, "updates_per_decision": ratio, "warmup_decisions": 1, "warmup_rounds": 1}
    # work that is done once per run or per thousand decisions is not part of a step
    values |= {"initial_fit_steps": 1, "fit_every": 1_000_000}
    preset = rl.preset(name).with_demonstrations(config.demonstrations)

    # algorithm and rollouts
    torch.manual_seed(0)
    policy = policies.load(config.checkpoint).to(config.device)
    algorithm = rl.make(with_settings(preset, values), policy)
    env = envs.make(config.env)
    rollouts = rl.Rollouts(env, algorithm, config.num_chunks, seed=0)
    # the first update ends the warm-up
    algorithm.update(rollouts.collect())

    # time of each phase
    steps, seconds = rollouts.num_env_steps, dict.fromkeys(PHASES, 0.0)
    for _ in range(config.num_rollouts):
        start = time.perf_counter()
        rollout = rollouts.collect()
        collected = time.perf_counter()
        algorithm.update(rollout)
        seconds["update"] += time.perf_counter() - collected
        seconds["simulator"] += rollouts.simulator_seconds
        seconds["policy"] += collected - start - rollouts.simulator_seconds
    env.close()
    return {phase: seconds[phase] / (rollouts.num_env_steps - steps) for phase in PHASES}


def benchmark(config: BenchmarkConfig) -> dict[tuple[str, float], dict[str, float]]:
    """Measure, print the table, and return the times of the phases [s] by row and ratio."""
    torch.set_num_threads(1)
    title = f"{config.env.id}, {config.env.num_envs} envs: time per environment step [ms]"
    machine = provenance()["cuda"] or provenance()["machine"]
    table = Table(title=title, caption=f"ratio: rounds of gradient steps per decision; {machine}")
    for column in ("algorithm", "ratio", *PHASES, "sum", "environment steps/s"):
        table.add_column(column, justify="left" if column == "algorithm" else "right")

    # a row for each variant and ratio
    times = {}
    for variant in VARIANTS:
        for ratio in config.ratios:
            seconds = seconds_per_step(config, variant, ratio)
            times[variant, ratio] = seconds
            total = sum(seconds.values())
            cells = [f"{1000 * seconds[phase]:.3f}" for phase in PHASES]
            table.add_row(variant, f"{ratio:g}", *cells, f"{1000 * total:.3f}", f"{1 / total:,.0f}")
    Console(width=100).print(table)
    return times


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            BenchmarkConfig,
            arguments(argv),
            prog=program("bench update"),
            description=__doc__ or "",
        )
        benchmark(replace(config, checkpoint=find_checkpoint(config.checkpoint)))


if __name__ == "__main__":
    main()
