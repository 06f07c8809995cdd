"""Make a policy to fine-tune: demonstrations from an expert in the simulator, then cloning.

    python -m experiments.pretrain --env.id mujoco/PickCube --num-demonstrations 14 --out runs/pick

writes `demonstrations.safetensors` and the checkpoint folder `pretrained/` into --out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pitune import envs, policies, rl
from pitune.experiments.errors import exit_with_message
from pitune.experiments.parsing import arguments, parse, program
from pitune.rl.algorithms.bc import CloningStep, clone


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Collect demonstrations and clone them."""

    env: envs.EnvConfig = field(default_factory=envs.EnvConfig)
    out: Path = Path("runs/pretrain")
    """New folder for the demonstrations and the checkpoint."""
    num_demonstrations: int = 14
    """Successful episodes of the expert."""
    gradient_steps: int = 1500
    """Steps of cloning."""
    minibatch_size: int = 128
    """Chunks per gradient step."""
    learning_rate: float = 1e-3
    """AdamW's step size at the start; it falls by a cosine [-]."""
    action_horizon: int = 4
    """H, actions that one decision predicts."""
    sampler: policies.SamplerConfig = field(default_factory=policies.SamplerConfig)
    expert: policies.GemmaConfig = field(default_factory=lambda: policies.LAPTOP_EXPERT)
    """Sizes of the transformer."""
    torch_threads: int = 1
    """Threads of PyTorch on the CPU; see `pitune.experiments.train`."""
    seed: int = 0
    """Seed of the expert's starts, the weights and the minibatches."""


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Collect, clone and save; return what it took.

    Raises:
        FileExistsError: --out holds a pretrained policy already.
    """
    folder = config.out / "pretrained"
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; pass another --out or remove it")
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.torch_threads)
    console, start = Console(stderr=True), time.monotonic()
    env = envs.make(config.env)
    demonstrations = rl.collect_demonstrations(env, config.num_demonstrations, config.seed)
    env.close()
    demonstrations.save(config.out / "demonstrations.safetensors")
    collected = time.monotonic()
    console.print(
        f"{demonstrations.num_episodes} demonstrations, {len(demonstrations.action)} steps of "
        f"{config.env.id} in {collected - start:.0f} s"
    )
    policy = policies.small_policy(
        demonstrations.obs["state"],
        demonstrations.action,
        action_horizon=config.action_horizon,
        sampler=config.sampler,
        expert=config.expert,
    )
    floored = policy.preprocessor.floored()
    if any(floored.values()):
        console.print(f"dimensions that hardly moved, scaled as if they had: {floored}")
    cloning = rl.BCConfig(
        learning_rate=config.learning_rate,
        decay_steps=config.gradient_steps,
        minibatch_size=config.minibatch_size,
    )
    step = CloningStep(policy, cloning)
    loss = clone(step, demonstrations.chunks(config.action_horizon), config.gradient_steps)
    policies.save(policy, folder)
    seconds = time.monotonic() - collected
    console.print(f"cloned in {config.gradient_steps} steps, {seconds:.0f} s, mean loss {loss:.3f}")
    return {"demonstrations": collected - start, "cloning": seconds, "loss": loss}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            PretrainConfig, arguments(argv), prog=program("pretrain"), description=__doc__
        )
        pretrain(config)


if __name__ == "__main__":
    main()
