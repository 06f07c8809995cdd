"""The pretrained policy as something to stay close to.

Letters: B minibatch, M scored flow steps, H action horizon, A action dim.
Sources: Liu et al. 2025 (Flow-GRPO) for the divergence per flow step; algorithms.md section 2.8.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal, TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from pitune.policies import ActionDistribution, FlowChain, FlowPolicy, LikelihoodActor
from pitune.policies.flow.kernels import kl_divergence
from pitune.policies.flow.ode import integrate

KLSpace = Literal["kernel", "velocity"]
M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """Return a copy that no gradient reaches; what is frozen already is shared, not copied."""
    shared = {id(p): p for p in module.parameters() if not p.requires_grad}
    return deepcopy(module, memo=shared).requires_grad_(False)


class Reference:
    """A frozen copy of an actor, made before the actor learns.

    Args:
        actor: Copied with its policy and its learned noise.
    """

    def __init__(self, actor: LikelihoodActor) -> None:
        self.actor, self._original = frozen_copy(actor), actor

    def _policy(self) -> FlowPolicy:
        """Return the frozen policy, with the tasks of the environment that was met meanwhile."""
        self.actor.policy.tasks = self._original.policy.tasks
        return self.actor.policy

    def divergence(self, batch: TensorDictBase, dist: ActionDistribution, space: KLSpace) -> Tensor:
        """Return how far a policy is from the reference at each scored flow step (B, M).

        In "kernel" space it is the Kullback-Leibler divergence of the Gaussian steps [nats]; in
        "velocity" space the mean squared difference of the velocities, the same up to a weight
        that depends on the flow time.

        Args:
            batch: Observations and chains (B).
            dist: The policy's distribution, after it has scored the batch's chains.
            space: What is compared.

        Raises:
            ValueError: the likelihood has no Gaussian steps to compare.
        """
        mask = self._policy().executed_mask()
        reference = self.actor.get_dist(batch)
        with torch.no_grad():
            reference.log_prob(batch["chain"])
        if space == "kernel":
            if not isinstance(dist, FlowChain) or not isinstance(reference, FlowChain):
                raise ValueError(
                    f"kl_space='kernel' compares Gaussian flow steps, and "
                    f"kernel={self.actor.config.kernel!r} has none; take kl_space='velocity'"
                )
            return kl_divergence(dist.scored.transition, reference.scored.transition).sum((-2, -1))
        difference = (dist.velocity - reference.velocity).square() * mask
        return difference.sum((-2, -1)) / mask.sum()

    def cloning_loss(self, actor: LikelihoodActor, batch: TensorDictBase) -> Tensor:
        """Return the flow-matching loss (B,) on what the reference would do in the same places.

        Its chunks are drawn anew, as deployed, and all their entries count, as in cloning.
        """
        with torch.no_grad():
            policy = self._policy()
            noise, field = policy.draw_noise(len(batch)), policy.field(policy.encode(batch))
            chunk = integrate(field, noise, policy.grid, policy.sampler.solver)
        return actor.policy.loss(
            batch, policy.preprocessor.unnormalize_action(chunk, batch["state"])
        ).mean((-2, -1))
