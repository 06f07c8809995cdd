"""The main job, end to end: demonstrations, a cloned π0 policy, reinforcement learning, success.

    python -m experiments.quickstart
    python -m experiments.quickstart --algorithm filtered_bc
    python -m experiments.quickstart --env.id maniskill/PickCube-v1 --out runs/maniskill
    python -m experiments.quickstart --fast

In the simulator an expert demonstrates, a small π0 is cloned to a middling success rate, evaluated,
fine-tuned, evaluated again. The folder --out then holds `pretrained/` and the run of the algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

import rl
from experiments.errors import exit_with_message
from experiments.pretrain import PretrainConfig, pretrain
from experiments.recipes import Recipe, recipe
from experiments.report import closing_table
from experiments.run import WandbMode
from experiments.train import TrainConfig, train


@dataclass(frozen=True, kw_only=True)
class QuickstartEnv:
    """The environment; everything else about it is in its recipe."""

    id: str = "mujoco/PickCube"
    """`mujoco/<task>`, `maniskill/<task>`, `metaworld/<task>`, ..."""


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Demonstrations, cloning, fine-tuning, evaluation."""

    algorithm: str = "ppo"
    """Registered name of the algorithm that fine-tunes."""
    env: QuickstartEnv = field(default_factory=QuickstartEnv)
    seed: int = 0
    """Seed of everything."""
    out: Path = Path("runs/quickstart")
    """Folder for the pretrained policy and the run."""
    fast: bool = False
    """Under two minutes: the same simulator, fewer steps."""
    max_minutes: float = float("inf")
    """Most time for fine-tuning [min]."""
    wandb: WandbMode = "offline"
    """Where Weights & Biases metrics go."""


def quickstart(config: QuickstartConfig) -> dict[str, Any]:
    """Run all of it; return the summary of the fine-tuning."""
    settings = recipe(config.env.id)
    algorithm = _algorithm(config, settings)
    settings = settings.for_algorithm(algorithm)
    settings = settings.fast() if config.fast else settings
    pretrained = config.out / "pretrained"
    console = Console(stderr=True)
    if pretrained.is_dir():
        console.print(f"{pretrained} is there already and is fine-tuned")
    else:
        pretrain(
            PretrainConfig(
                env=settings.env,
                out=config.out,
                num_demonstrations=settings.num_demonstrations,
                gradient_steps=settings.gradient_steps,
                seed=config.seed,
            )
        )
    return train(
        TrainConfig(
            algorithm=algorithm,
            env=settings.env,
            checkpoint=pretrained,
            out=config.out / config.algorithm,
            seed=config.seed,
            num_iterations=settings.num_iterations,
            num_chunks=settings.num_chunks,
            eval_every=settings.eval_every,
            eval_episodes=settings.eval_episodes,
            max_minutes=config.max_minutes,
            wandb=config.wandb,
        )
    )


def _algorithm(config: QuickstartConfig, settings: Recipe) -> rl.AlgorithmConfig:
    algorithm = settings.settings(rl.preset(config.algorithm))
    return algorithm.with_demonstrations(config.out / "demonstrations.safetensors")


def main() -> None:
    """Command line entry."""
    with exit_with_message():
        closing_table(quickstart(tyro.cli(QuickstartConfig, description=__doc__)))


if __name__ == "__main__":
    main()
