"""What every off-policy learner here shares: the memory, the critics, how much is learned when.

A decision is a whole chunk, so a transition is one of a semi-Markov process: its reward is the sum
of its steps' rewards, each discounted by its own time, and what follows is discounted by
discount^duration. Rewards are kept as they came; the transform is applied when they are sampled.

Letters: B rows, N critics.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.rl.actor_critic.q_ensemble import (
    Pessimism,
    QEnsemble,
    follow,
    make_target,
    pessimistic,
    td_target,
)
from pitune.rl.experience.replay import Replay
from pitune.rl.policy_gradient.advantage import TimeLimit, chunk_reward


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig:
    """Replay memory, critics and how much is learned from each decision."""

    capacity: int = 200_000
    """Decisions that the replay memory keeps; the oldest are overwritten."""
    memory_folder: Path | None = None
    """Folder for a memory in files, of which a checkpoint copies all rows through memory; by
    default it is in the memory of the policy's device."""
    minibatch_size: int = 256
    """Decisions per gradient step."""
    warmup_decisions: int = 2000
    """Decisions of the pretrained policy before anything is learned; whole rollouts."""
    warmup_rounds: int = 500
    """Rounds of gradient steps at the end of the warm-up."""
    updates_per_decision: float = 0.25
    """Update-to-data ratio: rounds of gradient steps per decision, counted after the warm-up."""
    num_critics: int = 2
    """N."""
    critic_subset: int = 0
    """How many random critics a target asks (REDQ); 0 asks all."""
    pessimism: Pessimism = "min"
    """What those critics' values are reduced to."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the critics' hidden layers."""
    critic_learning_rate: float = 3e-4
    """Adam's step size for the critics [-]."""
    target_update_rate: float = 0.005
    """Share by which the target critics follow per gradient step [-]."""
    discount: float = 0.99
    """Per environment step, not per chunk [-]."""
    reward_scale: float = 1.0
    """Each step's reward is multiplied by this [-]."""
    reward_offset: float = 0.0
    """And this is added; -1 makes a sparse reward a cost of time [reward]."""
    time_limit: TimeLimit = "bootstrap"
    """Whether the time limit only interrupts the task, or is part of it."""
    demonstrations: Path = Path("demonstrations.safetensors")
    """File that `pitune.experiments.pretrain` wrote; read only by what asks for it."""
    offline_share: float = 0.0
    """Share of each minibatch that is drawn from the demonstrations (RLPD: 0.5) [-]."""

    def __post_init__(self) -> None:
        if self.updates_per_decision <= 0:
            raise ValueError(f"updates_per_decision={self.updates_per_decision} must be above 0")
        if not 0 <= self.offline_share < 1:
            raise ValueError(f"offline_share={self.offline_share} must be at least 0 and below 1")
        if self.offline_share and self.time_limit == "terminal":
            raise ValueError(
                "time_limit='terminal' needs the used time of every decision, which demonstrations "
                "do not record; pass offline_share=0 or time_limit='bootstrap'"
            )
        if not 0 <= self.critic_subset <= self.num_critics:
            raise ValueError(
                f"critic_subset={self.critic_subset} must be between 0 (all) and "
                f"num_critics={self.num_critics}"
            )


