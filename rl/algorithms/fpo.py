"""Flow policy optimization: PPO with ratios of flow-matching losses instead of likelihoods.

The ratio is exp(old loss - new loss) on the same draws of noise and flow time, so a chunk with a
smaller loss counts as more likely. No flow step is random. The policy acts by the ODE from fresh
noise, and explores by noise on the finished chunk, whose density is not needed.

The ratio is a biased replacement of a likelihood ratio, because minus the loss bounds log p only
with the right weights over flow times. The loss is summed over executed entries. The mean loss of a
good clone is near 0.05, which would limit the ratio of a good chunk to exp(0.05). FPO++ has other
settings (`plus_plus`): a ratio per draw, a parabola instead of the clip for negative advantages,
and clamps.
Letters: E envs, T chunk decisions, B minibatch rows.
Sources: McAllister et al. 2025 (FPO), and its successor FPO++ with settings from its public mirror.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies import FlowMatchingConfig, FlowPolicy, LikelihoodActor
from pitune.ranges import PositiveFloat
from pitune.rl.algorithm import Algorithm
from pitune.rl.algorithms.ppo import critic_loss
from pitune.rl.gradient_step import gradient_step, minibatches, run_epochs, to_floats
from pitune.rl.optimizers import adam
from pitune.rl.policy_gradient.batch import advantage_batch
from pitune.rl.policy_gradient.config import ClipConfig, CriticBasedConfig
from pitune.rl.policy_gradient.information import Information
from pitune.rl.policy_gradient.loss import PolicyLoss
from pitune.rl.policy_gradient.policy_step import has_advantage, learns_from, policy_step
from pitune.rl.policy_gradient.prefixes import plan_prefixes
from pitune.rl.policy_gradient.rescoring import actor_score, rescore, rescore_notes, rescores
from pitune.rl.policy_gradient.surrogate import asymmetric_surrogate, clipped_surrogate
from pitune.rl.policy_gradient.value import ValueCritic
from pitune.rl.registry import register


@dataclass(frozen=True, kw_only=True)
class FPOConfig(CriticBasedConfig):
    """Clipped policy gradient on ratios of flow-matching losses.

    Example:
        >>> plus_plus(FPOConfig()).likelihood.num_draws
        16
    """

    likelihood: FlowMatchingConfig = field(
        default_factory=lambda: FlowMatchingConfig(ratio="joint", num_draws=4, action_noise=0.15)
    )
    """Draws, flow times and space of the loss. `ratio="step"` is one ratio per draw."""
    surrogate: Literal["clip", "asymmetric"] = "clip"
    """PPO's objective, or FPO++'s, which pulls the ratios of bad decisions back."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    """Range of the ratio."""
    log_ratio_clamp: PositiveFloat = 5.0
    """Bound of the absolute log-ratios [-]. Outside of it there is no gradient."""
    rescore: bool | None = None
    """Whether to take old losses from the training forward instead of the sampler, and
    log their difference. By default only if the policy computes in less than float32."""

    def __post_init__(self) -> None:
        if not isinstance(self.likelihood, FlowMatchingConfig):
            raise ValueError(
                f"likelihood={type(self.likelihood).__name__} must be a FlowMatchingConfig for "
                "fpo; the other likelihoods are for ppo and grpo"
            )
        super().__post_init__()


def plus_plus(config: FPOConfig) -> FPOConfig:
    """Return a config with FPO++'s settings: 16 draws with a ratio each, asymmetric, clamped."""
    likelihood = replace(
        config.likelihood, ratio="step", num_draws=16, draw_times="uniform", loss_clamp=20.0
    )
    return replace(config, likelihood=likelihood, surrogate="asymmetric")


@register("fpo", FPOConfig, variants={"plus_plus": plus_plus}, memory=True)
class FPO(Algorithm[FPOConfig]):
    """FPO: PPO with ratios of flow-matching losses.

    Example:
        >>> algorithm = FPO(FPOConfig(), policies.load("runs/push/pretrained"))  # doctest: +SKIP
        >>> metrics = algorithm.update(rollouts.collect())  # doctest: +SKIP
    """

    actor: LikelihoodActor

    def __init__(self, config: FPOConfig, policy: FlowPolicy) -> None:
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
        self.loss = PolicyLoss(self.actor, self._surrogate, language=config.language)
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

    def prepare(self, rollout: TensorDictBase) -> tuple[TensorDictBase, dict[str, float]]:
        """Return the valid decisions (B) with advantages and value targets, and metrics."""
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
            batch, gaps = rescore(batch, actor_score(self.actor), config.update.part_size)
            metrics |= gaps
        if len(batch):
            metrics["flow_loss"] = -float(batch["action_log_prob"].mean())
        return batch, metrics

    def plan_rollouts(self, num_decisions: int) -> list[str]:
        return plan_prefixes(self.actor, num_decisions, self.config.update)

    def notes(self) -> list[str]:
        return rescore_notes(self.actor.policy, self.config.rescore)

    def minibatch_step(self, batch: TensorDictBase, learns: bool | None = None) -> dict[str, float]:
        """Take one gradient step on the critic and, after its warm-up, on the policy.

        The policy has none if all advantages are 0, because Adam would go on with its last ones.

        Args:
            batch: Decisions (B).
            learns: Whether an advantage differs from 0. By default it is read from the batch.
        """
        # critic
        update, step = self.config.update, f"update {self.num_updates}"
        value_metrics, _ = gradient_step(
            self.optimizers["critic"],
            partial(critic_loss, self.critic, clip=math.inf),
            batch,
            name="critic",
            step=step,
            max_grad_norm=update.max_grad_norm,
            num_parts=update.num_parts,
        )
        metrics = to_floats(value_metrics)

        # policy
        if self.num_updates >= self.config.critic_warmup:
            metrics |= policy_step(
                self.optimizers["actor"],
                self.loss,
                self.loss.with_draws(batch),
                learns=has_advantage(batch) if learns is None else learns,
                clip=self.config.clip,
                update=update,
                step=step,
            )
        return metrics

    def extra_state(self) -> dict[str, Any]:
        return {"informative_std": self.information.std}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.information.std = state.get("informative_std", 0.0)

    def _surrogate(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """Return the objective (B, draws) of log-ratios (B, draws) and advantages (B, 1)."""
        config = self.config
        chosen = asymmetric_surrogate if config.surrogate == "asymmetric" else clipped_surrogate
        clamped = log_ratio.clamp(-config.log_ratio_clamp, config.log_ratio_clamp)
        return chosen(clamped, advantage, config.clip.low, config.clip.high)
