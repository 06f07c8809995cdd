"""Flow policy optimization: PPO whose ratio comes from the flow-matching loss, not a likelihood.

A chunk that the network would now be trained towards with less loss counts as likelier: the ratio
is exp(old loss - new loss) on the same draws of noise and flow time. No flow step is random: the
policy acts by the ODE from fresh noise, and explores by noise on the finished chunk, for which no
density is needed.

The ratio is a biased stand-in for a likelihood's: minus the loss bounds log p only with the right
weights over flow times. The loss is summed over executed entries: a clone fits so well that its
mean is near 0.05, and no good chunk's ratio could exceed exp(0.05), whatever is learned. FPO++ is
a matter of settings (`plus_plus`): a ratio per draw, a parabola in the place of the clip where the
advantage is negative, and clamps.
Letters: E envs, T chunk decisions, B minibatch, M draws (1 for a joint ratio).
Sources: McAllister et al. 2025 (FPO); its successor FPO++, settings from its public mirror.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy, LikelihoodActor, LikelihoodConfig
from pitune.rl.algorithm import Algorithm, AlgorithmConfig
from pitune.rl.algorithms.ppo import critic_loss
from pitune.rl.gradient_step import Loss, descend, minibatches, run_epochs
from pitune.rl.policy_gradient.advantage import TimeLimit
from pitune.rl.policy_gradient.batch import judged_decisions
from pitune.rl.policy_gradient.loss import PolicyLoss
from pitune.rl.policy_gradient.surrogate import asymmetric_surrogate, clipped_surrogate
from pitune.rl.policy_gradient.value import ValueCritic
from pitune.rl.registry import register


@dataclass(frozen=True, kw_only=True)
class FPOConfig(AlgorithmConfig):
    """Clipped policy gradient on ratios of flow-matching losses."""

    likelihood: LikelihoodConfig = field(
        default_factory=lambda: LikelihoodConfig(
            kernel="flow_matching", ratio="joint", num_draws=4, action_noise=0.15
        )
    )
    """How the loss is measured: draws, flow times, space; `ratio="step"` is one ratio per draw."""
    actor_learning_rate: float = 1e-4
    """Adam's step size for the policy [-]."""
    critic_learning_rate: float = 1e-3
    """Adam's step size for the critic [-]."""
    num_epochs: int = 4
    """Passes over each rollout."""
    minibatch_size: int = 512
    """Chunk decisions per gradient step; a ragged last one is dropped."""
    surrogate: Literal["clip", "asymmetric"] = "clip"
    """PPO's, or FPO++'s, which calls the ratios of bad decisions back."""
    clip_low: float = 0.2
    """How far the ratio may fall below 1 [-]."""
    clip_high: float = 0.2
    """How far the ratio may rise above 1 [-]."""
    log_ratio_clamp: float = 5.0
    """Log-ratios are clamped to this on both sides and have no gradient beyond [-]."""
    target_kl: float = 0.2
    """An update ends when the mean of (ratio - 1 - log ratio) exceeds this [-]."""
    discount: float = 0.99
    """Per environment step, not per chunk [-]."""
    gae_lambda: float = 0.95
    """Weight of long returns in the advantage, per decision [-]."""
    time_limit: TimeLimit = "terminal"
    """Whether the time limit is part of the task, or only an interruption of it."""
    critic_warmup: int = 3
    """Updates in which only the critic learns; a fresh critic's advantages are noise."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm, for policy and critic apart [-]."""

    def __post_init__(self) -> None:
        if self.likelihood.kernel != "flow_matching":
            raise ValueError(
                f"likelihood.kernel={self.likelihood.kernel!r} must be 'flow_matching' for fpo; "
                "the other likelihoods are for ppo and grpo"
            )


def plus_plus(config: FPOConfig) -> FPOConfig:
    """Return a config with FPO++'s settings: ratios per draw, 16 of them, asymmetric, clamped."""
    likelihood = replace(
        config.likelihood, ratio="step", num_draws=16, draw_times="uniform", loss_clamp=20.0
    )
    return replace(config, likelihood=likelihood, surrogate="asymmetric")


@register("fpo", FPOConfig, variants={"plus_plus": plus_plus})
class FPO(Algorithm[FPOConfig]):
    """Actor, critic and update of FPO."""

    def __init__(self, config: FPOConfig, policy: FlowPolicy) -> None:
        super().__init__(config, LikelihoodActor(policy, config.likelihood))
        self.critic = ValueCritic(policy.preprocessor, policy.feature_dim).to(policy.device)
        self.networks["critic"] = self.critic
        clip = (config.clip_low, config.clip_high)
        self.loss = PolicyLoss(self.actor, self._surrogate, clip)
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

    def prepare(self, rollout: TensorDictBase) -> tuple[TensorDictBase, dict[str, float]]:
        """Return the valid decisions (B) with advantages and value targets, and metrics."""
        config = self.config
        batch, metrics = judged_decisions(
            rollout,
            self.actor,
            self.critic,
            discount=config.discount,
            gae_lambda=config.gae_lambda,
            time_limit=config.time_limit,
        )
        metrics["flow_loss"] = -float(batch["action_log_prob"].mean())
        return batch, metrics

    def gradient_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take one gradient step on the critic, and on the policy when it is its time."""
        judge = partial(critic_loss, self.critic, clip=math.inf)
        metrics = {"value_loss": self._descend("critic", judge, batch)[0]}
        if self.num_updates >= self.config.critic_warmup:
            _, norm = self._descend("actor", self.loss, batch)
            metrics |= {**self.loss.metrics(), "grad_norm": norm}
        return metrics

    def _surrogate(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        config = self.config
        chosen = asymmetric_surrogate if config.surrogate == "asymmetric" else clipped_surrogate
        clamped = log_ratio.clamp(-config.log_ratio_clamp, config.log_ratio_clamp)
        return chosen(clamped, advantage, config.clip_low, config.clip_high)

    def _descend(self, name: str, loss: Loss, batch: TensorDictBase) -> tuple[float, float]:
        return descend(
            self.optimizers[name],
            loss,
            batch,
            max_grad_norm=self.config.max_grad_norm,
            name=name,
            update=self.num_updates,
        )
