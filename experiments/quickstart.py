"""The main job, end to end: demonstrations, a cloned π0 policy, reinforcement learning, success.

    pitune quickstart
    pitune quickstart --algorithm filtered_bc
    pitune quickstart --env.id maniskill/PickCube-v1
    pitune quickstart --fast

An expert demonstrates the task in the simulator. A small π0 is cloned to a middling success rate,
evaluated, fine-tuned and evaluated again. `<environment>/seed_<n>/` in --out then holds
`pretrained/` and a run for each algorithm. `--fast` has folders of its own.

The same command again continues where it was interrupted, and prints the results of a finished run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pitune import envs, rl
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.pretrain import (
    RECORD,
    PretrainConfig,
    check_same_clone,
    pretrain,
)
from pitune.experiments.recipes import GUIDANCE, Recipe, recipe
from pitune.experiments.runs.config_file import plain
from pitune.experiments.runs.next_steps import Step, command, next_steps, other_algorithm
from pitune.experiments.runs.progress import screen
from pitune.experiments.runs.report import closing_table
from pitune.experiments.runs.resume import finished_summary, train_or_resume
from pitune.experiments.runs.run import WandbMode
from pitune.experiments.runs.signals import exit_on_signal
from pitune.experiments.runs.train_config import options
from pitune.experiments.train import TrainConfig, train
from pitune.ranges import PositiveOrInfinite, Seed, Settings


@dataclass(frozen=True, kw_only=True)
class QuickstartEnv(Settings):
    """The environment, whose other settings are in its recipe.

    Example:
        >>> QuickstartEnv(id="maniskill/PickCube-v1").id
        'maniskill/PickCube-v1'
    """

    id: str = "mujoco/PickCube"
    """`mujoco/<task>`, `maniskill/<task>`, `metaworld/<task>`, ..."""


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig(Settings):
    """Demonstrations, cloning, fine-tuning, evaluation.

    Example:
        >>> QuickstartConfig(seed=1, fast=True).folder.as_posix()
        'runs/quickstart/mujoco-PickCube-fast/seed_1'
    """

    algorithm: str = "ppo"
    """Registered name of the algorithm, and after a colon a likelihood or variant other than its
    default: `ppo:flow_noise`, `dgn:equal_size`, ..."""
    env: QuickstartEnv = field(default_factory=QuickstartEnv)
    seed: Seed = 0
    """Seed of the clone and of its fine-tuning."""
    out: Path = Path("runs/quickstart")
    """Folder for all environments and seeds."""
    fast: bool = False
    """Under two minutes: the same simulator, fewer steps."""
    max_minutes: PositiveOrInfinite = float("inf")
    """Longest time for fine-tuning [min]."""
    wandb: WandbMode = "offline"
    """Weights & Biases: `offline` writes its files into the run's folder."""
    compile: bool = False
    """Whether to compile the policy for fine-tuning with `torch.compile`. It takes a minute or
    more, which only a long run saves, and needs a C++ compiler."""

    @property
    def folder(self) -> Path:
        """Folder of the clone and its runs, one for each environment, seed and `fast`."""
        env = self.env.id.replace("/", "-") + ("-fast" if self.fast else "")
        return self.out / env / f"seed_{self.seed}"


def quickstart(config: QuickstartConfig) -> dict[str, Any]:
    """Run all of it, or the rest of it, and return the summary with the next commands."""
    settings = settings_of(config)
    training = training_config(config, settings)
    summary = run_job(config, settings, training)
    return {**summary, "next": _next_steps(config, training.out)}


def settings_of(config: QuickstartConfig) -> Recipe:
    """Return the recipe for the environment and the algorithm."""
    settings = recipe(config.env.id).for_algorithm(config.algorithm)
    return settings.fast() if config.fast else settings


def run_job(config: QuickstartConfig, settings: Recipe, training: TrainConfig) -> dict[str, Any]:
    """Do the parts of a job that are not done yet, and return the summary of its run.

    Raises:
        ValueError: the folder has a clone or a run with other settings.
    """
    summary = finished_summary(training)
    if summary is not None:
        screen.note(
            f"{training.out} holds a finished run, and nothing is run again. To start anew, "
            "remove this folder, or pass another --seed or --out"
        )
        return summary
    make_clone(config, settings)
    make_guidance(config, settings)
    return train_or_resume(training, train)


def make_clone(config: QuickstartConfig, settings: Recipe) -> None:
    """Collect demonstrations and clone them, unless the folder has this clone already.

    Raises:
        ValueError: the folder has a clone with other settings.
    """
    pretraining = PretrainConfig(
        env=recipe(config.env.id).env,  # not the algorithm's: the clone is the same for all
        out=config.folder,
        num_demonstrations=settings.num_demonstrations,
        gradient_steps=settings.gradient_steps,
        seed=config.seed,
    )
    if not (config.folder / "pretrained").is_dir():
        pretrain(pretraining)
        return
    if (config.folder / RECORD).is_file():
        check_same_clone(pretraining)
    screen.note(f"{config.folder / 'pretrained'} exists and is fine-tuned")


def make_guidance(config: QuickstartConfig, settings: Recipe) -> None:
    """Collect demonstrations that the clone has not seen, if the algorithm is guided by such."""
    file = config.folder / GUIDANCE
    entry = rl.registry.entry(config.algorithm.partition(":")[0])
    if file.is_file() or not entry.unseen_demonstrations:
        return
    env = envs.make(recipe(config.env.id).env)
    cloned = settings.num_demonstrations
    with screen.task("guidance", 2 * cloned) as task:
        demonstrations = rl.collect_demonstrations(
            env, 2 * cloned, config.seed, on_step=lambda num: task.update(min(num, 2 * cloned))
        )
    # with this seed the first episodes are those that were cloned
    demonstrations.after(cloned).save(file)
    env.close()


def training_config(config: QuickstartConfig, settings: Recipe) -> TrainConfig:
    """Return the fine-tuning of the clone."""
    return TrainConfig(
        algorithm=settings.algorithm(config.algorithm, config.folder),
        env=settings.env,
        checkpoint=config.folder / "pretrained",
        out=config.folder / config.algorithm.replace(":", "-"),
        seed=config.seed,
        num_iterations=settings.num_iterations,
        num_chunks=settings.num_chunks,
        eval_every=settings.eval_every,
        eval_episodes=settings.eval_episodes,
        max_minutes=config.max_minutes,
        stop_at=settings.stop_at,
        wandb=config.wandb,
        compile=config.compile,
    )


def _next_steps(config: QuickstartConfig, folder: Path) -> list[Step]:
    """Return the next commands, of which the quickstart itself swaps the algorithm."""
    other = other_algorithm(config.algorithm.partition(":")[0])
    words = options({**plain(config), "algorithm": "ppo"}, plain(QuickstartConfig()))
    return next_steps(folder, swap=command("quickstart", "--algorithm", other, *words))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message(), exit_on_signal():
        config = parse(
            QuickstartConfig, arguments(argv), prog=program("quickstart"), description=__doc__
        )
        closing_table(quickstart(config))


if __name__ == "__main__":
    main()
