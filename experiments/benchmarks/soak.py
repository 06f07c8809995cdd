"""Memory and processor time of the iterations and checkpoints of a long training: they stay flat.

    pitune bench soak --algorithms ppo dsrl --iterations 2000 --out runs/soak

Each algorithm trains a small policy on `mock/Reach` with a checkpoint every few seconds. The table
has the mean of each quarter of the run. Processor time is measured and not the clock's, because
other work on the machine would be measured too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
from rich.console import Console
from rich.table import Table

from pitune import envs, policies, rl
from pitune.experiments.benchmarks.update import with_settings
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.runs.train_config import TrainConfig
from pitune.experiments.train import Trainer
from pitune.ranges import PositiveFloat, PositiveInt, Range, Settings

NUM_ENVS, NUM_CHUNKS = 8, 4
SMALL: Mapping[str, Any] = {
    "minibatch_size": 32,
    "num_epochs": 1,
    "critic_warmup": 1,
    "hidden": (32, 32),
    "num_critics": 2,
    "warmup_decisions": 64,
    "warmup_rounds": 2,
    "updates_per_decision": 0.0625,
    "capacity": 10_000,
    "max_iterations": 2,
}
"""Settings of an algorithm that keep an iteration short. The memory is full after 313 of them."""
QUARTERS = 4


@dataclass(frozen=True, kw_only=True)
class SoakConfig(Settings):
    """Train small policies for many iterations, and compare the quarters of each run.

    Example:
        >>> SoakConfig(iterations=100).algorithms
        ('ppo', 'dsrl')
    """

    algorithms: tuple[str, ...] = ("ppo", "dsrl")
    """Registered names."""
    iterations: Annotated[int, Range(low=8)] = 2000
    """Iterations of each run."""
    save_minutes: PositiveFloat = 0.1
    """Time between two checkpoints [min]."""
    eval_every: PositiveInt = 50
    """Iterations between evaluations."""
    out: Path = Path("runs/soak")
    """New folder for the runs."""


class TimedTrainer(Trainer):
    """A trainer that measures the processor time of its iterations and checkpoints.

    Example:
        >>> trainer = TimedTrainer(TrainConfig(algorithm=rl.PPOConfig()))  # doctest: +SKIP
        >>> summary = trainer.train()  # doctest: +SKIP
        >>> trainer.measured[0]  # doctest: +SKIP
        {'memory, MiB': 812.0, 'iteration, ms': 61.2}
    """

    def __init__(self, config: TrainConfig) -> None:
        self.measured: list[dict[str, float]] = []
        """Of each iteration, with the checkpoint after it if there was one."""
        super().__init__(config)

    def _iterate(self) -> dict[str, float]:
        start = time.process_time()
        metrics = super()._iterate()
        spent = 1000 * (time.process_time() - start)
        memory = metrics["memory/process_mib"]
        self.measured.append({"memory, MiB": memory, "iteration, ms": spent})
        return metrics

    def _checkpoint(self, evaluation: Mapping[str, Any], pending: bool = False) -> None:
        start = time.process_time()
        super()._checkpoint(evaluation, pending)
        if self.measured and not evaluation:  # without new episodes
            self.measured[-1]["checkpoint, ms"] = 1000 * (time.process_time() - start)


def quarters(measured: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the mean of each measurement in each quarter of a run.

    Example:
        >>> quarters([{"iteration, ms": float(i)} for i in range(8)])[3]
        {'iteration, ms': 6.5}

    Args:
        measured: Of each iteration, perhaps without some measurements.
    """
    length = len(measured) // QUARTERS
    parts = [measured[first : first + length] for first in range(0, QUARTERS * length, length)]
    names = {name: None for row in measured for name in row}
    return [
        {name: fmean([row[name] for row in part if name in row] or [math.nan]) for name in names}
        for part in parts
    ]


def soak(config: SoakConfig) -> dict[str, list[dict[str, float]]]:
    """Train, print the table, and return the quarters by algorithm."""
    # a small policy with random weights, because only time and memory count
    torch.manual_seed(0)
    pretrained = config.out / "pretrained"
    policies.save(
        policies.small_policy(
            torch.rand(64, 4),
            2 * torch.rand(64, 2) - 1,
            action_horizon=2,
            sampler=policies.SamplerConfig(flow_steps=4, execution_horizon=2),
        ),
        pretrained,
    )

    # one run after the other
    found = {}
    for name in config.algorithms:
        run = TrainConfig(
            algorithm=with_settings(rl.preset(name), SMALL),
            env=envs.EnvConfig(id="mock/Reach", num_envs=NUM_ENVS, num_workers=0),
            checkpoint=pretrained,
            out=config.out / name,
            num_iterations=config.iterations,
            num_chunks=NUM_CHUNKS,
            eval_every=config.eval_every,
            eval_episodes=NUM_ENVS,
            save_minutes=config.save_minutes,
            wandb="off",
            video=False,
            device="cpu",
        )
        trainer = TimedTrainer(run)
        trainer.train()
        found[name] = quarters(trainer.measured)
    show(found, config.iterations)
    return found


def show(found: Mapping[str, Sequence[Mapping[str, float]]], iterations: int) -> None:
    """Print the quarters of each run."""
    table = Table(title=f"{iterations:,} iterations on mock/Reach, mean of each quarter")
    for column in ("algorithm", "number", "1", "2", "3", "4", "last / second"):
        table.add_column(column, justify="left" if column in ("algorithm", "number") else "right")
    for name, parts in found.items():
        for number in parts[0]:
            values = [part[number] for part in parts]
            cells = [f"{value:,.1f}" for value in values]
            table.add_row(name, number, *cells, f"{values[-1] / values[1]:.3f}")
    Console(width=100).print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            SoakConfig, arguments(argv), prog=program("bench soak"), description=__doc__ or ""
        )
        soak(config)


if __name__ == "__main__":
    main()
