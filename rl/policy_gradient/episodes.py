"""The whole episodes of a rollout: their decisions, scores and groups.

In shapes, `episodes` is the number of episodes per environment, `size` that per group.
Letters: E envs, T chunk decisions, s robot state dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from tensordict import TensorDictBase
from torch import Tensor

from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.policy_gradient.advantage import chunk_reward


class Episodes(NamedTuple):
    """The episodes of a rollout, as tables (E, episodes).

    Example:
        >>> played = episodes(rollout, discount=1.0)  # doctest: +SKIP
        >>> float(played.success[played.counted].float().mean())  # doctest: +SKIP
        0.5
    """

    score: Tensor
    """Discounted return from the episode's start."""
    success: Tensor
    """Whether the episode succeeded, by the environment's definition."""
    counted: Tensor
    """Whether the episode ended inside the rollout, in a working simulator."""
    start: Tensor
    """State of the first decision (E, episodes, s) [robot units]."""
    number: Tensor
    """Column of each decision's episode (E, T), or `episodes` for decisions without an executed
    step."""


def episodes(rollout: TensorDictBase, discount: float) -> Episodes:
    """Return the episodes of a rollout (E, T) that begins with new episodes.

    Args:
        rollout: Decisions with `reward_steps`, `live`, `duration`, `done`, `success` and `invalid`
            under `next`.
        discount: Discount per environment step.
    """
    # episode of each decision
    outcome = sub_dict(rollout, "next")
    done, played = outcome["done"].squeeze(-1), outcome["duration"].squeeze(-1) > 0
    # number of ends before each decision (E, T)
    number = done.long().cumsum(1) - done.long()
    num = int((number + 1)[played].max()) if played.any() else 1

    # empty tables
    envs = torch.arange(len(done), device=done.device)
    to_go = _returns_to_go(outcome, discount)
    shape = (len(done), num)
    score = to_go.new_zeros(shape)
    state: Tensor = rollout["state"]
    start = state.new_zeros(*shape, state.shape[-1])
    written = torch.zeros(shape, dtype=torch.bool, device=done.device)
    flags = {key: written.clone() for key in _FLAGS}

    # one decision of each environment at a time, so that an episode's first one is written last
    # and its flags are those of its last one
    for t in reversed(range(done.shape[1])):
        row = envs[played[:, t]]
        column = number[row, t]
        score[row, column] = to_go[row, t]
        start[row, column] = state[row, t].to(start)
        for key in _FLAGS:
            flag = outcome[key][row, t, 0]
            flags[key][row, column] = torch.where(
                written[row, column], flags[key][row, column], flag
            )
        written[row, column] = True
    counted = flags["done"] & ~flags["invalid"]
    return Episodes(score, flags["success"], counted, start, torch.where(played, number, num))


_FLAGS = ("done", "success", "invalid")


def _returns_to_go(outcome: TensorDictBase, discount: float) -> Tensor:
    """Return the discounted rewards (E, T) from each decision to the end of its episode."""
    reward = chunk_reward(outcome["reward_steps"], outcome["live"], discount).squeeze(-1)
    factor = discount ** outcome["duration"].squeeze(-1).float()
    done = outcome["done"].squeeze(-1)
    to_go, following = torch.zeros_like(reward), torch.zeros_like(reward[:, 0])
    for t in reversed(range(reward.shape[1])):
        following = torch.where(done[:, t], torch.zeros_like(following), following)
        following = reward[:, t] + factor[:, t] * following
        to_go[:, t] = following
    return to_go


def grouped(table: Tensor, group_size: int) -> Tensor:
    """Return a table (E, episodes) as groups (groups, size) of neighbors with the same start."""
    pattern = "(shares size) episodes -> (shares episodes) size"
    return rearrange(table, pattern, size=group_size)


def ungrouped(groups: Tensor, num_episodes: int) -> Tensor:
    """Return groups (groups, size) as a table (E, episodes), the inverse of `grouped`."""
    pattern = "(shares episodes) size -> (shares size) episodes"
    return rearrange(groups, pattern, episodes=num_episodes)
