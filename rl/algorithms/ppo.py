"""Flow PPO: the clipped policy gradient on the likelihood of the denoising chain.

With Gaussian noise in one flow step (or in all), a chunk has a likelihood, and PPO applies. A
decision is a whole chunk; its advantage is a semi-Markov one
(`pitune.rl.policy_gradient.advantage`). The loss is `pitune.rl.policy_gradient.surrogate`; the
tests hold it to TorchRL's `ClipPPOLoss`, bit for bit.

Left out of the papers: none of their reductions is hard-wired. `likelihood.reduction` and
`likelihood.ratio` say what the ratio is, and a note at a run's start what the clip then means.
Letters: E envs, T chunk decisions, B minibatch, M scored flow steps.
Sources: Schulman et al. 2017; Ren et al. 2024 (DPPO); Chen et al. 2025 (πRL).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy, LikelihoodActor, LikelihoodConfig
from pitune.rl.algorithm import Algorithm, AlgorithmConfig
from pitune.rl.gradient_step import descend, minibatches, run_epochs
from pitune.rl.policy_gradient.advantage import TimeLimit
from pitune.rl.policy_gradient.batch import judged_decisions, rescored
from pitune.rl.policy_gradient.loss import PolicyLoss, check_trainable, clip_notes, with_one_step
from pitune.rl.policy_gradient.reference import KLSpace
from pitune.rl.policy_gradient.surrogate import clipped_surrogate, value_loss
from pitune.rl.policy_gradient.value import ValueCritic
from pitune.rl.registry import register


@dataclass(frozen=True, kw_only=True)
class PPOConfig(AlgorithmConfig):
    """Clipped policy gradient on the likelihood of the denoising chain."""

    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    """Which noise makes the policy stochastic, and what its log-probability sums."""
    actor_learning_rate: float = 1e-4
    """Adam's step size for the policy [-]."""
    critic_learning_rate: float = 1e-3
    """Adam's step size for the critic [-]."""
    num_epochs: int = 4
    """Passes over each rollout."""
    minibatch_size: int = 512
    """Chunk decisions per gradient step; a ragged last one is dropped."""
    clip_low: float = 0.2
    """How far the ratio may fall below 1 [-]."""
    clip_high: float = 0.2
    """How far the ratio may rise above 1 [-]."""
    dual_clip: float = math.inf
    """Where the advantage is negative the objective is at least this many times it [-]; 3 is
    common, infinite is none."""
    value_clip: float = math.inf
    """How far a value may leave the one before the update [scaled returns]; infinite is free."""
    normalize_returns: bool = False
    """Whether the critic learns returns of mean 0 and deviation 1, whatever the reward's scale."""
    target_kl: float = 0.2
    """An update ends when the policy is this far from the one that gathered [nats per ratio]."""
    discount: float = 0.99
    """Per environment step, not per chunk [-]."""
    gae_lambda: float = 0.95
    """Weight of long returns in the advantage, per decision [-]."""
    time_limit: TimeLimit = "terminal"
    """Whether the time limit is part of the task, or only an interruption of it."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy of a learned noise [-]."""
    kl_coefficient: float = 0.0
    """Weight of the divergence from the pretrained policy, per scored flow step [-]."""
    kl_space: KLSpace = "kernel"
    """Divergence of the flow steps' Gaussians [nats], or of their velocities."""
    bc_coefficient: float = 0.0
    """Weight of cloning the pretrained policy in the places that are visited [-]."""
    critic_warmup: int = 3
    """Updates in which only the critic learns; a fresh critic's advantages are noise."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm, for policy and critic apart [-]."""
    num_parts: int = 1
    """Parts that a minibatch is split into: less memory, the same gradient."""
    rescore: bool = False
    """Take old log-probabilities from the training forward instead of the sampler, and log how
    far apart they are. For machines where the two differ by more than rounding."""
    scored_steps: Literal["all", "one"] = "all"
    """Of a chain whose steps are all random: score all of them in every gradient step, or one per
    row, drawn anew each time. The latter costs a K-th and has the same mean gradient."""

    def __post_init__(self) -> None:
        if self.scored_steps == "one" and (
            self.likelihood.stochastic_steps != "all" or self.likelihood.ratio != "step"
        ):
            raise ValueError(
                "scored_steps='one' needs likelihood.stochastic_steps='all' and "
                "likelihood.ratio='step': a joint ratio is not a mean over its steps"
            )
        if self.scored_steps == "one" and self.likelihood.kernel == "flow_matching":
            raise ValueError(
                "scored_steps='one' means nothing with likelihood.kernel='flow_matching', which "
                "has no random steps; take fewer likelihood.num_draws"
            )
        check_trainable(self.likelihood)
        if self.num_parts < 1:
            raise ValueError(f"num_parts={self.num_parts} must be at least 1")
        if self.dual_clip <= 1:
            raise ValueError(f"dual_clip={self.dual_clip} must be above 1; infinite is none")


