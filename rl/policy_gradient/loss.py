"""The loss of a policy on decisions: a surrogate on ratios, and regularization.

Letters: B minibatch rows, M scored flow steps (1 for a joint ratio), K flow steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import (
    ActionDistribution,
    FlowStepConfig,
    LikelihoodActor,
    LikelihoodConfig,
    likelihood_name,
    likelihoods,
)
from pitune.policies.likelihood.flow_steps import noise_mask
from pitune.rl.cloning.config import LanguageRegularizationConfig
from pitune.rl.cloning.regularization import LanguageRegularizer
from pitune.rl.experience.sub_dict import Entry
from pitune.rl.gradient_step import Metrics
from pitune.rl.policy_gradient.config import ClipConfig
from pitune.rl.policy_gradient.reference import KLSpace, Reference
from pitune.rl.policy_gradient.surrogate import implied_clip, ratio_metrics

Surrogate = Callable[[Tensor, Tensor], Tensor]
"""`(log_ratio (B, M), advantage (B, 1)) -> objective (B, M)`."""


def check_trainable(likelihood: LikelihoodConfig) -> None:
    """Reject a likelihood that has no gradient.

    Raises:
        ValueError: the likelihood has no gradient.
    """
    if not likelihood.trainable:
        trainable = [name for name, config in likelihoods().items() if config.trainable]
        raise ValueError(
            f"the likelihood {likelihood_name(likelihood)!r} has no gradient, it is for tests and "
            f"reports; train with one of {', '.join(trainable)}"
        )


def clip_notes(actor: LikelihoodActor, clip: ClipConfig) -> list[str]:
    """Return the meaning of a clip for an actor's likelihood, if that has random flow steps."""
    config, policy = actor.config, actor.policy
    if not isinstance(config, FlowStepConfig):
        return []
    joint = config.ratio == "joint" and config.stochastic_steps == "all"
    num_steps = policy.grid.flow_steps if joint else 1
    # the first flow step, which has the most entries
    num_entries = int(noise_mask(policy, config).sum((-2, -1)).max())
    return [implied_clip(clip.low, clip.high, config.reduction, num_entries, num_steps)]


def log_ratios(actor: LikelihoodActor, batch: TensorDictBase) -> tuple[Tensor, ActionDistribution]:
    """Return the log-ratios (B, M) of the current policy to the one that acted.

    Also return the distribution, after it has scored the batch's chains.
    """
    dist = actor.get_dist(batch)
    log_ratio = dist.log_prob(batch["chain"]) - batch["action_log_prob"]
    return (log_ratio[:, None] if log_ratio.ndim == 1 else log_ratio), dist


def with_one_step(batch: TensorDictBase, flow_steps: int) -> TensorDictBase:
    """Return decisions (B) with one drawn flow step to score each, and its old log-probability.

    For chains whose flow steps are all random. The cost is one K-th, and the mean of the gradient
    is the same.

    Args:
        batch: Decisions with `action_log_prob` (B, K).
        flow_steps: K.
    """
    step = torch.randint(flow_steps, batch.shape, device=batch["action_log_prob"].device)
    old = batch["action_log_prob"].gather(1, step[:, None])  # (B, K) -> (B, 1)
    return batch.copy().update({"stochastic_step": step, "action_log_prob": old})


