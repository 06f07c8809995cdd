"""WSRL: warm-start an off-policy learner, without the data of the pretraining.

An untrained critic destroys a pretrained policy in the first online steps, because its gradient
pulls the policy away before it has learned anything. The frozen policy therefore first fills an
empty memory, the critics are fitted to it, and only then the policy is trained.

The paper also starts from a pretrained critic, which a π0 checkpoint does not have. Fitting the
critics to the data of the warm-up replaces it. The learner is `pitune.rl.actor_critic.learner`.
Left out: the offline pre-training (CQL, Cal-QL, IQL).
Letters: N rows, h executed actions, d robot action dim.
Source: Zhou et al. 2024.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy
from pitune.ranges import NonNegativeFloat
from pitune.rl.actor_critic.actor import ExploringActor
from pitune.rl.actor_critic.learner import ActorCriticConfig, FlowActorCritic
from pitune.rl.algorithm import Algorithm, AlgorithmConfig
from pitune.rl.registry import register


@dataclass(frozen=True, kw_only=True)
class WSRLConfig(AlgorithmConfig):
    """Warm-start an off-policy learner with the pretrained policy's own experience.

    The paper's ablations are settings: `learner.off_policy.warmup_decisions=0` for no warm-up, and
    `learner.off_policy.offline_share=0.5` for keeping the data.

    Example:
        >>> WSRLConfig(exploration_std=0.1).learner.actor_every
        4
    """

    learner: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    """Critics, memory, warm-up, and the policy's loss."""
    exploration_std: NonNegativeFloat = 0.2
    """Standard deviation of the noise on executed actions after the warm-up [normalized action]."""
    warmup_std: NonNegativeFloat = 0.3
    """Standard deviation in the warm-up [normalized action]. A clone hardly varies its actions, so
    without noise the critics could not learn in which direction a value rises."""

    def with_demonstrations(self, file: Path) -> WSRLConfig:
        return replace(self, learner=self.learner.with_demonstrations(file))

    @property
    def policy_minibatch(self) -> int:
        return self.learner.off_policy.minibatch_size


@register(
    "wsrl",
    WSRLConfig,
    variants={
        "no_warmup": {"learner.off_policy.warmup_decisions": 0},
        "keep_data": {"learner.off_policy.offline_share": 0.5},
    },
    off_policy=True,
)
class WSRL(Algorithm[WSRLConfig]):
    """A warm-up with the frozen policy, then online actor-critic updates.

    Example:
        >>> algorithm = WSRL(WSRLConfig(), policies.load("runs/push/pretrained"))  # doctest: +SKIP
        >>> metrics = algorithm.update(rollouts.collect())  # doctest: +SKIP
    """

    def __init__(self, config: WSRLConfig, policy: FlowPolicy) -> None:
        self.learner = FlowActorCritic(policy, config.learner)
        self.exploring = ExploringActor(policy, self.learner.keep_prefix)
        super().__init__(config, self.exploring)
        self.networks |= self.learner.networks()
        self.optimizers = self.learner.optimizers()
        self.memories = {"replay": self.learner.off_policy.replay}
        self._explore()

    @property
    def demonstrated_reward(self) -> str | None:
        return self.learner.demonstrated_reward

    @property
    def demonstrated_fps(self) -> float | None:
        return self.learner.demonstrated_fps

    def notes(self) -> list[str]:
        return list(self.learner.plan.notes)

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        # experience
        rollout = rollout.to(self.actor.policy.device)
        self.learner.push(rollout)
        self.num_updates += 1

        # gradient steps
        memory = self.learner.off_policy
        warm_up = memory.warming_up
        rounds = memory.rounds_due(rollout.numel())
        metrics = self.learner.learn(rounds, not warm_up, self.on_progress)
        self._explore()
        metrics["informative"] = float(memory.informative)
        return {"replay_size": float(len(memory.replay)), "rounds": float(rounds), **metrics}

    def extra_state(self) -> dict[str, Any]:
        return self.learner.state()

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.learner.load_state(state)
        self._explore()

    def _explore(self) -> None:
        """Set the exploration noise of the current phase."""
        self.exploring.perturb = self._gaussian if self._std() > 0 else None

    def _std(self) -> float:
        """Return the standard deviation of the noise in the current phase."""
        warming_up = self.learner.off_policy.warming_up
        return self.config.warmup_std if warming_up else self.config.exploration_std

    def _gaussian(self, obs: Tensor) -> Tensor:
        """Return noise (N, h * d) [normalized action]."""
        shape = (len(obs), self.learner.chunk_dim)
        return self._std() * torch.randn(shape, device=obs.device)
