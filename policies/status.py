"""The status of the task at a policy's decisions, by its status head.

Letters: N rows, H action horizon, A model action dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pitune.policies.decision import STATUS, Decision
from pitune.policies.flow.path import FIRST_FLOW_TIME
from pitune.policies.network.context import Context
from pitune.policies.policy_parts import PolicyParts


def with_status(policy: PolicyParts, context: Context, decision: Decision) -> Decision:
    """Return decisions with the status of each as a mark, if the policy has a status head.

    Args:
        policy: The policy.
        context: Encoded observations (N).
        decision: Chunks (N, H, A) for them.
    """
    if not policy.network.config.options.status.is_on:
        return decision
    status = status_logits(policy, context, decision.chunk).argmax(-1)  # (N,)
    return decision._replace(marks={**decision.marks, STATUS: status})


def status_logits(policy: PolicyParts, context: Context, chunk: Tensor) -> Tensor:
    """Return the logits of the status (N, 3) at the end of the flow.

    Args:
        policy: A policy with a status head.
        context: Encoded observations (N).
        chunk: Chunks (N, H, A) [normalized action].
    """
    flow_time = torch.full((len(chunk), 1), FIRST_FLOW_TIME, device=chunk.device)
    hidden = policy.network.velocity(context, chunk[:, None], flow_time).hidden
    logits: Tensor = policy.network.options["status"](hidden)  # (N, 1, 3)
    return logits[:, 0]
