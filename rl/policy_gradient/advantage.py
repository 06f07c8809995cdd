"""Advantages of chunk decisions: pure functions on rollouts (E, T).

A chunk of duration d is one step of a semi-Markov process: its reward is the sum of its steps'
rewards, each discounted by its own time, and what comes after is discounted by discount^d.
"""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives.value.functional import vec_generalized_advantage_estimate

from pitune.rl.config import TimeLimit

GroupScale = Literal["group", "batch", "none"]


def chunk_reward(reward_steps: Tensor, live: Tensor, discount: float) -> Tensor:
    """Return the discounted reward of each chunk (E, T, 1).

    Args:
        reward_steps: Reward of each executed step (E, T, h).
        live: Whether the step was executed (E, T, h); what was not counts nothing.
        discount: Per environment step.
    """
    powers = discount ** torch.arange(reward_steps.shape[-1], device=reward_steps.device)
    return (reward_steps * live * powers).sum(-1, keepdim=True)


def generalized_advantage(
    rollout: TensorDictBase,
    discount: float,
    gae_lambda: float,
    time_limit: TimeLimit,
) -> tuple[Tensor, Tensor]:
    """Return advantages and value targets of a rollout, both (E, T, 1).

    Args:
        rollout: (E, T) with `state_value` and `("next", "state_value")` (E, T, 1), the latter of
            the observation that the chunk ended in, before any reset.
        discount: Per environment step, in [0, 1].
        gae_lambda: Per decision, in [0, 1].
        time_limit: "terminal" makes the time limit part of the task: nothing is won after it, and
            the critic must see the time. "bootstrap" continues past it with the last observation's
            value.

    Source: Schulman et al. 2016, eq. 16; TorchRL computes it. Differs: the discount is
    discount^duration per decision.
    """
    after = rollout["next"]
    # a simulator that broke down did not end the task, whatever the time limit means
    over = after["done"] & ~after["invalid"]
    ended = over if time_limit == "terminal" else after["terminated"]
    reward = chunk_reward(after["reward_steps"], after["live"], discount)
    return vec_generalized_advantage_estimate(
        gamma=discount ** after["duration"].float(),
        lmbda=gae_lambda,
        state_value=rollout["state_value"],
        next_state_value=after["state_value"],
        reward=reward,
        done=after["done"],
        terminated=ended,
        time_dim=-2,
    )


def standardize(advantage: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Return advantages with mean 0 and standard deviation 1 over the whole batch.

    Advantages that are all equal become 0, not noise divided by nothing.
    """
    centered = advantage - advantage.mean()
    std = centered.square().mean().sqrt()
    return centered / (std + epsilon) if std > epsilon else torch.zeros_like(advantage)


def group_relative(
    score: Tensor, counted: Tensor, scale: GroupScale, epsilon: float = 1e-6
) -> Tensor:
    """Return how much better each of a group's episodes scored than the group (N, G).

    Args:
        score: Of each episode (N, G).
        counted: Which episodes count (N, G); the others get 0 and enter no mean.
        scale: Divide by the standard deviation within the group, by that of the whole batch's
            advantages, or by nothing.
        epsilon: Keeps the division finite.

    Source: Shao et al. 2024 (GRPO); Liu et al. 2025 (Dr. GRPO) for no division; Flow-GRPO for the
    batch's. Differs: the standard deviations are those of a population, not of a sample.
    """
    weight = counted.to(score.dtype)
    num = weight.sum(1, keepdim=True).clamp(min=1)
    centered = (score - (score * weight).sum(1, keepdim=True) / num) * weight
    if scale == "group":
        return centered / ((centered.square().sum(1, keepdim=True) / num).sqrt() + epsilon)
    if scale == "batch":
        return centered / ((centered.square().sum() / weight.sum().clamp(min=1)).sqrt() + epsilon)
    return centered
