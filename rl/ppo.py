"""Flow PPO: the clipped policy gradient on the likelihood of the denoising chain.

With Gaussian noise in one flow step (or in all), a chunk has a likelihood, and PPO applies. A
decision is a whole chunk; its advantage is a semi-Markov one (`rl.advantage`). The loss
is `rl.surrogate`; the tests hold it to TorchRL's `ClipPPOLoss`, bit for bit.

Left out of the papers: none of their reductions is hard-wired. `likelihood.reduction` and
`likelihood.ratio` say what the ratio is, and `implied_clip` what the clip then means per entry.
Letters: E envs, T chunk decisions, B minibatch, M scored flow steps.
Sources: Schulman et al. 2017; Ren et al. 2024 (DPPO); Chen et al. 2025 (πRL).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from policies import FlowActor, FlowPolicy, LikelihoodConfig
from rl.advantage import TimeLimit, generalized_advantage, standardize
from rl.algorithm import Algorithm, AlgorithmConfig
from rl.critic import ValueCritic, explained_variance
from rl.descent import descend, minibatches
from rl.policy_loss import PolicyLoss, with_one_step
from rl.registry import register
from rl.surrogate import clipped_surrogate, value_loss


@dataclass(frozen=True, kw_only=True)
class PPOConfig(AlgorithmConfig):
    """Clipped policy gradient on the likelihood of the denoising chain."""

    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    """Which noise makes the policy stochastic, and what its log-probability sums."""
    actor_learning_rate: float = 2e-4
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
    critic_warmup: int = 3
    """Updates in which only the critic learns; a fresh critic's advantages are noise."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm, for policy and critic apart [-]."""
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


@register("ppo", PPOConfig)
class PPO(Algorithm[PPOConfig]):
    """PPO whose action is a whole chunk and whose likelihood is that of its chain."""

    def __init__(self, config: PPOConfig, policy: FlowPolicy) -> None:
        super().__init__(config, FlowActor(policy, config.likelihood))
        self.critic = ValueCritic(policy.preprocessor).to(policy.device)
        self.networks["critic"] = self.critic
        clip = (config.clip_low, config.clip_high)
        self.loss = PolicyLoss(
            self.actor,
            partial(clipped_surrogate, clip_low=clip[0], clip_high=clip[1]),
            clip,
            entropy_coefficient=config.entropy_coefficient,
        )
        self.optimizers = {
            "actor": torch.optim.Adam(self.actor.parameters(), lr=config.actor_learning_rate),
            "critic": torch.optim.Adam(self.critic.parameters(), lr=config.critic_learning_rate),
        }

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        batch, metrics = self.prepare(rollout)
        train_actor = self.num_updates >= self.config.critic_warmup
        history: list[dict[str, float]] = []
        for rows in minibatches(len(batch), self.config.minibatch_size, self.config.num_epochs):
            step = self.critic_step(batch[rows])
            if train_actor:
                step |= self.actor_step(batch[rows])
            history.append(step)
            if step.get("approx_kl", 0.0) > self.config.target_kl:
                break
        self.num_updates += 1
        if train_actor:
            metrics["ratio_deviation"] = history[0]["ratio_deviation"]
        means = {
            key: fmean(step[key] for step in history if key in step)
            for key in history[0]
            if key != "ratio_deviation"
        }
        return {**metrics, **means, "gradient_steps": float(len(history))}

    @torch.no_grad()
    def prepare(self, rollout: TensorDictBase) -> tuple[TensorDictBase, dict[str, float]]:
        """Return the valid decisions (B,) with advantages and value targets, and metrics."""
        config = self.config
        rollout = rollout.to(self.actor.policy.device).copy()
        rollout["state_value"] = self.critic.value(rollout)
        rollout["next", "state_value"] = self.critic.value(rollout["next"])
        advantage, target = generalized_advantage(
            rollout, config.discount, config.gae_lambda, config.time_limit
        )
        rollout["value_target"], rollout["advantage"] = target, advantage
        keys = [*self.actor.in_keys, *self.critic.in_keys, "chain", "action_log_prob"]
        keys += [key for key in ("stochastic_step",) if key in rollout.keys()]
        keys += ["value_target", "advantage", "state_value"]
        valid = ~rollout["next", "invalid"].squeeze(-1)
        batch = rollout.select(*keys)[valid]
        batch["advantage"] = standardize(batch["advantage"])
        metrics = {
            "value": float(batch["state_value"].mean()),
            "explained_variance": explained_variance(batch["state_value"], batch["value_target"]),
            "advantage_std": float(advantage[valid].std()),
        }
        return batch, metrics

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
        )
        return {**self.loss.metrics(), "grad_norm": grad_norm}

    def critic_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take one gradient step on the critic and return its metrics."""
        loss, _ = descend(
            self.optimizers["critic"],
            self.critic_loss,
            batch,
            max_grad_norm=self.config.max_grad_norm,
            name="critic",
            update=self.num_updates,
        )
        return {"value_loss": loss}

    def critic_loss(self, batch: TensorDictBase) -> Tensor:
        """Return the critic's loss on decisions (B)."""
        return value_loss(
            self.critic.value(batch), batch["state_value"], batch["value_target"], math.inf
        )
