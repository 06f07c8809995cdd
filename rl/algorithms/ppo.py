"""Flow PPO: the clipped policy gradient on the likelihood of the denoising chain.

With Gaussian noise in one flow step or in all, a chunk has a likelihood, and PPO applies. A
decision is a whole chunk with a semi-Markov advantage (`pitune.rl.policy_gradient.advantage`). The
loss is `pitune.rl.policy_gradient.surrogate`. The tests compare it with TorchRL's `ClipPPOLoss`,
bit for bit.

The papers differ in the reductions of the ratio, which `likelihood.reduction` and
`likelihood.ratio` choose. A note at a run's start explains the clip for them.
Letters: B minibatch rows, K flow steps.
Sources: Schulman et al. 2017, Ren et al. 2024 (DPPO), Chen et al. 2025 (πRL).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies import (
    FlowPolicy,
    FlowSDEConfig,
    FlowStepConfig,
    LikelihoodActor,
    LikelihoodConfig,
    likelihood_name,
)
from pitune.ranges import NonNegativeFloat
from pitune.rl.algorithm import Algorithm
from pitune.rl.gradient_step import (
    Metrics,
    gradient_step,
    minibatches,
    run_epochs,
    to_floats,
)
from pitune.rl.optimizers import adam
from pitune.rl.policy_gradient.batch import advantage_batch
from pitune.rl.policy_gradient.config import CriticBasedConfig, PPOClipConfig
from pitune.rl.policy_gradient.information import Information
from pitune.rl.policy_gradient.loss import (
    PolicyLoss,
    check_trainable,
    clip_notes,
    with_one_step,
)
from pitune.rl.policy_gradient.policy_step import has_advantage, learns_from, policy_step
from pitune.rl.policy_gradient.prefixes import plan_prefixes
from pitune.rl.policy_gradient.reference import KLSpace
from pitune.rl.policy_gradient.rescoring import (
    actor_score,
    rescore,
    rescore_notes,
    rescores,
    step_by_step,
)
from pitune.rl.policy_gradient.surrogate import clipped_surrogate, value_loss
from pitune.rl.policy_gradient.value import ValueCritic
from pitune.rl.registry import register


@dataclass(frozen=True, kw_only=True)
class PPOConfig(CriticBasedConfig):
    """Clipped policy gradient on the likelihood of the denoising chain.

    Example:
        >>> from pitune.rl import PPOConfig, UpdateConfig
        >>> PPOConfig(update=UpdateConfig(minibatch_size=64)).policy_minibatch
        64
    """

    likelihood: LikelihoodConfig = field(default_factory=FlowSDEConfig)
    """Noise of the flow steps, and the reduction of the log-probability."""
    clip: PPOClipConfig = field(default_factory=PPOClipConfig)
    """Clips of the ratio, of the objective and of the values."""
    entropy_coefficient: NonNegativeFloat = 0.0
    """Weight of the entropy of a learned noise [-]."""
    kl_coefficient: NonNegativeFloat = 0.0
    """Weight of the divergence from the pretrained policy, per scored flow step [-]."""
    kl_space: KLSpace = "kernel"
    """Divergence of the flow steps' Gaussians [nats], or of their velocities."""
    bc_coefficient: NonNegativeFloat = 0.0
    """Weight of cloning the pretrained policy at the visited observations [-]."""
    rescore: bool | None = None
    """Whether to take old log-probabilities from the training forward instead of the sampler, and
    log their difference. By default only if the policy computes in less than float32."""
    scored_steps: Literal["all", "one"] = "all"
    """Flow steps of a fully random chain that a gradient step scores: all, or one per row, which is
    drawn. One step costs one K-th and gives the same mean gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_trainable(self.likelihood)
        if self.critic_distribution.used and self.clip.value < math.inf:
            raise ValueError(
                f"clip.value={self.clip.value} does not apply to a categorical critic "
                f"(critic_distribution.form={self.critic_distribution.form!r}), whose loss is a "
                "cross-entropy; leave clip.value out, or set critic_distribution.form='none'"
            )
        if self.scored_steps == "one":
            _check_one_step(self.likelihood)


def _check_one_step(likelihood: LikelihoodConfig) -> None:
    """Raise ValueError for a likelihood without a choice of random flow steps."""
    if not isinstance(likelihood, FlowStepConfig):
        raise ValueError(
            f"scored_steps='one' does not apply to the likelihood {likelihood_name(likelihood)!r}, "
            "which has no random steps; leave scored_steps='all'"
        )
    if likelihood.stochastic_steps != "all" or likelihood.ratio != "step":
        raise ValueError(
            "scored_steps='one' needs likelihood.stochastic_steps='all' and "
            "likelihood.ratio='step': a joint ratio is not a mean over its steps"
        )


def policy_loss(actor: LikelihoodActor, config: PPOConfig) -> PolicyLoss:
    """Return PPO's loss for an actor, with the config's clips and regularization."""
    clip = config.clip
    surrogate = partial(
        clipped_surrogate, clip_low=clip.low, clip_high=clip.high, dual_clip=clip.dual
    )
    return PolicyLoss(
        actor,
        surrogate,
        entropy_coefficient=config.entropy_coefficient,
        kl_coefficient=config.kl_coefficient,
        kl_space=config.kl_space,
        bc_coefficient=config.bc_coefficient,
        language=config.language,
    )


def critic_loss(critic: ValueCritic, batch: TensorDictBase, clip: float) -> tuple[Tensor, Metrics]:
    """Return a critic's loss on decisions (B), in its scaled units, and its metrics.

    That of a categorical critic is the cross-entropy [nats], without a clip.
    """
    bins = critic.distribution
    if bins.used:
        target = batch["value_target"]
        loss = bins.cross_entropy(critic.output(batch), target).mean()
        return loss, {"value_loss": loss, "value_clamped": bins.clamped(target)}
    values = (critic.value(batch), batch["state_value"], batch["value_target"])
    value, old, target = (critic.scaled(v) for v in values)  # each (B, 1)
    loss = value_loss(value, old, target, clip)
    return loss, {"value_loss": loss}


@register("ppo", PPOConfig, memory=True)
class PPO(Algorithm[PPOConfig]):
    """PPO on chunks, with the likelihood of the denoising chain.

    Example:
        >>> algorithm = PPO(PPOConfig(), policies.load("runs/push/pretrained"))  # doctest: +SKIP
        >>> metrics = algorithm.update(rollouts.collect())  # doctest: +SKIP
    """

    actor: LikelihoodActor
    decoders = ("flow", "fast")

    def __init__(self, config: PPOConfig, policy: FlowPolicy) -> None:
        super().__init__(config, LikelihoodActor(policy, config.likelihood))
        state_dim, remainder = policy.critic_obs_dim, policy.remainder_shape
        critic = ValueCritic(
            state_dim,
            policy.feature_dim,
            remainder=remainder,
            memory=policy.memory_shape,
            distribution=config.critic_distribution,
        )
        self.critic = critic.to(policy.device)
        self.networks["critic"] = self.critic
        self.loss = policy_loss(self.actor, config)
        self.information = Information()
        self.optimizers = {
            "actor": adam(self.actor.parameters(), lr=config.actor_learning_rate),
            "critic": adam(self.critic.parameters(), lr=config.critic_learning_rate),
        }

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        batch, metrics = self.prepare(rollout)
        update = self.config.update
        device = self.actor.policy.device
        rows = minibatches(len(batch), update.minibatch_size, update.num_epochs, device)
        learns = iter(learns_from(batch["advantage"], rows))
        metrics |= run_epochs(
            batch, rows, lambda part: self.minibatch_step(part, next(learns)), update.target_kl
        )
        self.num_updates += 1
        return metrics

    def minibatch_step(self, batch: TensorDictBase, learns: bool | None = None) -> dict[str, float]:
        """Take one gradient step on the critic and, after its warm-up, on the policy."""
        metrics = self.critic_step(batch)
        if self.num_updates >= self.config.critic_warmup:
            metrics |= self.actor_step(batch, learns)
        return metrics

    def prepare(self, rollout: TensorDictBase) -> tuple[TensorDictBase, dict[str, float]]:
        """Return the valid decisions (B,) with advantages and value targets, and metrics."""
        config = self.config
        batch, metrics = advantage_batch(
            rollout,
            self.actor,
            self.critic,
            config.advantage,
            self.information,
            config.update.memory_decisions,
        )
        if rescores(self.actor.policy, config.rescore):
            one_step = config.scored_steps == "one"
            score = step_by_step(self.actor) if one_step else actor_score(self.actor)
            batch, gaps = rescore(batch, score, config.update.part_size)
            metrics |= gaps
        return batch, metrics

    def plan_rollouts(self, num_decisions: int) -> list[str]:
        return plan_prefixes(self.actor, num_decisions, self.config.update)

    def notes(self) -> list[str]:
        notes = rescore_notes(self.actor.policy, self.config.rescore)
        return [*clip_notes(self.actor, self.config.clip), *notes]

    def actor_step(self, batch: TensorDictBase, learns: bool | None = None) -> dict[str, float]:
        """Take one gradient step on the policy and return its metrics.

        There is no step if all advantages are 0, which is how advantages without information come.

        Args:
            batch: Decisions (B).
            learns: Whether an advantage differs from 0. By default it is read from the batch.
        """
        config = self.config
        # random draws of the whole minibatch
        if config.scored_steps == "one":
            batch = with_one_step(batch, self.actor.policy.grid.flow_steps)
        batch = self.loss.with_draws(batch)

        if learns is None:
            learns = has_advantage(batch)
        return policy_step(
            self.optimizers["actor"],
            self.loss,
            batch,
            learns=learns,
            clip=config.clip,
            update=config.update,
            step=f"update {self.num_updates}",
        )

    def critic_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take one gradient step on the critic and return its metrics."""
        update = self.config.update
        metrics, _ = gradient_step(
            self.optimizers["critic"],
            lambda part: critic_loss(self.critic, part, self.config.clip.value),
            batch,
            name="critic",
            step=f"update {self.num_updates}",
            max_grad_norm=update.max_grad_norm,
            num_parts=update.num_parts,
        )
        return to_floats(metrics)

    def extra_state(self) -> dict[str, Any]:
        return {"informative_std": self.information.std}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.information.std = state.get("informative_std", 0.0)