def means(history: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the rounds that have it."""
    keys = {key: None for metrics in history for key in metrics}
    return {key: fmean(step[key] for step in history if key in step) for key in keys}


class OffPolicy:
    """Memory and critics of one algorithm, and the count of what has been learned from them.

    Args:
        config: Settings.
        in_dim: Width of what a critic reads besides the used time: observation and action.
        device: Where all of it lives.
    """

    def __init__(self, config: OffPolicyConfig, in_dim: int, device: torch.device) -> None:
        self.config = config
        self.replay = Replay(config.capacity, device, folder=config.memory_folder)
        self.critic = QEnsemble(in_dim + 1, config.num_critics, config.hidden).to(device)
        self.target = make_target(self.critic)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=config.critic_learning_rate)
        self.demonstrations: Replay | None = None
        """A memory of its own, of which `offline_share` of each minibatch is drawn."""
        self.num_warmup = 0
        """Decisions of the warm-up so far."""
        self.num_decisions = 0
        """Decisions after the warm-up."""
        self.num_rounds = 0
        """Rounds of gradient steps that they were answered with."""

    @property
    def warming_up(self) -> bool:
        """Whether the decisions to come belong to the warm-up."""
        return self.num_warmup < self.config.warmup_decisions

    def rounds_due(self, num_decisions: int) -> int:
        """Return how many rounds further decisions call for.

        None while warming up, `warmup_rounds` at its end; then by the update-to-data ratio, with
        fractions carried over.
        """
        if self.warming_up:
            self.num_warmup += num_decisions
            return 0 if self.warming_up else self.config.warmup_rounds
        self.num_decisions += num_decisions
        due = int(self.config.updates_per_decision * self.num_decisions) - self.num_rounds
        self.num_rounds += due
        return due

    def sample(self) -> TensorDictBase:
        """Return rows (B) with `reward`, `discount` and `ended` (B)."""
        config, batch = self.config, self._mixed()
        reward = config.reward_scale * batch["reward_steps"] + config.reward_offset
        batch["reward"] = chunk_reward(reward, batch["live"], config.discount).squeeze(-1)
        batch["discount"] = config.discount ** batch["duration"].squeeze(-1).float()
        ended = batch["terminated"]
        if config.time_limit == "terminal":
            ended = ended | batch["truncated"]
        batch["ended"] = ended.squeeze(-1)
        return batch

    def _mixed(self) -> TensorDictBase:
        """Return rows (B) of the memory, and of the demonstrations' if there are any."""
        size = self.config.minibatch_size
        if self.demonstrations is None:
            return self.replay.sample(size)
        num = round(self.config.offline_share * size)
        parts = (self.replay.sample(size - num), self.demonstrations.sample(num))
        mixed: TensorDictBase = torch.cat(parts)  # type: ignore[arg-type, assignment]
        return mixed

    def time(self, rows: TensorDictBase) -> Tensor:
        """Return the used share of the episode's time (B, 1), or 0 where it does not matter.

        When values go on past the time limit they must not depend on the time: at the limit
        itself no decision is ever taken, so a critic would guess there.
        """
        return rows["elapsed"] * (self.config.time_limit == "terminal")

    def next_value(self, batch: TensorDictBase, *inputs: Tensor) -> Tensor:
        """Return the target critics' value (B) of the next observation and an action for it."""
        values = self.target(*inputs, self.time(batch["next"]))
        return pessimistic(values, self.config.pessimism, self.config.critic_subset)

    def value(self, batch: TensorDictBase, *inputs: Tensor) -> Tensor:
        """Return the critics' value (B) of an observation and an action, with all members."""
        return pessimistic(self.critic(*inputs, self.time(batch)), self.config.pessimism)

    def critic_step(
        self, batch: TensorDictBase, next_value: Tensor, *inputs: Tensor
    ) -> dict[str, float]:
        """Take a gradient step towards the TD targets, move the target critics; return metrics.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        target = td_target(batch["reward"], batch["discount"], batch["ended"], next_value.detach())
        values = self.critic(*inputs, self.time(batch))
        loss = (values - target).square().mean(1).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the critics' loss is {loss.item()} after {self.num_rounds} rounds; lower "
                "critic_learning_rate or reward_scale, or resume from the last checkpoint"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        follow(self.target, self.critic, self.config.target_update_rate)
        return {
            "q_loss": float(loss.detach()),
            "q": float(values.detach().mean()),
            "q_disagreement": float(values.detach().std(0, correction=0).mean()),
            "td_target": float(target.mean()),
        }

    def state(self) -> dict[str, Any]:
        """Return what resuming needs besides the networks and optimizers."""
        return {
            "replay": self.replay.state(),
            "num_warmup": self.num_warmup,
            "num_decisions": self.num_decisions,
            "num_rounds": self.num_rounds,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.replay.load_state(state["replay"])
        self.num_warmup = state["num_warmup"]
        self.num_decisions, self.num_rounds = state["num_decisions"], state["num_rounds"]
