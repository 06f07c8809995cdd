"""The exploring actor of the off-policy learners.

Letters: N rows, h executed actions, d robot action dim, D width of a critic's input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies import Actor, FlowPolicy, ModelInput
from pitune.policies.network.context import pack
from pitune.rl.actor_critic.critic_input import critic_input, executed_chunk

Perturbation = Callable[[Tensor], Tensor]
"""Maps a critic's input (N, D) to noise on the executed actions (N, h * d) [normalized]."""


class ExploringActor(Actor):
    """Explores by noise on the finished chunk.

    Args:
        policy: The flow policy.
        keep_prefix: Whether to write the encoded pictures and prompt as `prefix`, for a memory.

    Attributes:
        perturb: Noise on the chunk, or None for the starting noise alone.

    Example:
        >>> actor = ExploringActor(policy, keep_prefix=False)  # doctest: +SKIP
        >>> actor.perturb = lambda x: 0.1 * torch.randn(len(x), 8)  # doctest: +SKIP
        >>> rollout = actor(td)  # doctest: +SKIP
    """

    perturb: Perturbation | None = None

    def __init__(self, policy: FlowPolicy, keep_prefix: bool) -> None:
        super().__init__(policy)
        self.keep_prefix = keep_prefix
        if keep_prefix:
            self.out_keys.append("prefix")

    @torch.no_grad()
    def explore(self, td: TensorDictBase, noise: Tensor | None) -> TensorDictBase:
        # chunk from fresh noise
        policy, inputs = self.policy, ModelInput.of(td)
        prefix = policy.encode_prefix(inputs) if self.keep_prefix else None
        context = policy.encode(inputs, prefix)
        noise = policy.draw_noise(len(td)) if noise is None else noise
        chunk = executed_chunk(policy, context, noise)  # (N, h * d)

        # exploration
        if self.perturb is not None:
            chunk = chunk + self.perturb(critic_input(policy, td, context))

        # entries of the rollout
        if prefix is not None:
            td.set("prefix", pack(prefix))
        shape = (policy.num_planned, policy.preprocessor.action_dim)
        return td.set("action", policy.executed(chunk.unflatten(-1, shape), inputs))  # (N, h, d)
