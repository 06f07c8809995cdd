"""From rollouts to the rows of a replay memory.

A row is one decision: the observation, the executed chunk, the rewards of its steps, the kind of
its end, and the next observation before any reset.
Letters: N rows, B minibatch rows, E envs, T chunk decisions, h executed actions, d robot action
dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy
from pitune.policies.preprocessing.model_input import MODEL_INPUT
from pitune.rl.experience.sub_dict import Entry, sub_dict


def transitions(
    rollout: TensorDictBase, before: Mapping[str, Entry], after: Mapping[str, Entry]
) -> TensorDictBase:
    """Return the valid decisions of a rollout (E, T) as rows (B) of the memory.

    Args:
        rollout: Decisions with their rewards, durations and ends.
        before: Stored entries of the decisions (E, T).
        after: Stored entries of the next observations (E, T), before any reset.
    """
    ends = sub_dict(rollout, "next")
    valid = ~ends["invalid"].squeeze(-1)  # (E, T), False in a broken simulator
    next_rows: dict[str, Entry] = {**after, "elapsed": ends["elapsed"]}
    rows: dict[str, Entry] = {
        **before,
        "elapsed": rollout["elapsed"],
        "next": TensorDict(next_rows, rollout.batch_size),
        **{key: ends[key] for key in ("reward_steps", "live", "duration")},
        **{key: ends[key] for key in ("terminated", "truncated")},
    }
    return sub_dict(TensorDict(rows, rollout.batch_size), valid)


Encoded = TypeVar("Encoded", Tensor, TensorDictBase)


def normalize_chunk(policy: FlowPolicy, decisions: TensorDictBase) -> Tensor:
    """Return the executed actions (..., h * d) [normalized] of decisions (...).

    Args:
        policy: Its preprocessor normalizes.
        decisions: Rows with `action` and `model_input`.
    """
    action = decisions["action"].to(policy.device)
    state = decisions[MODEL_INPUT, "robot_state"].to(policy.device)
    normalized = policy.preprocessor.normalize_action(action, state)
    # (..., h, A) -> (..., h * d)
    return normalized[..., : policy.preprocessor.action_dim].flatten(-2)


ENCODED_ROWS = 64
"""Observations per encoding pass. The prefix of the full-size π0 has 15 MB of keys and values."""


def in_parts(obs: TensorDictBase, encode: Callable[[TensorDictBase], Encoded]) -> Encoded:
    """Return the encoding of observations (N), computed in parts of `ENCODED_ROWS` rows."""
    parts = [encode(part) for part in obs.split(ENCODED_ROWS)]
    joined: Encoded = torch.cat(parts)  # type: ignore[arg-type, assignment]
    return joined


@torch.no_grad()
def encode_next(
    rollout: TensorDictBase, encoded: Encoded, encode: Callable[[TensorDictBase], Encoded]
) -> Encoded:
    """Return the encodings of the next observations of a rollout (E, T).

    Inside an episode it is that of the next decision. Only the last observations of episodes and of
    the rollout are encoded here.

    Args:
        rollout: Decisions (E, T).
        encoded: Encodings of the decisions' own observations (E, T).
        encode: Encodes further observations (N).
    """
    # last decisions of episodes and of the rollout
    last = rollout["next", "done"].squeeze(-1).clone()
    last[:, -1] = True
    rows = last.nonzero(as_tuple=True)

    # the next decision's encoding, replaced where there is none
    later = torch.arange(last.shape[1], device=last.device).roll(-1)
    following: Encoded
    if isinstance(encoded, TensorDictBase):
        following = sub_dict(encoded, (slice(None), later))
    else:
        following = encoded[:, later]
    following[rows] = encode(sub_dict(sub_dict(rollout, "next"), rows))
    return following
