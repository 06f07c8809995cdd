"""Memory of decisions, computed again from the decisions before, with a gradient.

A decision's rows hold the memory that it read. It is a number without a gradient, so the network
that wrote it would never learn from its use. With a `history` of the decisions before in the same
episode, the memory is written again, step by step, and the gradient flows back through them.

In shapes, `memory` is the number of memory tokens and `past` that of the decisions in a history.
Letters: N rows, D width.
Source: Kapturowski et al. 2019 (R2D2), for the stored state that a history begins with.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies.network.context import stored_prefix
from pitune.policies.policy import FlowPolicy
from pitune.policies.preprocessing.model_input import MODEL_INPUT, ModelInput

HISTORY, IN_EPISODE = "history", "in_episode"
"""Keys of the decisions before each row (N, past), and of whether they belong to its episode."""


def with_recalled_memory(
    policy: FlowPolicy, rows: TensorDictBase, num_gradient: int | None = None
) -> TensorDictBase:
    """Return rows (N) whose memory is written again by the decisions of their history.

    Rows without a history, and those of a policy without a memory, are returned as they are. A
    history begins with the memory that its first decision read, or with zeros where the rows hold
    none.

    Args:
        policy: Writes the memory.
        rows: Decisions, with the ones before under `history` (N, past), the oldest first.
        num_gradient: The gradient flows through the last ones, through all by default.
    """
    history = rows.get(HISTORY, None)
    if not policy.has_memory or not isinstance(history, TensorDictBase):
        return rows
    inputs = ModelInput.of(rows)
    belongs = history[IN_EPISODE].to(policy.device)  # (N, past)
    past = belongs.shape[1]
    first_gradient = 0 if num_gradient is None else past - num_gradient
    zeros = torch.zeros(len(rows), *policy.memory_shape, device=policy.device)
    memory = zeros if inputs.memory is None else inputs.memory.to(policy.device)

    # decisions of the history, from the first one of each row on
    decisions: tuple[TensorDictBase, ...] = history.unbind(1)
    for j, decision in enumerate(decisions):
        with torch.set_grad_enabled(torch.is_grad_enabled() and j >= first_gradient):
            begins = belongs[:, j] & (~belongs[:, j - 1] if j else True)  # (N,)
            stored = ModelInput.of(decision).memory
            start = zeros if stored is None else stored.to(policy.device)
            memory = _where(begins, start, memory)
            # the decision writes as it did when acting, now with a gradient
            read = replace(ModelInput.of(decision), memory=memory)
            written = policy.encode(read, stored_prefix(decision), with_null=False).written
            if written is None:
                raise ValueError("the policy wrote no memory; encode with `FlowPolicy.encode`")
            memory = _where(belongs[:, j], written, memory)
    recalled = rows.copy()
    return recalled.set(MODEL_INPUT, replace(inputs, memory=memory).tensordict())


def _where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Return one memory (N, memory, D) or the other, by row (N,)."""
    return torch.where(rows[:, None, None], yes, no)
