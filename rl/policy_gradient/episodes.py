"""Whole episodes in a rollout: which decision belongs to which, and what each was worth.

Letters: E envs, T chunk decisions, Q episodes per environment, N groups, G episodes per group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.rl.policy_gradient.advantage import chunk_reward


class Episodes(NamedTuple):
    """The episodes of a rollout, as tables (E, Q)."""

    score: Tensor
    """Discounted return from the episode's start."""
    success: Tensor
    """Whether it succeeded."""
    counted: Tensor
    """Whether it ended inside the rollout, in a simulator that did not break down."""
    start: Tensor
    """State of its first decision (E, Q, S) [robot units]."""
    number: Tensor
    """Column of each decision's episode (E, T), and Q for decisions that nothing came of."""


def episodes(rollout: TensorDictBase, discount: float) -> Episodes:
    """Return the episodes of a rollout (E, T) whose first decisions are episodes' first.

    Args:
        rollout: With `reward_steps`, `live`, `duration`, `done`, `success` and `invalid` after
            each decision.
        discount: Per environment step.
    """
    after = rollout["next"]
    done, played = after["done"].squeeze(-1), after["duration"].squeeze(-1) > 0
    number = done.long().cumsum(1) - done.long()
    num = int((number + 1)[played].max()) if played.any() else 1
    envs = torch.arange(len(done), device=done.device)
    to_go = _returns_to_go(after, discount)
    shape = (len(done), num)
    score, start = to_go.new_zeros(shape), rollout["state"].new_zeros(*shape, 1)
    start = start.repeat(1, 1, rollout["state"].shape[-1])
    flags = {key: torch.zeros(shape, dtype=torch.bool, device=done.device) for key in _FLAGS}
    for t in reversed(range(done.shape[1])):  # the first decision of an episode is written last
        row = envs[played[:, t]]
        column = number[row, t]
        score[row, column] = to_go[row, t]
        start[row, column] = rollout["state"][row, t].to(start)
        for key in _FLAGS:
            flags[key][row, column] |= after[key][row, t, 0]
    counted = flags["done"] & ~flags["invalid"]
    return Episodes(score, flags["success"], counted, start, torch.where(played, number, num))


_FLAGS = ("done", "success", "invalid")


def _returns_to_go(after: TensorDictBase, discount: float) -> Tensor:
    """Return the discounted reward from each decision to its episode's end (E, T)."""
    reward = chunk_reward(after["reward_steps"], after["live"], discount).squeeze(-1)
    factor = discount ** after["duration"].squeeze(-1).float()
    done = after["done"].squeeze(-1)
    to_go, following = torch.zeros_like(reward), torch.zeros_like(reward[:, 0])
    for t in reversed(range(reward.shape[1])):
        following = torch.where(done[:, t], torch.zeros_like(following), following)
        following = reward[:, t] + factor[:, t] * following
        to_go[:, t] = following
    return to_go


def grouped(table: Tensor, group_size: int) -> Tensor:
    """Return a table (E, Q) by groups (N, G): neighbors that played the same start together."""
    by_group = table.unflatten(0, (-1, group_size)).transpose(1, 2)  # (E / G, Q, G)
    return by_group.flatten(0, 1)


def ungrouped(groups: Tensor, num_episodes: int) -> Tensor:
    """Return groups (N, G) as a table (E, Q) again."""
    return groups.unflatten(0, (-1, num_episodes)).transpose(1, 2).flatten(0, 1)
