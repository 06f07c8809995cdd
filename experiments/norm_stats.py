"""Compute the norm stats of demonstrations, in the units of a checkpoint's pipeline.

    pitune norm-stats --checkpoint pi0_base --load.pipeline my_robot.json \
        --demonstrations demonstrations.safetensors --out norm_stats.json

Relative actions are measured as differences from the state, over whole chunks. A dimension that
hardly moves gets a least scale, and is named in the output. The file has the format of openpi, and
every command takes it with --load.norm-stats. Reuse the pretrained stats if the robot is the same.
Letters: N rows, s robot state dim, H action horizon, d robot action dim.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from pitune import policies, rl
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.find_checkpoint import find_checkpoint
from pitune.policies import FlowPolicy, NormStats
from pitune.policies.checkpoints.pipelines import pipeline_named
from pitune.policies.preprocessing.norm_stats_file import norm_stats_json
from pitune.ranges import NonNegativeFloat, Settings
from pitune.rl.datasets.config import DataConfig
from pitune.rl.datasets.demonstrations import load_demonstrations


@dataclass(frozen=True, kw_only=True)
class NormStatsConfig(Settings):
    """Compute norm stats of demonstrations.

    Example:
        >>> from pathlib import Path
        >>> config = NormStatsConfig(
        ...     checkpoint=Path("pi0_libero"),
        ...     demonstrations=Path("demonstrations.safetensors"),
        ...     out=Path("norm_stats.json"),
        ... )
        >>> config.min_scale
        0.01
    """

    checkpoint: Path
    """Folder of the policy, for its pipeline and its action horizon."""
    load: policies.LoadConfig = field(default_factory=policies.LoadConfig)
    """Settings that checkpoints of other formats lack."""
    demonstrations: Path
    """File from `pitune pretrain` or `rl.Demonstrations.save`, or a LeRobot dataset: its folder, or
    its name on the hub."""
    data: DataConfig = field(default_factory=DataConfig)
    """Features of a LeRobot dataset."""
    out: Path
    """File to write, such as norm_stats.json."""
    min_scale: NonNegativeFloat = 1e-2
    """Smallest standard deviation and half range [robot units]."""


def norm_stats(config: NormStatsConfig) -> tuple[NormStats, NormStats, dict[str, list[int]]]:
    """Return the stats of state and actions, and the dimensions that got the least scale.

    Raises:
        FileExistsError: --out exists already.
    """
    if config.out.exists():
        raise FileExistsError(f"{config.out} exists already; pass another --out or remove it")

    # data as the network has them before normalizing
    demonstrations = load_demonstrations(config.demonstrations, config.data)
    policy = _policy_of(config, demonstrations)
    chunks = demonstrations.chunks(policy.network.config.action_horizon)
    state, action = measured(policy, chunks["state"], chunks["action"])

    # stats of (N, s) and (N * H, d), with a least scale
    found = {"state": NormStats.of(state), "actions": NormStats.of(action.flatten(0, 1))}
    floored = {name: stats.flat(config.min_scale) for name, stats in found.items()}
    stats = {name: value.floored(config.min_scale) for name, value in found.items()}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    content = norm_stats_json(stats["state"], stats["actions"])
    config.out.write_text(json.dumps(content, indent=2) + "\n")
    return stats["state"], stats["actions"], floored


def _policy_of(config: NormStatsConfig, demonstrations: rl.Demonstrations) -> FlowPolicy:
    """Load the policy whose pipeline is measured.

    A pipeline without widths gets those of the demonstrations, and the checkpoint's own stats are
    not needed.

    Raises:
        ValueError: the demonstrations are of another robot than the policy.
    """
    widths = (demonstrations.obs["state"].shape[-1], demonstrations.action.shape[-1])
    load, pipeline = config.load, None
    if load.pipeline is not None:
        pipeline = pipeline_named(load.pipeline)
        pipeline = replace(
            pipeline,
            state_dim=pipeline.state_dim or widths[0],
            action_dim=pipeline.action_dim or widths[1],
        )
        chosen = load.norm_stats is not None or load.asset is not None
        load = load if chosen else replace(load, unnormalized=True)
    policy = policies.load(config.checkpoint, load, pipeline)
    wanted = (policy.preprocessor.state_dim, policy.preprocessor.action_dim)
    if widths != wanted:
        raise ValueError(
            f"{config.demonstrations} has states of {widths[0]} and actions of {widths[1]} "
            f"dimensions, the pipeline of {config.checkpoint} {wanted[0]} and {wanted[1]}; for "
            "your own robot pass a pipeline's file (--load.pipeline)"
        )
    return policy


def measured(policy: FlowPolicy, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Return states (N, s) and chunks (N, H, d) as the pipeline has them before normalizing."""
    bare = replace(
        policy.preprocessor.config,
        state=NormStats.identity(state.shape[-1]),
        action=NormStats.identity(action.shape[-1]),
        normalization="none",
    )
    preprocessor = policies.Preprocessor(bare, state.shape[-1], action.shape[-1])
    with torch.no_grad():
        return preprocessor.normalize_state(state), preprocessor.normalize_action(action, state)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            NormStatsConfig, arguments(argv), prog=program("norm-stats"), description=__doc__
        )
        config = replace(config, checkpoint=find_checkpoint(config.checkpoint))
        *_, floored = norm_stats(config)
        console = Console()
        console.print(f"wrote {config.out}")
        if any(floored.values()):
            console.print(f"dimensions that hardly moved and got --min-scale: {floored}")


if __name__ == "__main__":
    main()
