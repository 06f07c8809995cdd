"""The loss of a policy on decisions: a surrogate on ratios, and what keeps the policy in place.

Letters: B minibatch, M scored flow steps (1 for a joint ratio).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies import ActionDistribution, LikelihoodActor, LikelihoodConfig
from pitune.policies.likelihood.config import STEP_KERNELS
from pitune.rl.policy_gradient.reference import KLSpace, Reference
from pitune.rl.policy_gradient.surrogate import implied_clip, ratio_metrics

Surrogate = Callable[[Tensor, Tensor], Tensor]
"""`(log_ratio (B, M), advantage (B, 1)) -> objective (B, M)`."""


def check_trainable(likelihood: LikelihoodConfig) -> None:
    """Refuse a likelihood that has no gradient.

    Raises:
        ValueError: says which have one.
    """
    if likelihood.kernel == "ode":
        raise ValueError(
            "likelihood.kernel='ode' is exact but has no gradient, for tests and reports; train "
            f"with one of {', '.join((*STEP_KERNELS, 'flow_matching'))}"
        )


def clip_notes(actor: LikelihoodActor, clip_low: float, clip_high: float) -> list[str]:
    """Return what a clip means for an actor's likelihood; nothing where its steps have none."""
    config, policy = actor.config, actor.policy
    if config.kernel not in STEP_KERNELS:
        return []
    joint = config.ratio == "joint" and config.stochastic_steps == "all"
    num_steps = policy.grid.flow_steps if joint else 1
    num_entries = int(policy.executed_mask().sum())
    return [implied_clip(clip_low, clip_high, config.reduction, num_entries, num_steps)]


def log_ratios(actor: LikelihoodActor, batch: TensorDictBase) -> tuple[Tensor, ActionDistribution]:
    """Return the log-ratios (B, M) of the present policy to the one that acted.

    Also the distribution, which has then scored the batch's chains.
    """
    dist = actor.get_dist(batch)
    log_ratio = dist.log_prob(batch["chain"]) - batch["action_log_prob"]
    return (log_ratio[:, None] if log_ratio.ndim == 1 else log_ratio), dist


def with_one_step(batch: TensorDictBase, flow_steps: int) -> TensorDictBase:
    """Return decisions (B) with one random flow step each to score, and its old log-probability.

    For chains whose steps are all random: it costs a K-th and has the same mean gradient.
    """
    step = torch.randint(flow_steps, batch.shape, device=batch["action_log_prob"].device)
    old = batch["action_log_prob"].gather(1, step[:, None])
    return batch.copy().update({"stochastic_step": step, "action_log_prob": old})


class PolicyLoss:
    """Mean over decisions of minus the surrogate, with the regularization that is asked for.

    Remembers what it has seen since `metrics` was last asked, so that the metrics of a gradient
    step that was taken in parts are those of the whole.

    Args:
        actor: In training.
        surrogate: Objective of a ratio.
        clip: How far ratios may fall and rise, for the metrics.
        entropy_coefficient: Weight of a learned noise's entropy [-].
        kl_coefficient: Weight of the divergence from the pretrained policy, per scored flow step.
        kl_space: What that divergence compares.
        bc_coefficient: Weight of cloning the pretrained policy in the places that are visited.
    """

    def __init__(
        self,
        actor: LikelihoodActor,
        surrogate: Surrogate,
        clip: tuple[float, float],
        *,
        entropy_coefficient: float = 0.0,
        kl_coefficient: float = 0.0,
        kl_space: KLSpace = "kernel",
        bc_coefficient: float = 0.0,
    ) -> None:
        self.actor, self.surrogate, self.clip = actor, surrogate, clip
        self.entropy_coefficient, self.bc_coefficient = entropy_coefficient, bc_coefficient
        self.kl_coefficient, self.kl_space = kl_coefficient, kl_space
        needed = kl_coefficient > 0 or bc_coefficient > 0
        self.reference = Reference(actor) if needed else None
        self._seen: list[tuple[Tensor, dict[str, Tensor]]] = []

    def __call__(self, batch: TensorDictBase) -> Tensor:
        """Return the loss of decisions (B) with `chain`, `action_log_prob` and `advantage` (B, 1).

        A `weight` (B, 1), on average 1 over all decisions, weighs them.
        """
        log_ratio, dist = log_ratios(self.actor, batch)
        return self.of_ratios(log_ratio, dist, batch)

    def of_ratios(
        self, log_ratio: Tensor, dist: ActionDistribution, batch: TensorDictBase
    ) -> Tensor:
        """Return the loss of decisions whose log-ratios (B, M) are computed already."""
        gain = self.surrogate(log_ratio, batch["advantage"])
        weight = batch.get("weight", None)
        loss = -(gain if weight is None else gain * weight).mean()
        parts = {"policy_loss": loss}
        if self.entropy_coefficient > 0:
            entropy = dist.entropy()
            parts["entropy"] = entropy.mean()
            loss = loss + (-self.entropy_coefficient * entropy).mean()
        if self.reference is not None and self.kl_coefficient > 0:
            parts["reference_kl"] = self.reference.divergence(batch, dist, self.kl_space).mean()
            loss = loss + self.kl_coefficient * parts["reference_kl"]
        if self.reference is not None and self.bc_coefficient > 0:
            parts["reference_bc"] = self.reference.cloning_loss(self.actor, batch).mean()
            loss = loss + self.bc_coefficient * parts["reference_bc"]
        self._seen.append((log_ratio.detach(), {k: v.detach() for k, v in parts.items()}))
        return loss

    def metrics(self) -> dict[str, float]:
        """Return the metrics of what was seen since the last call, and forget it."""
        seen, self._seen = self._seen, []
        rows = torch.tensor([float(len(log_ratio)) for log_ratio, _ in seen])
        share = rows / rows.sum()
        parts = {
            name: float((torch.stack([part[name].cpu() for _, part in seen]) * share).sum())
            for name in seen[0][1]
        }
        return parts | ratio_metrics(torch.cat([log_ratio for log_ratio, _ in seen]), *self.clip)
