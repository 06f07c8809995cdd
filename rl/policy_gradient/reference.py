"""The pretrained policy as a regularizer: a divergence from it, and cloning of it.

Letters: B minibatch rows, M scored flow steps, H action horizon, A model action dim.
Source: Liu et al. 2025 (Flow-GRPO) for the divergence per flow step.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal, TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from pitune.policies import (
    ActionDistribution,
    FlowChain,
    LikelihoodActor,
    ModelInput,
    likelihood_name,
)
from pitune.policies.finetuning.shard import copied_networks
from pitune.policies.flow.kernels import kl_divergence
from pitune.policies.flow.path import sample_flow_time
from pitune.policies.host_prefixes import stored_prefix

KLSpace = Literal["kernel", "velocity"]
ModuleType = TypeVar("ModuleType", bound=nn.Module)


def frozen_copy(module: ModuleType) -> ModuleType:
    """Return a copy without gradients that shares the frozen parameters.

    The copy of a sharded network is sharded too, and shares nothing.
    """
    shared: dict[int, Any] = dict(copied_networks(module))
    if not shared:
        shared |= {id(p): p for p in module.parameters() if not p.requires_grad}
    return deepcopy(module, memo=shared).requires_grad_(False)


class Reference:
    """A frozen copy of an actor, made before training begins.

    Args:
        actor: Copied with its policy and its learned noise.

    Example:
        >>> reference = Reference(actor)  # doctest: +SKIP
        >>> draws = reference.cloning_draws(actor, len(batch))  # doctest: +SKIP
        >>> loss = reference.cloning_loss(actor, batch.update(draws))  # doctest: +SKIP
    """

    def __init__(self, actor: LikelihoodActor) -> None:
        self.actor = frozen_copy(actor)

    def divergence(self, batch: TensorDictBase, dist: ActionDistribution, space: KLSpace) -> Tensor:
        """Return the divergence of a policy from the reference at each scored flow step (B, M).

        In "kernel" space it is the Kullback-Leibler divergence of the Gaussian steps [nats]. In
        "velocity" space it is the mean squared difference of the velocities, which differs by a
        weight that depends on the flow time.

        Args:
            batch: Observations and chains (B).
            dist: The policy's distribution, after it has scored the batch's chains.
            space: Space of the comparison.

        Raises:
            ValueError: the likelihood has no Gaussian steps to compare.
        """
        # the reference's distribution at the same chains
        policy, context = self.actor.policy, self.actor.encode_decisions(batch)
        mask = policy.executed_mask(context)
        reference = self.actor.likelihood.distribution(policy, context, len(batch), batch)
        with torch.no_grad():
            reference.log_prob(batch["chain"])

        # divergence
        if space == "kernel":
            if not isinstance(dist, FlowChain) or not isinstance(reference, FlowChain):
                name = likelihood_name(self.actor.config)
                raise ValueError(
                    "kl_space='kernel' compares Gaussian flow steps, and the likelihood "
                    f"{name!r} has none; take kl_space='velocity'"
                )
            return kl_divergence(dist.scored.transition, reference.scored.transition).sum((-2, -1))
        difference = (dist.velocity - reference.velocity).square() * mask  # (B, M, H, A)
        return difference.sum((-2, -1)) / mask.sum((-2, -1))

    def cloning_draws(self, actor: LikelihoodActor, num_rows: int) -> dict[str, Tensor]:
        """Return the random draws of `cloning_loss` for B rows, by key.

        They are the reference's starting noise (B, H, A), and the noise (B, H, A) and flow times
        (B,) of flow matching.
        """
        return {
            "reference_noise": self.actor.policy.draw_noise(num_rows),
            "cloning_noise": actor.policy.draw_noise(num_rows),
            "cloning_time": sample_flow_time(num_rows, actor.policy.device),
        }

    def cloning_loss(self, actor: LikelihoodActor, batch: TensorDictBase) -> Tensor:
        """Return the flow-matching loss (B,) on the reference's chunks at the same observations.

        The reference acts as deployed. All entries of its chunks count, as in behavior cloning.

        Args:
            actor: The trained actor.
            batch: Observations (B) with the entries of `cloning_draws`.
        """
        # chunks of the reference
        policy, inputs = self.actor.policy, ModelInput.of(batch)
        prefix = stored_prefix(batch)  # of a frozen encoder, which both policies share
        with torch.no_grad():
            context = policy.encode(inputs, prefix)
            chunk = policy.solve(context, batch["reference_noise"])  # (B, H, A)

        # flow matching on them
        action = policy.preprocessor.unnormalize_action(chunk, inputs.robot_state)
        loss = actor.policy.loss(
            inputs,
            action,
            batch["cloning_noise"],
            batch["cloning_time"],
            prefix,
            state_offset=actor.state_offset(batch),
        )
        return loss.mean((-2, -1))
