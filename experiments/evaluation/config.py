"""Settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from pitune import envs, policies
from pitune.experiments.runs.config_file import plain
from pitune.policies.flow.delay import DelayConfig
from pitune.policies.flow.real_time import RealTimeConfig
from pitune.policies.serving.client import RemoteOptions
from pitune.ranges import (
    DeviceName,
    NonNegativeInt,
    PositiveInt,
    Range,
    Seed,
    Settings,
    Threads,
)
from pitune.rl.datasets.config import RecordConfig

NO_IDENTITY = (
    *("episodes", "seed", "seeds", "compare", "vary", "checkpoint"),
    *("out", "folder", "shards", "shard", "remote", "films", "film_grid", "record", "recording"),
)
"""Settings that choose which rows there are, or where they go, but change no row."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """Measure the success rate of a checkpoint.

    Raises:
        ValueError: settings contradict each other, for example `seed` and `seeds`.

    Example:
        >>> EvaluateConfig(checkpoint=Path("runs/pick/pretrained"), seeds=(0, 1)).all_seeds
        (0, 1)
    """

    checkpoint: Path
    """Folder of the policy: ours, openpi's, lerobot's or orbax. Or the address of a policy server,
    such as ws://127.0.0.1:8000."""
    load: policies.LoadConfig = field(default_factory=policies.LoadConfig)
    """Settings that a checkpoint of another format lacks."""
    env: envs.EnvConfig = field(default_factory=envs.EnvConfig)
    episodes: PositiveInt = 200
    """Episodes for each seed."""
    seed: Seed = 0
    """Seed of the starts and of the policy's noise."""
    seeds: tuple[Seed, ...] = ()
    """Several seeds, each with starts of its own, in place of --seed."""
    compare: Path | None = None
    """Another checkpoint, which plays the same starts. An exact paired test compares both."""
    vary: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Evaluate deployed settings side by side on the same starts: a name and its values, such as
    `--vary execution_horizon 1 4 10 --vary flow_steps 4 10`. Every combination is played. Names:
    the sampler's fields, delay.*, guidance.* and real_time.*."""
    stochastic: bool = False
    """Explore as in training, with the likelihood below, instead of acting as deployed."""
    likelihood: policies.LikelihoodConfig = field(default_factory=policies.FlowSDEConfig)
    """Noise of a policy that explores."""
    delay: DelayConfig = field(default_factory=DelayConfig)
    """Steps that the robot executes before a new chunk arrives."""
    real_time: RealTimeConfig = field(default_factory=RealTimeConfig)
    """Real-time chunking of a checkpoint that has no settings of its own."""
    remote: RemoteOptions = field(default_factory=RemoteOptions)
    """Settings of a policy server."""
    shuffle_instructions: bool = False
    """Give each episode the words of another task, as a control: a policy that follows its
    instructions must fall."""
    out: Path | None = None
    """JSON file for the result."""
    folder: Path | None = None
    """Folder for the rows as they end, result.json and table.md. The same command again goes on
    after an interruption, with the numbers of an uninterrupted evaluation."""
    shards: Annotated[int, Range(low=1, high=256)] = 1
    """Processes that share the episodes, each with all --env.num-envs environments. They need
    --folder, and change no number."""
    shard: str | None = None
    """Play one share only, such as 2/4, into --folder. After all of them, the same command without
    this option prints the result."""
    films: NonNegativeInt = 0
    """Episodes of each policy to film, spread over tasks and outcomes. They lie in films/ of
    --folder, or beside --out."""
    film_grid: bool = False
    """Also one film of all these episodes side by side."""
    record: Path | None = None
    """New folder for a LeRobot dataset of the episodes."""
    recording: RecordConfig = field(default_factory=RecordConfig)
    """Storage of the dataset's pictures."""
    device: DeviceName = "cuda" if torch.cuda.is_available() else "cpu"
    """Device of the policy."""
    compile: bool = False
    """Whether to compile the policy with `torch.compile`, for long evaluations. It needs a C++
    compiler."""
    torch_threads: Threads | None = None
    """Threads of PyTorch on the CPU. Its own number by default, divided by the shards."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds and self.seed:
            raise ValueError(f"seed={self.seed} and seeds={self.seeds} are both set; pass one")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} must not repeat a seed")
        if self.folder is None and (self.shards > 1 or self.shard is not None):
            name = "shards" if self.shards > 1 else "shard"
            raise ValueError(
                f"{name}={getattr(self, name)} needs a folder for the rows; pass --folder"
            )
        if self.shards > 1 and self.shard is not None:
            raise ValueError(
                f"shards={self.shards} starts processes and shard={self.shard} is one of them; "
                "pass one of both"
            )
        _ = self.own_shard
        self._check_films()
        self._check_record()

    def _check_films(self) -> None:
        """Reject films that have no place."""
        if self.films and self.folder is None and self.out is None:
            raise ValueError(f"films={self.films} need a place; pass --folder, or --out")
        if self.film_grid and not self.films:
            raise ValueError("film_grid=True has no episodes; pass their number with --films")
        if self.films and self.shard is not None:
            raise ValueError(
                f"films={self.films} are made after all shares are played; leave it for the last "
                "command, without --shard"
            )

    def _check_record(self) -> None:
        """Reject a dataset that would lack episodes, or mix policies or words."""
        if self.record is None:
            return
        others = {
            "folder": self.folder is not None,  # its episodes may be played already
            "compare": self.compare is not None,
            "vary": bool(self.vary),
            "shuffle_instructions": self.shuffle_instructions,
        }
        given = [name for name, is_set in others.items() if is_set]
        if given:
            raise ValueError(
                f"record={self.record} takes all episodes of one policy, with their own words and "
                f"in one go; leave {' and '.join(given)}"
            )

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds of the evaluation."""
        return self.seeds or (self.seed,)

    @property
    def own_shard(self) -> tuple[int, int]:
        """The share of this process and their number, (1, 1) for all episodes.

        Raises:
            ValueError: `shard` is no such pair.
        """
        if self.shard is None:
            return 1, 1
        words = self.shard.split("/")
        numbers = [int(word) for word in words if word.isascii() and word.isdigit()]
        if len(words) != 2 or len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1] <= 256:
            raise ValueError(
                f"shard={self.shard!r} must be a number, a slash and the number of all shards, "
                "from 1/1 to 256/256, such as 2/4"
            )
        return numbers[0], numbers[1]

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the rows, as JSON values.

        Further episodes, seeds, checkpoints and values are added to rows that exist, so they are
        not among them.
        """
        values: dict[str, Any] = plain(self.with_typed_options())
        for name in NO_IDENTITY:
            values.pop(name)
        return values

    def with_typed_options(self) -> EvaluateConfig:
        """Return the config with the adapter's own options in place of a plain `EnvOptions`."""
        kind = envs.prefixes()[self.env.prefix]
        return replace(self, env=replace(self.env, options=self.env.typed_options(kind)))
