"""Measure the success rate of a checkpoint, with its interval.

pitune evaluate --checkpoint runs/pick/pretrained --env.id mujoco/PickCube
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pitune import envs, policies, rl
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.find_checkpoint import environment_note, find_checkpoint
from pitune.experiments.runs.config_file import plain, provenance
from pitune.experiments.runs.progress import count_episodes, screen
from pitune.ranges import DeviceName, PositiveInt, Seed, Settings


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """Measure the success rate of a checkpoint.

    Example:
        >>> EvaluateConfig(checkpoint=Path("runs/pick/pretrained")).episodes
        200
    """

    checkpoint: Path
    """Folder of the policy: ours, openpi's, lerobot's or orbax."""
    load: policies.LoadConfig = field(default_factory=policies.LoadConfig)
    """Settings that a checkpoint of another format lacks."""
    env: envs.EnvConfig = field(default_factory=envs.EnvConfig)
    episodes: PositiveInt = 200
    """Episodes."""
    seed: Seed = 0
    """Seed of the starts and of the policy's noise."""
    stochastic: bool = False
    """Explore as in training, with the likelihood below, instead of acting as deployed."""
    likelihood: policies.LikelihoodConfig = field(default_factory=policies.FlowSDEConfig)
    """Noise of a policy that explores."""
    out: Path | None = None
    """JSON file for the result."""
    device: DeviceName = "cuda" if torch.cuda.is_available() else "cpu"
    """Device of the policy."""


def evaluate(config: EvaluateConfig) -> rl.Evaluation:
    """Evaluate, print the result, and write it into `out` if that is set."""
    # policy, which explores by its likelihood or by its noise actor
    policy = policies.load(config.checkpoint, config.load).to(config.device)
    note = environment_note(policy, config.env)
    if note is not None:
        screen.note(note)
    actor = policies.Actor(policy)
    if config.stochastic and policy.noise_source is None:
        actor = policies.LikelihoodActor(policy, config.likelihood)

    # episodes
    env = envs.make(config.env)
    with count_episodes("evaluation", config.episodes, env.spec.num_envs) as on_step:
        result = rl.evaluate(
            env,
            actor,
            config.episodes,
            seed=config.seed,
            stochastic=config.stochastic,
            on_step=on_step,
        )

    # report
    console = Console()
    mode = "exploring" if config.stochastic else f"deployed (ODE, {policy.sampler.solver})"
    sampler = f"{mode}, {policy.sampler.flow_steps} flow steps"
    measure = "success " if result.success_rule else ""
    console.print(f"{config.env.id} ({env.spec.simulator}), {sampler}: {measure}{result}")
    if result.success_rate is not None and result.rate("once") != result.rate("at_end"):
        once, at_end = result.rate("once"), result.rate("at_end")
        console.print(f"  solved once: {once:.1%}, solved at the end: {at_end:.1%}")
    if (warning := result.warning()) is not None:
        console.print(f"  warning: {warning}")
    for task, (successes, episodes) in result.by_task().items():
        if len(env.spec.tasks) > 1:
            console.print(f"  {env.spec.tasks[task]}: {successes}/{episodes}")
    if config.out is not None:
        record: dict[str, Any] = {"config": plain(config), "provenance": provenance()}
        record["seeded_starts"] = env.spec.deterministic_reset
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps({**record, "result": result.summary()}, indent=2) + "\n")
    env.close()
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            EvaluateConfig, arguments(argv), prog=program("evaluate"), description=__doc__
        )
        evaluate(replace(config, checkpoint=find_checkpoint(config.checkpoint)))


if __name__ == "__main__":
    main()
