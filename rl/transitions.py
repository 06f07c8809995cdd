"""From rollouts to the rows of a replay memory.

A row is one decision: what was seen and done, its steps' rewards, how it ended, and the observation
that it ended in, before any reset. Letters: E envs, T chunk decisions, B rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase


def transitions(
    rollout: TensorDictBase, before: TensorDictBase, after: TensorDictBase
) -> TensorDict:
    """Return the valid decisions of a rollout (E, T) as rows (B) for the memory.

    Args:
        rollout: Where rewards, durations and ends are read.
        before: What is kept of each decision (E, T).
        after: What is kept of the observation that it ended in, before any reset (E, T).
    """
    ends = rollout["next"]
    valid = ~ends["invalid"].squeeze(-1)  # a simulator that broke down says nothing of the task
    rows = TensorDict(
        {
            **before,
            "elapsed": rollout["elapsed"],
            "next": {**after, "elapsed": ends["elapsed"]},
            **{key: ends[key] for key in ("reward_steps", "live", "duration")},
            **{key: ends[key] for key in ("terminated", "truncated")},
        },
        batch_size=rollout.batch_size,
    )
    return rows[valid]


@torch.no_grad()
def next_encoded(
    rollout: TensorDictBase, encode: Callable[[TensorDictBase], TensorDictBase]
) -> TensorDictBase:
    """Return the `encoded` observations that decisions ended in (E, T).

    Where the episode goes on that is the next decision's, which is there already; only the last
    observations of episodes and of the rollout are encoded here.

    Args:
        rollout: (E, T) with `encoded`.
        encode: From observations (n) to `encoded` (n).
    """
    last = rollout["next", "done"].squeeze(-1).clone()
    last[:, -1] = True
    later = torch.arange(last.shape[1], device=last.device).roll(-1)
    following = rollout["encoded"][:, later]
    following[last] = encode(rollout["next"][last])
    return following
