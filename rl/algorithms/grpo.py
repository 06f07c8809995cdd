"""Flow GRPO: advantages of episodes over others from the same start, without a critic.

Neighboring environments play the same starts (`pitune.envs.seeding`). An episode's advantage is
its score minus the group's mean, and all its decisions share it. The ratio is that of flow PPO.
Groups whose episodes all succeeded or all failed have no information and are dropped, because a
shaped reward would turn them into noise. Rollouts of the same policy are added until enough groups
are left.

Left out of the papers: a clip of advantages, and a curriculum of starts.
In shapes, `episodes` is the number of episodes per environment, `size` that per group.
Letters: E envs, T chunk decisions, B minibatch rows.
Sources: Shao et al. 2024 (GRPO), Yu et al. 2025 (DAPO, resampling), Zheng et al. 2025 (GSPO,
trajectory ratios), Liu et al. 2025 (Flow-GRPO, Dr. GRPO), Chen et al. 2025 (πRL).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy, FlowSDEConfig, LikelihoodActor, LikelihoodConfig
from pitune.policies.host_prefixes import on_device
from pitune.ranges import DiscountFactor, NonNegativeFloat, PositiveFloat, Range
from pitune.rl import ranks
from pitune.rl.algorithm import Algorithm, Needs
from pitune.rl.experience.history import with_history
from pitune.rl.experience.keys import select_decisions
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.gradient_step import Metrics, minibatches, run_epochs
from pitune.rl.optimizers import adam
from pitune.rl.policy_gradient.advantage import GroupScale, group_relative
from pitune.rl.policy_gradient.config import ClipConfig, RegularizedConfig, UpdateConfig
from pitune.rl.policy_gradient.episodes import Episodes, episodes, grouped, ungrouped
from pitune.rl.policy_gradient.loss import PolicyLoss, check_trainable, clip_notes, log_ratios
from pitune.rl.policy_gradient.policy_step import policy_step
from pitune.rl.policy_gradient.prefixes import plan_prefixes, prefixes_together
from pitune.rl.policy_gradient.reference import KLSpace
from pitune.rl.policy_gradient.rescoring import actor_score, rescore, rescore_notes, rescores
from pitune.rl.policy_gradient.surrogate import clipped_surrogate, trajectory_log_ratio
from pitune.rl.registry import register


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(RegularizedConfig):
    """Clipped policy gradient on advantages within groups of equal starts.

    Example:
        >>> GRPOConfig(group_size=4).clip.high
        0.2
    """

    likelihood: LikelihoodConfig = field(default_factory=FlowSDEConfig)
    """Noise of the flow steps, and the reduction of the log-probability."""
    group_size: Annotated[int, Range(low=2)] = 10
    """Episodes per start, which are compared with each other. The number of environments is a
    multiple of it."""
    learning_rate: PositiveFloat = 2e-4
    """Adam's step size [-]."""
    update: UpdateConfig = field(default_factory=UpdateConfig)
    """Epochs, minibatches and the end of an update."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    """Range of the ratio."""
    discount: DiscountFactor = 1.0
    """Discount per environment step [-]. Below 1, the faster of two successes scores higher."""
    advantage_scale: GroupScale = "group"
    """Divisor of advantages: the standard deviation of the group or of the batch, or none."""
    level: Literal["chunk", "trajectory"] = "chunk"
    """One ratio per chunk, or one per episode (the geometric mean of its chunks' ratios)."""
    weighting: Literal["decision", "episode"] = "decision"
    """Whether all decisions have the same weight, or all episodes of any length."""
    min_kept: NonNegativeFloat = 0.25
    """Rollouts of the same policy are collected until the groups with unequal outcomes are at least
    this share of one rollout's groups [-]. 0 updates as soon as one group is kept."""
    kl_coefficient: NonNegativeFloat = 0.0
    """Weight of the divergence from the pretrained policy, per scored flow step [-]."""
    kl_space: KLSpace = "kernel"
    """Divergence of the flow steps' Gaussians [nats], or of their velocities."""
    rescore: bool | None = None
    """Whether to take old log-probabilities from the training forward instead of the sampler, and
    log their difference. By default only if the policy computes in less than float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_trainable(self.likelihood)

    @property
    def policy_minibatch(self) -> int:
        return self.update.minibatch_size


@register("grpo", GRPOConfig, whole_episodes=True, memory=True)
class GRPO(Algorithm[GRPOConfig]):
    """GRPO whose action is a whole chunk and whose likelihood is that of its chain.

    Example:
        >>> algorithm = GRPO(GRPOConfig(), policies.load("runs/push/pretrained"))  # doctest: +SKIP
        >>> metrics = algorithm.update(rollouts.collect())  # doctest: +SKIP
    """

    actor: LikelihoodActor
    decoders = ("flow", "fast")

    def __init__(self, config: GRPOConfig, policy: FlowPolicy) -> None:
        super().__init__(config, LikelihoodActor(policy, config.likelihood))
        self.needs = Needs(group_size=config.group_size, whole_episodes=True, success_signal=True)
        clip = config.clip
        self.loss = PolicyLoss(
            self.actor,
            partial(clipped_surrogate, clip_low=clip.low, clip_high=clip.high),
            kl_coefficient=config.kl_coefficient,
            kl_space=config.kl_space,
            language=config.language,
        )
        self.optimizers["actor"] = adam(self.actor.parameters(), lr=config.learning_rate)
        self.pending: list[TensorDictBase] = []
        """Decisions of earlier rollouts for the next update."""
        self.num_pending_groups = 0

    def plan_rollouts(self, num_decisions: int) -> list[str]:
        return plan_prefixes(self.actor, num_decisions, self.config.update)

    def notes(self) -> list[str]:
        notes = rescore_notes(self.actor.policy, self.config.rescore)
        return [*clip_notes(self.actor, self.config.clip), *notes]

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        # decisions of the rollout
        batch, num_kept, metrics = self.prepare(rollout)
        self.pending.append(batch)
        self.num_pending_groups += ranks.total(num_kept)
        self.num_updates += 1
        metrics["pending_groups"] = float(self.num_pending_groups)
        num_groups = ranks.total(metrics["groups"])
        if self.num_pending_groups < max(1, math.ceil(self.config.min_kept * num_groups)):
            return {**metrics, "gradient_steps": 0.0}

        # gradient steps
        batch = self._whole_batch()
        if rescores(self.actor.policy, self.config.rescore):
            size = self.config.update.part_size
            batch, gaps = rescore(batch, actor_score(self.actor), size)
            metrics |= gaps
        rows = self._minibatches(batch)
        return metrics | run_epochs(batch, rows, self.actor_step, self.config.update.target_kl)

    @torch.no_grad()
    def prepare(self, rollout: TensorDictBase) -> tuple[TensorDictBase, int, dict[str, float]]:
        """Return the decisions (B) of kept groups, the number of these groups, and metrics.

        Raises:
            ValueError: the number of environments is not a multiple of the group size.
        """
        config, size = self.config, self.config.group_size
        if rollout.batch_size[0] % size:
            raise ValueError(
                f"num_envs={rollout.batch_size[0]} must be a multiple of group_size={size}"
            )

        # groups (groups, size) with unequal outcomes
        rollout = on_device(rollout, self.actor.policy.device)
        played = episodes(rollout, config.discount)
        counted, success = grouped(played.counted, size), grouped(played.success, size)
        wins = (success & counted).sum(1)
        kept = (wins > 0) & (wins < counted.sum(1))  # (groups,)

        # advantages, as tables (E, episodes)
        advantage = group_relative(
            grouped(played.score, size), counted & kept[:, None], config.advantage_scale
        )
        kept = kept & (advantage != 0).any(1)  # equal scores carry no information
        table = ungrouped(advantage, played.score.shape[1])
        chosen = ungrouped(counted & kept[:, None], played.score.shape[1])
        batch = self._decisions(rollout, played, table, chosen)

        # metrics
        num_kept, num = int(kept.sum()), len(kept)
        metrics = {
            "groups": float(num),
            "kept_groups": num_kept / num,
            "solved_groups": float(((wins == counted.sum(1)) & (wins > 0)).float().mean()),
            "group_start_spread": _spread(played, size),
        }
        return batch, num_kept, metrics

    def _decisions(
        self, rollout: TensorDictBase, played: Episodes, advantage: Tensor, chosen: Tensor
    ) -> TensorDictBase:
        """Return the decisions (B) of chosen episodes, with their advantages.

        Args:
            rollout: Decisions (E, T).
            played: Its episodes.
            advantage: Advantages (E, episodes).
            chosen: Mask of the chosen episodes (E, episodes).
        """
        num_envs, num_episodes = advantage.shape
        executed = played.number < num_episodes
        # (E, T), any column for decisions without an executed step
        column = played.number.clamp(max=num_episodes - 1)
        kept = executed & chosen.gather(1, column)  # (E, T)
        env = torch.arange(num_envs, device=column.device)[:, None]
        episode = (env * num_episodes + column)[kept]
        past = self.config.update.memory_decisions
        rollout = with_history(rollout, self.actor.policy, past)
        batch = sub_dict(select_decisions(rollout, self.actor.in_keys, self.actor.out_keys), kept)

        # advantages and weights
        batch["advantage"] = advantage.gather(1, column)[kept][:, None]
        # decisions of each row's episode (B,)
        length = torch.bincount(episode, minlength=num_envs * num_episodes)[episode]
        weight = torch.ones_like(batch["advantage"])
        if self.config.weighting == "episode" or self.config.level == "trajectory":
            weight = weight / length[:, None]
        batch["weight"] = weight
        batch["episode"] = episode
        return batch

    def _whole_batch(self) -> TensorDictBase:
        """Return and clear the pending decisions as one batch, with a mean weight of 1.

        Ranks kept different numbers of decisions, so they exchange some to have equal ones.
        """
        # episode numbers that are unique over the rollouts
        offset, parts = 0, []
        for part in prefixes_together(self.pending, self.actor):
            parts.append(part.copy().set("episode", part["episode"] + offset))
            offset += int(part["episode"].max()) + 1 if len(part) else 0
        self.pending, self.num_pending_groups = [], 0

        # one batch
        batch: TensorDictBase = TensorDict.cat(parts)
        whole_episodes = self.config.level == "trajectory"
        batch = ranks.balanced(batch, group="episode" if whole_episodes else None)
        batch["episode"] = batch["episode"].unique(return_inverse=True)[1]
        batch["weight"] = batch["weight"] / ranks.mean(batch["weight"])
        return batch

    def _minibatches(self, batch: TensorDictBase) -> list[Tensor]:
        """Return the rows of each gradient step, in whole episodes with `level="trajectory"`."""
        size, num_epochs = self.config.update.minibatch_size, self.config.update.num_epochs
        if self.config.level == "chunk" or not len(batch):
            return minibatches(len(batch), size, num_epochs, self.actor.policy.device)
        episode = batch["episode"].cpu()
        num = int(episode.max()) + 1
        per_step = max(1, round(size * ranks.total(num) / ranks.total(len(batch))))
        return [
            torch.isin(episode, chosen).nonzero().flatten().to(batch["episode"].device)
            for chosen in minibatches(num, per_step, num_epochs)
        ]

    def actor_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take one gradient step on the policy and return its metrics."""
        whole_episodes = self.config.level == "trajectory"
        return policy_step(
            self.optimizers["actor"],
            self._trajectory_loss if whole_episodes else self.loss,
            self.loss.with_draws(batch),
            learns=True,
            clip=self.config.clip,
            update=self.config.update,
            step=f"update {self.num_updates}",
            group="episode" if whole_episodes else None,
        )

    def _trajectory_loss(self, batch: TensorDictBase) -> tuple[Tensor, Metrics]:
        """Return the loss of whole episodes whose decisions share one ratio."""
        log_ratio, dist = log_ratios(self.actor, batch)
        return self.loss.of_ratios(trajectory_log_ratio(log_ratio, batch["episode"]), dist, batch)

    def extra_state(self) -> dict[str, Any]:
        # flat, because a checkpoint holds tensors in plain dicts only
        pending = [dict(part.flatten_keys(".").items()) for part in self.pending]
        return {"pending": pending, "num_pending_groups": self.num_pending_groups}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.pending = [
            TensorDict(part, batch_size=[len(part["chain"])]).unflatten_keys(".")
            for part in state["pending"]
        ]
        self.num_pending_groups = state["num_pending_groups"]


def _spread(played: Episodes, group_size: int) -> float:
    """Return the largest distance between starts of a group [robot units], which should be 0."""
    # (E, episodes, s) -> (groups, size, s)
    starts = torch.stack([grouped(column, group_size) for column in played.start.unbind(-1)], -1)
    together = grouped(played.counted, group_size).all(1)
    if not together.any():
        return 0.0
    return float((starts - starts[:, :1])[together].abs().max())
