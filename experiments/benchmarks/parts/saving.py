"""Time that checkpoints take in a run with a full replay memory of pictures.

    pitune bench saving --out runs/saving

A real run of `dsrl` on `mock/Reach` with two cameras. After its first evaluation its replay memory
is filled with copies of the rows of a real rollout. The first checkpoint after that writes all of
them, and later ones write the new rows. The share is the time of a checkpoint over the time
between two, by the clock on the wall, because a disk takes part.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from pitune import envs, policies, rl
from pitune.experiments.benchmarks.update import with_settings
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.runs.config_file import provenance
from pitune.experiments.runs.folder.segments import FOLDER
from pitune.experiments.runs.train_config import TrainConfig
from pitune.experiments.train import Trainer
from pitune.ranges import PositiveFloat, PositiveInt, Settings
from pitune.rl.experience.replay import Replay
from pitune.rl.experience.sub_dict import sub_dict

NUM_ENVS, NUM_CHUNKS = 16, 8
CAMERAS = ("front", "wrist")


@dataclass(frozen=True, kw_only=True)
class SavingConfig(Settings):
    """Measure the checkpoints of a run with a full replay memory.

    Example:
        >>> SavingConfig(rows=1000).image_size
        64
    """

    rows: PositiveInt = 20_000
    """Capacity of the replay memory [decisions]."""
    image_size: PositiveInt = 64
    """Height and width of the pictures of two cameras [pixels]."""
    iterations: PositiveInt = 40
    """Iterations with a full memory, of 128 decisions each."""
    save_minutes: PositiveFloat = 0.25
    """Time between two checkpoints [min]."""
    out: Path = Path("runs/saving")
    """New folder for the run. A memory of 20,000 rows needs 2 GB in it."""


@dataclass(frozen=True)
class Saved:
    """One checkpoint.

    Example:
        >>> Saved(seconds=0.5, since_last=10.0, rows=256, mib=12.0).share
        0.05
    """

    seconds: float
    """Time of the checkpoint [s]."""
    since_last: float
    """Time since the end of the one before [s]."""
    rows: int
    """New rows of the memory."""
    mib: float
    """New files of the memory [MiB]."""

    @property
    def share(self) -> float:
        """Time of the checkpoint over the time since the one before [-]."""
        return self.seconds / self.since_last


class FilledTrainer(Trainer):
    """A trainer that fills its memory after the first iteration, and measures its checkpoints.

    Example:
        >>> trainer = FilledTrainer(config)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> trainer.saved[0].rows  # doctest: +SKIP
        20000
    """

    def __init__(self, config: TrainConfig) -> None:
        self.saved: list[Saved] = []
        """Checkpoints after the memory was filled."""
        self._ended, self._pushed = 0.0, 0
        super().__init__(config)

    @property
    def memory(self) -> Replay:
        """The replay memory of the run."""
        memory = self.algorithm.memories["replay"]
        if not isinstance(memory, Replay):
            raise TypeError(f"the memory is a {type(memory).__name__}, and a Replay is filled")
        return memory

    def _iterate(self) -> dict[str, float]:
        metrics = super()._iterate()
        if not self._ended:
            rows = self.memory.all().clone()  # not the memory itself
            while len(self.memory) < self.memory.capacity:
                missing = self.memory.capacity - len(self.memory)
                self.memory.push(sub_dict(rows, slice(missing)))
            self._ended = time.monotonic()
        return metrics

    def _checkpoint(self, evaluation: Mapping[str, object], pending: bool = False) -> None:
        start, before = time.monotonic(), self._mib()
        super()._checkpoint(evaluation, pending)
        pushed = self.memory.num_pushed
        if self._ended:
            written = max(0.0, self._mib() - before)
            number = min(pushed - self._pushed, self.memory.capacity)
            end = time.monotonic()
            self.saved.append(Saved(end - start, start - self._ended, number, written))
            self._ended, self._pushed = end, pushed

    def _mib(self) -> float:
        """Return the size of the memory's files [MiB]."""
        folder = self.config.out / FOLDER
        files = folder.iterdir() if folder.is_dir() else ()
        return sum(file.stat().st_size for file in files) / 2**20


def run_config(config: SavingConfig) -> TrainConfig:
    """Write a policy with random weights, and return the run that steers it."""
    torch.manual_seed(0)
    pretrained = config.out / "pretrained"
    policies.save(
        policies.small_policy(
            torch.rand(64, 4),
            2 * torch.rand(64, 2) - 1,
            action_horizon=4,
            sampler=policies.SamplerConfig(flow_steps=4, execution_horizon=4),
            cameras=CAMERAS,
            image_size=config.image_size,
        ),
        pretrained,
    )
    settings = {"capacity": config.rows, "keep_prefix": False, "warmup_rounds": 2}
    return TrainConfig(
        algorithm=with_settings(rl.preset("dsrl"), {**settings, "warmup_decisions": 64}),
        env=envs.EnvConfig(
            id="mock/Reach",
            num_envs=NUM_ENVS,
            num_workers=0,
            cameras=CAMERAS,
            image_size=config.image_size,
        ),
        checkpoint=pretrained,
        out=config.out / "dsrl",
        num_iterations=config.iterations + 1,
        num_chunks=NUM_CHUNKS,
        eval_every=config.iterations + 1,
        eval_episodes=NUM_ENVS,
        save_minutes=config.save_minutes,
        wandb="off",
        video=False,
        device="cpu",
    )


def benchmark(config: SavingConfig) -> list[Saved]:
    """Train, print the table, and return the checkpoints."""
    trainer = FilledTrainer(run_config(config))
    trainer.train()
    show(config, trainer.saved)
    return trainer.saved


def show(config: SavingConfig, saved: Sequence[Saved]) -> None:
    """Print each checkpoint, and the median of those with new rows only."""
    title = f"{config.rows:,} rows with two pictures of {config.image_size} pixels"
    later = [one.share for one in saved[1:]] or [saved[0].share]
    caption = f"median of the later ones {median(later):.1%}; {provenance()['machine']}"
    table = Table(title=title, caption=caption)
    for column in ("checkpoint", "share", "seconds", "since the last [s]", "new rows", "MiB"):
        table.add_column(column, justify="right")
    for number, one in enumerate(saved, 1):
        times = (f"{one.share:.1%}", f"{one.seconds:.3f}", f"{one.since_last:.1f}")
        # the first one follows the filling, and not a time of learning
        cells = times if number > 1 else ("", times[1], "")
        table.add_row(str(number), *cells, f"{one.rows:,}", f"{one.mib:,.0f}")
    Console(width=100).print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            SavingConfig, arguments(argv), prog=program("bench saving"), description=__doc__
        )
        benchmark(config)


if __name__ == "__main__":
    main()
