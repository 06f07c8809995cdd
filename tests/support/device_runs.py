"""Policies, algorithms and settings for runs on a device that is not the host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

from pitune import envs, policies, rl
from pitune.experiments.benchmarks.update import with_settings
from pitune.policies import FlowPolicy
from pitune.rl.experience.sub_dict import sub_dict
from settings import changed
from vision_policies import vision_policy

STATE_ENV = envs.EnvConfig(id="mock/Reach", num_envs=8, num_workers=0, max_episode_steps=16)
NUM_CHUNKS = 4
HORIZON = 4
"""Executed actions of a decision."""
SETTINGS: dict[str, Any] = {
    "minibatch_size": 8,
    "gradient_steps": 3,
    "num_epochs": 2,
    "critic_warmup": 0,
    "group_size": 2,
    "num_members": 2,
    "min_kept": 0.0,
    "hidden": (16, 16),
    "warmup_decisions": 8,
    "warmup_rounds": 4,
    "initial_fit_steps": 3,
    "fit_steps": 3,
    "fit_every": 8,
}
"""Small settings with several gradient steps in each update."""
ALGORITHMS = (
    *("ppo", "grpo", "fpo", "epo", "filtered_bc"),
    *("bc", "dsrl", "dsrl:noise_aliased", "wsrl", "dgn"),
)
COVERING = {
    "ppo": "pi0 frozen bf16",
    "grpo": "pi05 lora",
    "fpo": "pi05 frozen",
    "epo": "pi0 lora bf16",
    "filtered_bc": "pi0 frozen",
    "bc": "pi05 lora bf16",
    "dsrl": "pi05 frozen bf16",
    "dsrl:noise_aliased": "pi0 frozen",
    "wsrl": "pi0 lora",
    "dgn": "pi05 frozen bf16",
}
"""A policy with cameras and words for each algorithm, so that every option is met."""


def policy_of(kind: str, state_policy: FlowPolicy, device: torch.device) -> FlowPolicy:
    """Return a policy on a device.

    Args:
        kind: "state", or "pi0" and "pi05" with cameras and words, followed by "frozen", "lora",
            "bf16" or nothing.
        state_policy: The small policy for "state".
        device: Where it computes.
    """
    family, *options = kind.split()
    policy = state_policy
    if family != "state":
        policy = vision_policy(family)  # type: ignore[arg-type]
        policy = policy.replace(sampler=replace(policy.sampler, execution_horizon=HORIZON))
    settings: dict[str, Any] = {}
    if "frozen" in options:
        settings["trainable"] = ("action_expert", "projections")
    if "lora" in options:
        lora = policies.LoRAConfig(rank=2, targets=("gemma_expert.*_proj",))
        settings |= {"lora": lora, "trainable": ("projections",)}
    if "bf16" in options:
        settings["dtype"] = "bfloat16"
    policy = policies.apply_finetuning(policy, policies.FinetuneConfig(**settings))
    return policy.to(device)


def algorithm_config(name: str, demonstrations: Path, **settings: Any) -> rl.AlgorithmConfig:
    """Return the preset of an algorithm with small settings."""
    values = SETTINGS | {"demonstrations": demonstrations} | settings
    name, _, variant = name.partition(":")
    config = with_settings(rl.preset(name), values)
    return changed(config, variant=variant) if variant else config


def with_outcomes(rollout: TensorDictBase, algorithm: rl.Algorithm[Any]) -> None:
    """Let every second environment succeed and rewards differ, or little is learned on policy."""
    if not algorithm.needs.rollouts:
        return
    outcome = sub_dict(rollout, "next")
    rewards = outcome["reward_steps"]
    outcome["reward_steps"] = torch.rand(rewards.shape).to(rewards)
    success = torch.zeros(outcome["success"].shape, dtype=torch.bool)
    success[::2] = True
    outcome["success"] = success.to(rewards.device)
