"""Measure the success rate of a checkpoint, with its interval.

pitune evaluate --checkpoint runs/pick/pretrained --env.id mujoco/PickCube
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
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
from pitune.policies.actor import ActingModule
from pitune.policies.flow.delay import DelayConfig
from pitune.policies.flow.real_time import RealTimeConfig
from pitune.policies.real_time.delayed_actor import DelayedActor
from pitune.policies.serving.client import RemoteConfig, RemoteOptions
from pitune.policies.serving.remote_policy import RemoteActor, RemotePolicy
from pitune.ranges import DeviceName, PositiveInt, Seed, Settings


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """Measure the success rate of a checkpoint.

    Example:
        >>> EvaluateConfig(checkpoint=Path("runs/pick/pretrained")).episodes
        200
    """

    checkpoint: Path
    """Folder of the policy: ours, openpi's, lerobot's or orbax. Or the address of a policy server,
    such as ws://127.0.0.1:8000."""
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
    delay: DelayConfig = field(default_factory=DelayConfig)
    """Steps that the robot executes before a new chunk arrives."""
    real_time: RealTimeConfig = field(default_factory=RealTimeConfig)
    """Real-time chunking of a checkpoint that has no settings of its own."""
    remote: RemoteOptions = field(default_factory=RemoteOptions)
    """Settings of a policy server."""
    out: Path | None = None
    """JSON file for the result."""
    device: DeviceName = "cuda" if torch.cuda.is_available() else "cpu"
    """Device of the policy."""


def evaluate(config: EvaluateConfig) -> rl.Evaluation:
    """Evaluate, print the result, and write it into `out` if that is set."""
    uri = server_of(config.checkpoint)
    if uri is not None:
        return _evaluate_server(config, RemoteConfig(uri=uri, **vars(config.remote)))

    # policy, which explores by its likelihood or by its noise actor
    policy = policies.load(config.checkpoint, config.load).to(config.device)
    note = environment_note(policy, config.env)
    if note is not None:
        screen.note(note)
    mode = "exploring" if config.stochastic else f"deployed (ODE, {policy.sampler.solver})"
    how = f"{mode}, {policy.sampler.flow_steps} flow steps{_delay_note(config.delay)}"
    actor = _actor(config, policy)
    env = envs.make(config.env)
    result = _play(config, env, actor)
    _report(config, env, result, how)
    env.close()
    return result


def server_of(checkpoint: Path) -> str | None:
    """Return the address of a policy server that was given as a checkpoint, or None for a folder.

    A `Path` keeps one of two slashes.

    Example:
        >>> server_of(Path("ws://localhost:8000")), server_of(Path("runs/pick"))
        ('ws://localhost:8000', None)
    """
    scheme, _, rest = str(checkpoint).partition(":/")
    return f"{scheme}://{rest.lstrip('/')}" if scheme in ("ws", "wss") else None


def _evaluate_server(config: EvaluateConfig, remote: RemoteConfig) -> rl.Evaluation:
    """Evaluate the policy behind a server.

    Raises:
        ValueError: a setting needs the policy itself, or the server fails.
    """
    if config.stochastic or config.delay != DelayConfig():
        raise ValueError(
            f"stochastic and delay need the policy itself, not a server ({remote.uri}); leave them"
        )
    env = envs.make(config.env)
    policy = RemotePolicy(remote, env.spec.state_dim, env.spec.action_dim, list(env.spec.cameras))
    start = time.perf_counter()
    try:
        result = _play(config, env, RemoteActor(policy))
    finally:
        policy.close()
    share = policy.waiting_seconds / (time.perf_counter() - start)
    how = f"{remote.uri}, waited {policy.waiting_seconds:.1f} s ({share:.0%} of the time) for it"
    _report(config, env, result, how, {"waiting_seconds": policy.waiting_seconds})
    env.close()
    return result


def _actor(config: EvaluateConfig, policy: policies.FlowPolicy) -> ActingModule:
    """Return the actor of a policy: deployed, exploring, or under a delay.

    Raises:
        ValueError: the policy cannot meet the delay, or would explore under it, or `real_time` has
            no effect.
    """
    _check_real_time(config, policy)
    if config.delay != DelayConfig():
        if config.stochastic:
            raise ValueError("stochastic=True explores without a delay; leave delay at its default")
        if policy.sampler.real_time is None and config.delay.seam == "real_time":
            policy = policy.replace(sampler=replace(policy.sampler, real_time=config.real_time))
        return DelayedActor(policy, config.delay, config.seed)
    policy = policy.with_delay(DelayConfig())
    if config.stochastic and policy.noise_source is None:
        return policies.LikelihoodActor(policy, config.likelihood)
    return policies.Actor(policy)


def _check_real_time(config: EvaluateConfig, policy: policies.FlowPolicy) -> None:
    """Refuse settings of real-time chunking that would not be used.

    Raises:
        ValueError: the seam is another one, or the checkpoint has other settings.
    """
    own = policy.sampler.real_time
    if config.real_time == RealTimeConfig():
        return
    if config.delay.seam != "real_time":
        raise ValueError(
            f"real_time is set, but delay.seam={config.delay.seam!r} does not use it; set "
            "--delay.seam real_time"
        )
    if own not in (None, config.real_time):
        raise ValueError(
            f"real_time is set, but the checkpoint has settings of its own, {own}; leave it at its "
            "default"
        )


def _delay_note(delay: DelayConfig) -> str:
    """Return the delay and its seam for the report, nothing without a delay."""
    if delay == DelayConfig():
        return ""
    steps = f"{delay.steps}" if delay.max_steps is None else f"{delay.steps} to {delay.max_steps}"
    return f", delay of {steps} steps ({delay.seam})"


def _play(config: EvaluateConfig, env: envs.CheckedEnv, actor: ActingModule) -> rl.Evaluation:
    """Play the episodes."""
    with count_episodes("evaluation", config.episodes, env.spec.num_envs) as on_step:
        return rl.evaluate(
            env,
            actor,
            config.episodes,
            seed=config.seed,
            stochastic=config.stochastic,
            on_step=on_step,
        )


def _report(
    config: EvaluateConfig,
    env: envs.CheckedEnv,
    result: rl.Evaluation,
    how: str,
    further: Mapping[str, Any] | None = None,
) -> None:
    """Print the result, and write it into `out` if that is set.

    Args:
        config: Settings.
        env: The environment.
        result: Outcomes.
        how: The sampler or the server, for the printed line.
        further: Entries of the file.
    """
    console = Console()
    measure = "success " if result.success_rule else ""
    console.print(f"{config.env.id} ({env.spec.simulator}), {how}: {measure}{result}")
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
        record |= {"seeded_starts": env.spec.deterministic_reset, **(further or {})}
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps({**record, "result": result.summary()}, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            EvaluateConfig, arguments(argv), prog=program("evaluate"), description=__doc__
        )
        if server_of(config.checkpoint) is None:
            config = replace(config, checkpoint=find_checkpoint(config.checkpoint))
        evaluate(config)


if __name__ == "__main__":
    main()
