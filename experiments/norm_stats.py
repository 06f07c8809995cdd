"""Compute the norm stats of demonstrations, as a checkpoint's pipeline would see them.

    python -m experiments.norm_stats --checkpoint pi0_libero --load.pipeline pi0_libero \
        --load.unnormalized --demonstrations demonstrations.safetensors --out norm_stats.json

What is measured is what is normalized: with relative actions their differences from the state, over
whole chunks. Dimensions that hardly move are given a floor, and named. The file is in the format of
openpi, and every script takes it with --load.norm-stats. Reuse the pretrained stats where the robot
is the same.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console
from torch import Tensor

from pitune import policies, rl
from pitune.experiments.errors import exit_with_message
from pitune.policies import FlowPolicy, NormStats


@dataclass(frozen=True, kw_only=True)
class NormStatsConfig:
    """Compute norm stats of demonstrations."""

    checkpoint: Path
    """Folder of the policy whose pipeline and horizon count."""
    load: policies.LoadConfig = field(default_factory=policies.LoadConfig)
    """What a checkpoint of another format does not hold."""
    demonstrations: Path
    """File that `pitune.experiments.pretrain` or `rl.Demonstrations.save` wrote."""
    out: Path
    """New norm_stats.json."""
    min_scale: float = 1e-2
    """Least standard deviation and half range [robot units]."""


def norm_stats(config: NormStatsConfig) -> tuple[NormStats, NormStats, dict[str, list[int]]]:
    """Return the stats of state and actions, and which dimensions were given the floor.

    Raises:
        FileExistsError: --out exists already.
    """
    if config.out.exists():
        raise FileExistsError(f"{config.out} exists already; pass another --out or remove it")
    policy = policies.load(config.checkpoint, config.load)
    horizon = policy.network.config.action_horizon
    chunks = rl.Demonstrations.load(config.demonstrations).chunks(horizon)
    state, action = measured(policy, chunks["state"], chunks["action"])
    found = {"state": NormStats.of(state), "actions": NormStats.of(action.flatten(0, 1))}
    floored = {name: stats.flat(config.min_scale) for name, stats in found.items()}
    stats = {name: value.floored(config.min_scale) for name, value in found.items()}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"norm_stats": {name: asdict(value) for name, value in stats.items()}}
    config.out.write_text(json.dumps(content, indent=2) + "\n")
    return stats["state"], stats["actions"], floored


def measured(policy: FlowPolicy, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the policy's pipeline normalizes of states (N, S) and chunks (N, H, d)."""
    bare = replace(
        policy.preprocessor.config,
        state=NormStats.identity(state.shape[-1]),
        action=NormStats.identity(action.shape[-1]),
        normalization="none",
    )
    preprocessor = policies.Preprocessor(bare, state.shape[-1], action.shape[-1])
    with torch.no_grad():
        return preprocessor.normalize_state(state), preprocessor.normalize_action(action, state)


def main() -> None:
    """Command line entry."""
    with exit_with_message():
        config = tyro.cli(NormStatsConfig, description=__doc__)
        *_, floored = norm_stats(config)
        console = Console()
        console.print(f"wrote {config.out}")
        if any(floored.values()):
            console.print(f"dimensions that hardly moved, scaled as if they had: {floored}")


if __name__ == "__main__":
    main()
