"""Advantages of chunk decisions, as pure functions on rollouts (E, T).

A chunk is one step of a semi-Markov process. Its reward is the discounted sum of the rewards of its
steps, and the next value is discounted by discount^duration.
Letters: E envs, T chunk decisions, B minibatch rows, h executed actions.
"""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives.value.functional import generalized_advantage_estimate

from pitune.rl import ranks
from pitune.rl.config import TimeLimit
from pitune.rl.experience.sub_dict import sub_dict

GroupScale = Literal["group", "batch", "none"]


def chunk_reward(reward_steps: Tensor, live: Tensor, discount: float) -> Tensor:
    """Return the discounted reward of each chunk (E, T, 1).

    Args:
        reward_steps: Reward of each executed step (E, T, h).
        live: Whether the step was executed (E, T, h). Other steps do not count.
        discount: Discount per environment step.
    """
    powers = discount ** torch.arange(reward_steps.shape[-1], device=reward_steps.device)  # (h,)
    return (reward_steps * live * powers).sum(-1, keepdim=True)


def generalized_advantage(
    rollout: TensorDictBase,
    discount: float,
    gae_lambda: float,
    time_limit: TimeLimit,
) -> tuple[Tensor, Tensor]:
    """Return advantages and value targets of a rollout, both (E, T, 1).

    Args:
        rollout: Decisions (E, T) with `state_value` and `("next", "state_value")` (E, T, 1). The
            latter is the value of the observation after the chunk, before any reset.
        discount: Discount per environment step, in [0, 1].
        gae_lambda: Weight of long returns per decision, in [0, 1].
        time_limit: "terminal" makes the time limit part of the task. There is no reward after it,
            and the critic's input must contain the time. "bootstrap" continues past it with the
            value of the last observation.

    The time is linear in T. TorchRL's vectorized form is quadratic with a discount per decision.

    Source: Schulman et al. 2016, eq. 16, computed by TorchRL. Differs: the discount is
    discount^duration per decision.
    """
    outcome = sub_dict(rollout, "next")
    # a broken simulator does not end the task, for both meanings of the time limit
    over = outcome["done"] & ~outcome["invalid"]
    ended = over if time_limit == "terminal" else outcome["terminated"]
    reward = chunk_reward(outcome["reward_steps"], outcome["live"], discount)
    return generalized_advantage_estimate(
        gamma=discount ** outcome["duration"].float(),
        lmbda=gae_lambda,
        state_value=rollout["state_value"].float(),
        next_state_value=outcome["state_value"].float(),
        reward=reward,
        done=outcome["done"],
        terminated=ended,
        time_dim=-2,
    )


ROUNDING = 1e-5
"""Differences below this share of the numbers that they are computed from are rounding [-]."""


def standardize(advantage: Tensor, epsilon: float = 1e-5, size: float = 0.0) -> Tensor:
    """Return advantages with mean 0 and standard deviation 1 over the batch of all ranks.

    Equal advantages become 0, because their rounding errors must not be scaled up.

    Args:
        advantage: Advantages of a batch.
        epsilon: Added to the divisor. A smaller standard deviation counts as 0.
        size: Greatest absolute value and value target, whose rounding enters the advantages.
    """
    centered = advantage - ranks.mean(advantage)
    std = ranks.mean(centered.square()).sqrt()
    differ = std > max(epsilon, ROUNDING * size)
    return centered / (std + epsilon) if differ else torch.zeros_like(advantage)


def value_size(batch: TensorDictBase) -> float:
    """Return the greatest absolute value and value target (B, 1) on any rank, 0 without rows."""
    keys = ("state_value", "value_target") if len(batch) else ()
    return ranks.greatest(max((float(batch[key].abs().max()) for key in keys), default=0.0))


def group_relative(
    score: Tensor, counted: Tensor, scale: GroupScale, epsilon: float = 1e-6
) -> Tensor:
    """Return the advantages (groups, episodes) of episodes over the mean of their group.

    Args:
        score: Scores (groups, episodes).
        counted: Mask of the counted episodes (groups, episodes). The others get 0, and so do all of
            a group whose scores are equal up to rounding.
        scale: Divisor: the standard deviation within the group, that of the whole batch, or none.
        epsilon: Added to the divisor.

    Sources: Shao et al. 2024 (GRPO), Liu et al. 2025 (Dr. GRPO) for no division, Flow-GRPO for the
    deviation of the batch. Differs: the standard deviations are those of a population, not of a
    sample.
    """
    # difference to the group's mean
    weight = counted.to(score.dtype)
    num = weight.sum(1, keepdim=True).clamp(min=1)
    centered = (score - (score * weight).sum(1, keepdim=True) / num) * weight
    size = (score * weight).abs().amax(1, keepdim=True)  # (groups, 1)
    differ = centered.abs().amax(1, keepdim=True) > ROUNDING * size
    centered = torch.where(differ, centered, torch.zeros_like(centered))

    # scale
    if scale == "group":
        return centered / ((centered.square().sum(1, keepdim=True) / num).sqrt() + epsilon)
    if scale == "batch":
        square, num = ranks.total(centered.square().sum()), ranks.total(weight.sum())
        return centered / ((square / num.clamp(min=1)).sqrt() + epsilon)
    return centered
