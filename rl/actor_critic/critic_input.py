"""Inputs of critics from decisions and replay rows: the observation and the executed chunk.

Letters: N rows, H action horizon, h executed actions, A model action dim, d robot action dim, D
width of a critic's input.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy, ModelInput
from pitune.policies.network.context import Context, stored_prefix


def encode_rows(policy: FlowPolicy, rows: TensorDictBase) -> Context:
    """Return the context of rows (N). With a stored prefix, only the state is encoded."""
    return policy.encode(ModelInput.of(rows), stored_prefix(rows))


def critic_input(
    policy: FlowPolicy, rows: TensorDictBase, context: Context | None = None
) -> Tensor:
    """Return the critics' input (N, D) of rows. No gradient reaches the encoder.

    It is the state and, for a policy with pictures or a prompt, their pooled features.

    Args:
        policy: Encodes the observations.
        rows: Rows with `model_input`, and `prefix` if it is stored.
        context: Context of the rows. The default is the stored prefix, or else they are encoded
            here.
    """
    if not policy.feature_dim:
        return policy.critic_input(ModelInput.of(rows), None)
    inputs = ModelInput.of(rows)
    context = context or stored_prefix(rows) or policy.encode(inputs, with_null=False)
    return policy.critic_input(inputs, context)


def executed_chunk(policy: FlowPolicy, context: Context, noise: Tensor) -> Tensor:
    """Return the executed actions (N, h * d) [normalized] from noise (N, H, A), with a gradient."""
    point = policy.solve(context, noise)
    executed = point[:, : policy.num_planned, : policy.preprocessor.action_dim]
    return executed.flatten(1)  # (N, h, d) -> (N, h * d)


def chunk_distance(anchor: FlowPolicy, obs: TensorDictBase, noise: Tensor, chunk: Tensor) -> Tensor:
    """Return the mean squared distance of chunks (N, h * d) to those of another policy.

    Args:
        anchor: The other policy, which gets no gradient.
        obs: Observations (N).
        noise: Starting noise (N, H, A).
        chunk: The chunks [normalized].
    """
    with torch.no_grad():
        other = executed_chunk(anchor, encode_rows(anchor, obs), noise)
    return (chunk - other).square().mean()
