"""The main job, end to end: demonstrations, a cloned π0 policy, reinforcement learning, success.

    python -m experiments.quickstart
    python -m experiments.quickstart --algorithm filtered_bc
    python -m experiments.quickstart --env.id maniskill/PickCube-v1 --out runs/maniskill
    python -m experiments.quickstart --fast

In the simulator an expert demonstrates, a small π0 is cloned to a middling success rate, evaluated,
fine-tuned, evaluated again. The folder --out then holds `pretrained/` and the run of the algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from pitune import envs, rl
from pitune.experiments.errors import exit_with_message
from pitune.experiments.parsing import arguments, parse, program
from pitune.experiments.pretrain import PretrainConfig, pretrain
from pitune.experiments.recipes import GUIDANCE, Recipe, recipe
from pitune.experiments.runs.report import closing_table
from pitune.experiments.runs.run import WandbMode
from pitune.experiments.train import TrainConfig, train


@dataclass(frozen=True, kw_only=True)
class QuickstartEnv:
    """The environment; everything else about it is in its recipe."""

    id: str = "mujoco/PickCube"
    """`mujoco/<task>`, `maniskill/<task>`, `metaworld/<task>`, ..."""


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Demonstrations, cloning, fine-tuning, evaluation."""

    algorithm: str = "ppo"
    """Registered name of the algorithm that fine-tunes, and after a colon its likelihood
    or variant if that is to be another than the default: `ppo:flow_noise`, `dgn:equal_size`, ..."""
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
    settings = settings_of(config)
    training = training_config(config, settings)
    make_clone(config, settings)
    make_guidance(config, settings)
    return train(training)


def settings_of(config: QuickstartConfig) -> Recipe:
    """Return the recipe for the environment and the algorithm."""
    settings = recipe(config.env.id).for_algorithm(config.algorithm)
    return settings.fast() if config.fast else settings


def make_clone(config: QuickstartConfig, settings: Recipe) -> None:
    """Collect demonstrations and clone them, unless the folder has a clone already."""
    pretrained = config.out / "pretrained"
    if pretrained.is_dir():
        Console(stderr=True).print(f"{pretrained} is there already and is fine-tuned")
        return
    pretrain(
        PretrainConfig(
            env=recipe(config.env.id).env,  # of whichever algorithm: the clone is the same
            out=config.out,
            num_demonstrations=settings.num_demonstrations,
            gradient_steps=settings.gradient_steps,
            seed=config.seed,
        )
    )


def make_guidance(config: QuickstartConfig, settings: Recipe) -> None:
    """Collect demonstrations that the clone has not seen, if the algorithm is guided by such."""
    file = config.out / GUIDANCE
    if file.is_file() or not isinstance(
        rl.preset(config.algorithm.partition(":")[0]), rl.DGNConfig
    ):
        return
    env = envs.make(recipe(config.env.id).env)
    cloned = settings.num_demonstrations
    rl.collect_demonstrations(env, 2 * cloned, config.seed).after(cloned).save(file)
    env.close()


def training_config(config: QuickstartConfig, settings: Recipe) -> TrainConfig:
    """Return how the clone is fine-tuned."""
    return TrainConfig(
        algorithm=settings.algorithm(config.algorithm, config.out),
        env=settings.env,
        checkpoint=config.out / "pretrained",
        out=config.out / config.algorithm.replace(":", "-"),
        seed=config.seed,
        num_iterations=settings.num_iterations,
        num_chunks=settings.num_chunks,
        eval_every=settings.eval_every,
        eval_episodes=settings.eval_episodes,
        max_minutes=config.max_minutes,
        stop_at=settings.stop_at,
        wandb=config.wandb,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            QuickstartConfig, arguments(argv), prog=program("quickstart"), description=__doc__
        )
        closing_table(quickstart(config))


if __name__ == "__main__":
    main()
