"""From rollouts to the rows of a replay memory.

A row is one decision: what was seen and done, its steps' rewards, how it ended, and the observation
that it ended in, before any reset. Letters: E envs, T chunk decisions, B rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy
from pitune.policies.preprocessing.model_input import MODEL_INPUT


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


Encoded = TypeVar("Encoded", Tensor, TensorDictBase)


def normalize_chunk(policy: FlowPolicy, decisions: TensorDictBase) -> Tensor:
    """Return the executed actions (..., h * d) [normalized] of decisions (...).

    Args:
        policy: Its preprocessor scales.
        decisions: With `action` and `model_input`.
    """
    action = decisions["action"].to(policy.device)
    state = decisions[MODEL_INPUT, "robot_state"].to(policy.device)
    normalized = policy.preprocessor.normalize_action(action, state)
    return normalized[..., : policy.preprocessor.action_dim].flatten(-2)


ENCODED_ROWS = 64
"""Observations that are encoded at once: a prefix of the real π0 takes 15 MB of keys and values."""


def in_parts(obs: TensorDictBase, encode: Callable[[TensorDictBase], Encoded]) -> Encoded:
    """Return the encoding of observations (N), computed for a few of them at a time."""
    parts = [encode(part) for part in obs.split(ENCODED_ROWS)]
    joined: Encoded = torch.cat(parts)  # type: ignore[arg-type, assignment]
    return joined


@torch.no_grad()
def encode_next(
    rollout: TensorDictBase, encoded: Encoded, encode: Callable[[TensorDictBase], Encoded]
) -> Encoded:
    """Return the encoding of the observations that decisions ended in (E, T).

    Where the episode goes on it is that of the next decision, which is there already. Only the
    last observations of episodes and of the rollout are encoded here.

    Args:
        rollout: (E, T).
        encoded: Of the decisions' own observations (E, T).
        encode: The same for further observations (n).
    """
    last = rollout["next", "done"].squeeze(-1).clone()
    last[:, -1] = True
    later = torch.arange(last.shape[1], device=last.device).roll(-1)
    following = encoded[:, later]
    following[last] = encode(rollout["next"][last])
    return following
