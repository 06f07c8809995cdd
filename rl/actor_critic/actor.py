"""The flow policy as an off-policy learner lets it act, and what its critics read and judge.

Letters: N rows, h executed actions, d robot action dim, H action horizon, A model action dim, D
width of what is read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor

from pitune.policies import FlowPolicy, LikelihoodActor, LikelihoodConfig
from pitune.policies.flow.ode import integrate
from pitune.policies.network.pi0 import Context
from pitune.policies.steering import pack, unpack

LARGEST_STATE = 5.0
"""Critics and noise models read states cut here [normalized]. A dimension that hardly moved in a
few demonstrations is 80 where it does move, and its gradients keep Adam from fitting the rest."""

Perturbation = Callable[[Tensor], Tensor]
"""From what a critic reads (N, D) to noise on the executed actions (N, h * d) [normalized]."""


class ExploringActor(LikelihoodActor):
    """Acts as deployed, and in `ExplorationType.RANDOM` adds noise to the finished chunk.

    Args:
        policy: The flow policy.
        keep_prefix: Whether to write the encoded pictures and prompt, as `prefix`, for a memory.
    """

    perturb: Perturbation | None = None
    """The noise; None for that of the flow's starting points alone."""

    def __init__(self, policy: FlowPolicy, keep_prefix: bool) -> None:
        super().__init__(policy, LikelihoodConfig())
        self.keep_prefix = keep_prefix
        self.out_keys = ["action", "prefix"] if keep_prefix else ["action"]

    @torch.no_grad()
    def forward(self, td: TensorDictBase) -> TensorDictBase:
        policy, noise = self.policy, td.get("noise", None)
        if interaction_type() == InteractionType.DETERMINISTIC:
            return td.set("action", policy.sample_actions(td, noise))
        prefix = policy.encode_prefix(td) if self.keep_prefix else None
        context = policy.encode(td, prefix)
        noise = policy.draw_noise(len(td)) if noise is None else noise
        chunk = decide(policy, context, noise)
        if self.perturb is not None:
            chunk = chunk + self.perturb(read(policy, td, context))
        if prefix is not None:
            td.set("prefix", pack(prefix))
        shape = (policy.sampler.execution_horizon, policy.preprocessor.action_dim)
        return td.set("action", policy.executed(chunk.unflatten(-1, shape), td))


def kept_prefix(rows: TensorDictBase) -> Context | None:
    """Return the prefixes of a memory's rows (N), or None where observations were kept."""
    return unpack(rows["prefix"]) if "prefix" in rows.keys() else None


def encode(policy: FlowPolicy, rows: TensorDictBase) -> Context:
    """Return the context of a memory's rows (N); of a kept prefix only the state is encoded."""
    return policy.encode(rows, kept_prefix(rows))


def read(policy: FlowPolicy, rows: TensorDictBase, context: Context | None = None) -> Tensor:
    """Return what critics read of observations (N, D); no gradient reaches the encoder.

    The state, within `LARGEST_STATE`, and the pooled features where the policy sees more than
    the state; where no context is passed they are those of the kept prefix, or encoded here.
    """
    state = policy.preprocessor.normalize_state(rows["state"].to(policy.device))
    state = state.clamp(-LARGEST_STATE, LARGEST_STATE)
    if not policy.feature_dim:
        return state
    context = context or kept_prefix(rows) or policy.encode(rows)
    return torch.cat([state, context.features.detach().float()], dim=-1)


def decide(policy: FlowPolicy, context: Context, noise: Tensor) -> Tensor:
    """Return the executed actions (N, h * d) [normalized] of noise (N, H, A), with gradients."""
    point = integrate(policy.field(context), noise, policy.grid, policy.sampler.solver)
    executed = point[:, : policy.sampler.execution_horizon, : policy.preprocessor.action_dim]
    return executed.flatten(1)