class PolicyLoss:
    """Mean over decisions of minus the surrogate, plus the regularization.

    Args:
        actor: The trained actor.
        surrogate: Objective of a ratio.
        entropy_coefficient: Weight of a learned noise's entropy [-].
        kl_coefficient: Weight of the divergence from the pretrained policy, per scored flow step.
        kl_space: Space of that divergence.
        bc_coefficient: Weight of cloning the pretrained policy at the visited observations.
        language: Losses of the language model.

    Example:
        >>> surrogate = partial(clipped_surrogate, clip_low=0.2, clip_high=0.2)  # doctest: +SKIP
        >>> loss = PolicyLoss(actor, surrogate, kl_coefficient=0.1)  # doctest: +SKIP
        >>> value, metrics = loss(loss.with_draws(batch))  # doctest: +SKIP
    """

    def __init__(
        self,
        actor: LikelihoodActor,
        surrogate: Surrogate,
        *,
        entropy_coefficient: float = 0.0,
        kl_coefficient: float = 0.0,
        kl_space: KLSpace = "kernel",
        bc_coefficient: float = 0.0,
        language: LanguageRegularizationConfig | None = None,
    ) -> None:
        self.actor, self.surrogate = actor, surrogate
        self.entropy_coefficient, self.bc_coefficient = entropy_coefficient, bc_coefficient
        self.kl_coefficient, self.kl_space = kl_coefficient, kl_space
        needed = kl_coefficient > 0 or bc_coefficient > 0
        if needed and actor.config.decoder != "flow":
            raise ValueError(
                f"kl_coefficient={kl_coefficient} and bc_coefficient={bc_coefficient} compare "
                f"flows, and the likelihood {likelihood_name(actor.config)!r} has none; set both "
                "to 0"
            )
        self.reference = Reference(actor) if needed else None
        self.language: LanguageRegularizer | None = None
        if language is not None and language.is_on:
            self.language = LanguageRegularizer(actor.policy, language)

    def with_draws(self, batch: TensorDictBase) -> TensorDictBase:
        """Return decisions (B) with all random draws that the loss needs."""
        entries: dict[str, Entry] = {}
        if self.reference is not None and self.bc_coefficient > 0:
            entries |= self.reference.cloning_draws(self.actor, len(batch))
        if self.language is not None:
            entries |= self.language.draws(len(batch))
        return batch.copy().update(entries) if entries else batch

    def __call__(self, batch: TensorDictBase) -> tuple[Tensor, Metrics]:
        """Return the loss of decisions (B) and its metrics.

        The metrics are the terms of the loss and `log_ratio` (B, M).

        Args:
            batch: Decisions with `chain`, `action_log_prob`, `advantage` (B, 1) and the entries of
                `with_draws`. They may have a `weight` (B, 1) with mean 1 over all decisions.
        """
        policy = self.actor.policy
        compiles = policy.network.compilation is not None and self.actor.config.decoder == "flow"
        if not compiles or not policy.is_traceable or self.language is not None:
            return self._of_batch(batch)
        # compiled code takes the number of rows from tensors, and not from a TensorDict
        compute = policy.compiled(PolicyLoss._of_entries)
        return compute(self, dict(batch.items(include_nested=True, leaves_only=True)))

    def _of_entries(self, entries: dict[NestedKey, Tensor]) -> tuple[Tensor, Metrics]:
        return self._of_batch(TensorDict(entries, batch_size=[len(entries["advantage"])]))

    def _of_batch(self, batch: TensorDictBase) -> tuple[Tensor, Metrics]:
        log_ratio, dist = log_ratios(self.actor, batch)
        return self.of_ratios(log_ratio, dist, batch)

    def of_ratios(
        self, log_ratio: Tensor, dist: ActionDistribution, batch: TensorDictBase
    ) -> tuple[Tensor, Metrics]:
        """Return the loss and metrics of decisions (B) with given log-ratios (B, M)."""
        # surrogate
        gain = self.surrogate(log_ratio, batch["advantage"])  # (B, M)
        weight = batch.get("weight", None)
        loss = -(gain if weight is None else gain * weight).mean()
        metrics = {"policy_loss": loss}

        # entropy
        if self.entropy_coefficient > 0:
            entropy = dist.entropy()  # (B,)
            metrics["entropy"] = entropy.mean()
            loss = loss + (-self.entropy_coefficient * entropy).mean()

        # divergence from the pretrained policy
        if self.reference is not None and self.kl_coefficient > 0:
            metrics["reference_kl"] = self.reference.divergence(batch, dist, self.kl_space).mean()
            loss = loss + self.kl_coefficient * metrics["reference_kl"]

        # cloning of the pretrained policy
        if self.reference is not None and self.bc_coefficient > 0:
            metrics["reference_bc"] = self.reference.cloning_loss(self.actor, batch).mean()
            loss = loss + self.bc_coefficient * metrics["reference_bc"]

        # losses of the language model
        if self.language is not None:
            language, single = self.language(batch)
            loss, metrics = loss + language, {**metrics, **single}
        return loss, {**metrics, "log_ratio": log_ratio}


def policy_metrics(metrics: Metrics, clip: ClipConfig) -> Metrics:
    """Return the scalar metrics of the ratios of `PolicyLoss`, for `gradient_step`."""
    return ratio_metrics(metrics["log_ratio"], clip.low, clip.high)
