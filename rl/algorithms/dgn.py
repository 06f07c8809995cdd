"""DGN: explore in the directions in which the policy differs from the demonstrations.

It is an off-policy actor-critic with demonstrations in its minibatches (RLPD). Its exploration
noise is a Gaussian that is fitted to demonstrated minus own actions
(`pitune.rl.algorithms.dgn_noise`). The losses of policy and critics do not imitate the
demonstrations, which guide the exploration only. As the policy improves, the noise is annealed or
switched off.

Letters: N rows, E envs, T chunk decisions, h executed actions, d robot action dim, D width of a
critic's input.
Source: Dong, Lessing, Chen, Finn 2025. Differs: docs/algorithms/dgn.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy
from pitune.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    Share,
)
from pitune.rl import ranks
from pitune.rl.actor_critic.actor import ExploringActor
from pitune.rl.actor_critic.critic_input import critic_input, encode_rows, executed_chunk
from pitune.rl.actor_critic.learner import ActorCriticConfig, FlowActorCritic
from pitune.rl.algorithm import Algorithm, AlgorithmConfig, Needs
from pitune.rl.algorithms.dgn_noise import DifferenceModel, fit
from pitune.rl.datasets.demonstrations import demonstrations_for
from pitune.rl.experience.demonstrations import check_no_delay
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.experience.transitions import in_parts, normalize_chunk
from pitune.rl.optimizers import adamw
from pitune.rl.registry import register

LEAST_SCALE = 1e-12
"""Least factor of noise that decays exponentially [-]."""


@dataclass(frozen=True, kw_only=True)
class DGNConfig(AlgorithmConfig):
    """An off-policy learner with exploration noise that is fitted to demonstrations.

    The paper's baselines are settings: `noise="equal_size"` or "gaussian" for white noise, and
    `learner.cloning_coefficient` for regularization by cloning.

    Example:
        >>> DGNConfig(noise="gaussian").learner.off_policy.offline_share
        0.5
    """

    learner: ActorCriticConfig = field(
        default_factory=lambda: ActorCriticConfig(
            off_policy=replace(ActorCriticConfig().off_policy, offline_share=0.5)
        )
    )
    """Critics, memory, warm-up, file and share of the demonstrations."""
    noise: Literal["data_guided", "equal_size", "gaussian", "none"] = "data_guided"
    """The fitted Gaussian, white noise of its size at each observation, white noise of
    `exploration_std`, or the starting noise of the flow alone."""
    exploration_std: NonNegativeFloat = 0.1
    """Deviation of the white noise, also after `schedule` switches to it [normalized action]."""
    learn_mean: bool = False
    """Whether to learn the mean of the difference too (the paper's residual), or fix it at 0."""
    shuffle_differences: bool = False
    """Control: whether to fit the differences to randomly permuted observations."""
    hidden: tuple[PositiveInt, ...] = (128, 128)
    """Widths of the noise model's hidden layers."""
    dropout: Annotated[float, Range(low=0, high=1, high_open=True)] = 0.5
    """Dropout rate of the noise model [-]. Each demonstrated state has a single difference, so
    without dropout the covariance soon overfits."""
    noise_learning_rate: PositiveFloat = 3e-4
    """AdamW's step size for the noise model [-]."""
    noise_weight_decay: NonNegativeFloat = 3e-2
    """AdamW's weight decay for the noise model [-]."""
    noise_minibatch_size: PositiveInt = 128
    """Demonstrated chunks per step of the noise model."""
    initial_fit_steps: NonNegativeInt = 1000
    """Steps of the noise model after the first rollout."""
    fit_every: PositiveInt = 1000
    """Decisions between two fits of the noise model to the current policy."""
    fit_steps: NonNegativeInt = 100
    """Steps of each later fit."""
    schedule: Literal["constant", "exponential", "success"] = "exponential"
    """Constant, exponential decay, or white noise while enough episodes succeed."""
    decay_decisions: PositiveInt = 30_000
    """exponential: decisions until the noise has shrunk by a factor e."""
    success_threshold: Share = 0.5
    """success: least success rate of the latest episodes for white noise [-]."""
    success_window: PositiveInt = 100
    """success: number of the latest episodes."""

    def with_demonstrations(self, file: Path) -> DGNConfig:
        return replace(self, learner=self.learner.with_demonstrations(file))

    @property
    def policy_minibatch(self) -> int:
        return self.learner.off_policy.minibatch_size


@register(
    "dgn",
    DGNConfig,
    variants={
        "equal_size": {"noise": "equal_size"},
        "gaussian": {"noise": "gaussian"},
        "none": {"noise": "none"},
        "shuffled": {"shuffle_differences": True},
    },
    off_policy=True,
    reads_demonstrations=True,
    unseen_demonstrations=True,
)
class DGN(Algorithm[DGNConfig]):
    """An actor-critic with demonstrations, and exploration noise towards them.

    Example:
        >>> algorithm = DGN(DGNConfig(), policies.load("runs/push/pretrained"))  # doctest: +SKIP
        >>> metrics = algorithm.update(rollouts.collect())  # doctest: +SKIP
    """

    def __init__(self, config: DGNConfig, policy: FlowPolicy) -> None:
        check_no_delay(policy, "dgn", "take another algorithm, such as ppo or dsrl")
        memory = config.learner.off_policy
        demonstrations = demonstrations_for(policy, memory.demonstrations, memory.data)
        self.learner = FlowActorCritic(policy, config.learner, demonstrations)
        self.exploring = ExploringActor(policy, self.learner.keep_prefix)
        super().__init__(config, self.exploring)

        # noise model
        self.noise_model = DifferenceModel(
            self.learner.input_dim,
            self.learner.chunk_dim,
            config.hidden,
            config.learn_mean,
            config.dropout,
        ).to(policy.device)
        self.networks |= {**self.learner.networks(), "noise_model": self.noise_model}
        self.noise_optimizer = adamw(
            self.noise_model.parameters(),
            lr=config.noise_learning_rate,
            weight_decay=config.noise_weight_decay,
        )
        self.optimizers = {**self.learner.optimizers(), "noise_model": self.noise_optimizer}
        self.memories = {"replay": self.learner.off_policy.replay}

        self.needs = Needs(success_signal=config.schedule == "success")

        # state of the schedules
        self.since_fit, self.num_fits = 0, 0
        self.outcomes: list[float] = []

    @property
    def demonstrated_reward(self) -> str | None:
        return self.learner.demonstrated_reward

    @property
    def demonstrated_fps(self) -> float | None:
        return self.learner.demonstrated_fps

    @cached_property
    def demonstrated(self) -> TensorDict:
        """Demonstrated observations (N) with their executed chunks."""
        return self.learner.rows.demonstrated(self.actor.policy.sampler.execution_horizon)

    def notes(self) -> list[str]:
        return list(self.learner.plan.notes)

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        # experience
        rollout = rollout.to(self.actor.policy.device)
        self.learner.push(rollout)
        self.num_updates += 1
        self._count_successes(rollout)

        # gradient steps
        memory = self.learner.off_policy
        warm_up = memory.warming_up
        rounds = memory.rounds_due(rollout.numel())
        metrics = self.learner.learn(rounds, not warm_up, self.on_progress)

        # exploration noise
        metrics |= self._refit(rollout.numel()) | {"noise_scale": self.noise_scale()}
        metrics["informative"] = float(memory.informative)
        self._explore()
        return {"replay_size": float(len(memory.replay)), "rounds": float(rounds), **metrics}

    @torch.no_grad()
    def differences(self) -> tuple[Tensor, Tensor]:
        """Return critic inputs (N, D) of demonstrated observations, and differences (N, h * d).

        A difference is the demonstrated minus the policy's executed chunk [normalized action]. The
        policy's chunk starts from zero noise, because drawn noise would add the policy's spread.
        """
        policy = self.actor.policy

        def difference(rows: TensorDictBase) -> TensorDict:
            context = encode_rows(policy, rows)
            zeros = torch.zeros(len(rows), *policy.chunk_shape, device=policy.device)
            chunk = executed_chunk(policy, context, zeros)  # (N, h * d)
            tensors = {"critic_input": critic_input(policy, rows, context)}
            tensors["difference"] = normalize_chunk(policy, rows) - chunk
            return TensorDict(tensors, batch_size=[len(rows)])

        table = in_parts(self.demonstrated, difference)
        return table["critic_input"], table["difference"]

    def noise_scale(self) -> float:
        """Return the schedule's factor of the fitted noise, or 0 for white noise."""
        config = self.config
        if config.schedule == "exponential":
            age = self.learner.off_policy.num_decisions / config.decay_decisions
            return max(math.exp(-age), LEAST_SCALE)  # 0 would mean white noise
        if config.schedule == "success" and len(self.outcomes) >= config.success_window:
            rate = sum(self.outcomes) / len(self.outcomes)
            return 0.0 if rate >= config.success_threshold else 1.0
        return 1.0

    def perturbation(self, obs: Tensor) -> Tensor:
        """Return exploration noise (N, h * d) [normalized action] for observations (N, D)."""
        config, scale = self.config, self.noise_scale()
        if config.noise == "gaussian" or scale == 0:
            shape = (len(obs), self.learner.chunk_dim)
            std = config.exploration_std * (scale or 1.0)
            return std * torch.randn(shape, device=obs.device)
        if config.noise == "equal_size":
            return scale * self.noise_model.sample(obs, "equal_size")
        return scale * self.noise_model.sample(obs)

    def extra_state(self) -> dict[str, Any]:
        counts = {"since_fit": self.since_fit, "num_fits": self.num_fits}
        return {"learner": self.learner.state(), "outcomes": list(self.outcomes), **counts}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.learner.load_state(state["learner"])
        self.since_fit, self.num_fits = state["since_fit"], state["num_fits"]
        self.outcomes = list(state["outcomes"])
        self._explore()

    def _refit(self, num_decisions: int) -> dict[str, float]:
        """Fit the noise model to the current policy if a fit is due, and return its metrics."""
        # due?
        config, first = self.config, self.num_fits == 0
        self.since_fit += ranks.total(num_decisions)
        if not first and self.since_fit < config.fit_every:
            return {}
        self.since_fit, self.num_fits = 0, self.num_fits + 1

        # data
        obs, difference = self.differences()
        fitted = difference
        if config.shuffle_differences:
            order = torch.randperm(len(difference), device=difference.device)
            fitted = difference[ranks.of_first(order)]

        # fit
        steps = config.initial_fit_steps if first else config.fit_steps
        loss = fit(
            self.noise_model,
            self.noise_optimizer,
            obs,
            fitted,
            steps,
            config.noise_minibatch_size,
            config.learner.off_policy.num_parts,
            self.on_progress,
        )
        std = self.noise_model.sample(obs).square().mean().sqrt()
        return {
            "noise_loss": loss,
            "noise_std": float(std),
            "difference": float(difference.square().mean().sqrt()),
        }

    def _count_successes(self, rollout: TensorDictBase) -> None:
        """Record the outcomes of the latest episodes of all ranks that ended in a rollout."""
        outcome = sub_dict(rollout, "next")
        if "success" not in outcome.keys():
            return
        # (ranks * E, T), then in order of time
        counted = ranks.joined(outcome["done"] & ~outcome["invalid"]).squeeze(-1)
        success = ranks.joined(outcome["success"]).squeeze(-1).T[counted.T]
        self.outcomes = [*self.outcomes, *success.float().tolist()][-self.config.success_window :]

    def _explore(self) -> None:
        """Add the noise to the actions, after its first fit."""
        if self.num_fits and self.config.noise != "none":
            self.exploring.perturb = self.perturbation