def policy_loss(actor: LikelihoodActor, config: PPOConfig) -> PolicyLoss:
    """Return PPO's loss for an actor, with the config's clips and regularization."""
    clip = (config.clip_low, config.clip_high)
    surrogate = partial(
        clipped_surrogate, clip_low=clip[0], clip_high=clip[1], dual_clip=config.dual_clip
    )
    return PolicyLoss(
        actor,
        surrogate,
        clip,
        entropy_coefficient=config.entropy_coefficient,
        kl_coefficient=config.kl_coefficient,
        kl_space=config.kl_space,
        bc_coefficient=config.bc_coefficient,
    )


def critic_loss(critic: ValueCritic, batch: TensorDictBase, clip: float) -> Tensor:
    """Return a critic's loss on decisions (B), in the units that it learns in."""
    values = (critic.value(batch), batch["state_value"], batch["value_target"])
    value, old, target = (critic.scaled(v) for v in values)
    return value_loss(value, old, target, clip)


@register("ppo", PPOConfig)
class PPO(Algorithm[PPOConfig]):
    """PPO whose action is a whole chunk and whose likelihood is that of its chain."""

    def __init__(self, config: PPOConfig, policy: FlowPolicy) -> None:
        super().__init__(config, LikelihoodActor(policy, config.likelihood))
        self.critic = ValueCritic(policy.preprocessor, policy.feature_dim).to(policy.device)
        self.networks["critic"] = self.critic
        self.loss = policy_loss(self.actor, config)
        self.optimizers = {
            "actor": torch.optim.Adam(self.actor.parameters(), lr=config.actor_learning_rate),
            "critic": torch.optim.Adam(self.critic.parameters(), lr=config.critic_learning_rate),
        }

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        batch, metrics = self.prepare(rollout)
        rows = minibatches(len(batch), self.config.minibatch_size, self.config.num_epochs)
        metrics |= run_epochs(batch, rows, self.gradient_step, self.config.target_kl)
        self.num_updates += 1
        return metrics

    def gradient_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take one gradient step on the critic, and on the policy when it is its time."""
        metrics = self.critic_step(batch)
        if self.num_updates >= self.config.critic_warmup:
            metrics |= self.actor_step(batch)
        return metrics

    def prepare(self, rollout: TensorDictBase) -> tuple[TensorDictBase, dict[str, float]]:
        """Return the valid decisions (B,) with advantages and value targets, and metrics."""
        config = self.config
        batch, metrics = judged_decisions(
            rollout,
            self.actor,
            self.critic,
            discount=config.discount,
            gae_lambda=config.gae_lambda,
            time_limit=config.time_limit,
            normalize_returns=config.normalize_returns,
        )
        if config.rescore:
            batch, gaps = rescored(batch, self.actor, config.minibatch_size)
            metrics |= gaps
        return batch, metrics

    def notes(self) -> list[str]:
        return clip_notes(self.actor, self.config.clip_low, self.config.clip_high)

    def actor_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take one gradient step on the policy and return its metrics."""
        config = self.config
        if config.scored_steps == "one" and "stochastic_step" not in batch.keys():
            batch = with_one_step(batch, self.actor.policy.grid.flow_steps)
        _, grad_norm = descend(
            self.optimizers["actor"],
            self.loss,
            batch,
            max_grad_norm=config.max_grad_norm,
            name="actor",
            update=self.num_updates,
            num_parts=config.num_parts,
        )
        return {**self.loss.metrics(), "grad_norm": grad_norm}

    def critic_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take one gradient step on the critic and return its metrics."""
        loss, _ = descend(
            self.optimizers["critic"],
            lambda part: critic_loss(self.critic, part, self.config.value_clip),
            batch,
            max_grad_norm=self.config.max_grad_norm,
            name="critic",
            update=self.num_updates,
        )
        return {"value_loss": loss}
