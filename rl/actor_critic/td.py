"""The shared part of the off-policy learners: memory, critics and the schedule of updates.

A decision is a whole chunk, so the transitions belong to a semi-Markov process. The reward of a
transition is the discounted sum of its steps' rewards, and the next value is discounted by
discount^duration. The memory stores raw rewards, which are scaled when they are sampled.

Letters: B minibatch rows, Q critics, D width of a critic's input.
"""

from __future__ import annotations

import math
from functools import partial
from statistics import fmean
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.rl import ranks
from pitune.rl.actor_critic.off_policy_config import OffPolicyConfig
from pitune.rl.actor_critic.q_ensemble import (
    QEnsemble,
    make_target,
    polyak_update,
    reduce_ensemble,
    td_target,
)
from pitune.rl.experience.replay import Replay
from pitune.rl.experience.reward_record import RewardRecord
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.gradient_step import Metrics, gradient_step, to_floats
from pitune.rl.optimizers import adam
from pitune.rl.policy_gradient.advantage import chunk_reward


def means(history: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the rounds with that metric."""
    keys = {key: None for metrics in history for key in metrics}
    return {key: fmean(step[key] for step in history if key in step) for key in keys}


def regression_loss(critic: QEnsemble, batch: TensorDictBase) -> tuple[Tensor, Metrics]:
    """Return the squared error or cross-entropy, summed over the critics, and metrics.

    Args:
        critic: Q critics.
        batch: Rows with `input` (B, D) and `target` (B).
    """
    bins, target, extra = critic.distribution, batch["target"], {}
    if bins.used:
        output = critic.output(batch["input"])  # (Q, B, num_bins)
        values = bins.value(output).squeeze(-1)  # (Q, B)
        loss = bins.cross_entropy(output, target[:, None]).mean(1).sum()
        extra["value_clamped"] = bins.clamped(target)
    else:
        values = critic(batch["input"])  # (Q, B)
        loss = (values - target).square().mean(1).sum()
    return loss, {
        **extra,
        "q_loss": loss,
        "q": values.mean(),
        "q_disagreement": values.std(0, correction=0).mean(),
        "td_target": target.mean(),
        # per row, see `explained_share`
        "target": target,
        "error": target - values.mean(0),
    }


def explained_share(metrics: Metrics) -> Metrics:
    """Return the share of the targets' variance that the critics' mean explains.

    It is nan for equal targets.

    Args:
        metrics: Those of `regression_loss` for a whole batch.
    """
    variance, rest = (metrics[key].var(correction=0) for key in ("target", "error"))
    share = (1 - rest / variance).masked_fill(variance < 1e-12, math.nan)
    return {"explained_variance": share}


class OffPolicy:
    """Memory and critics of one algorithm, and the count of its gradient rounds.

    Args:
        config: Settings.
        in_dim: Width of observation and action, a critic's input without the used time.
        device: Device of memory and critics.
        capacity: Decisions in the memory, that of the settings by default.

    Example:
        >>> OffPolicy(OffPolicyConfig(), in_dim=8, device=torch.device("cpu")).warming_up
        True
    """

    def __init__(
        self,
        config: OffPolicyConfig,
        in_dim: int,
        device: torch.device,
        capacity: int | None = None,
    ) -> None:
        self.config = config
        capacity = config.capacity if capacity is None else capacity
        self.replay = Replay(capacity, device, folder=config.memory_folder)
        shape = in_dim + 1, config.num_critics, config.hidden
        self.critic = QEnsemble(*shape, config.critic_distribution).to(device)
        self.target = make_target(self.critic)
        self.optimizer = adam(self.critic.parameters(), lr=config.critic_learning_rate)
        self.demonstrations: Replay | None = None
        """Memory of the demonstrations, the source of `offline_share` of each minibatch."""
        self.rewards = RewardRecord()
        """Rewards of all decisions so far, and of the demonstrations."""
        self.num_warmup = 0
        """Decisions in the warm-up so far."""
        self.num_decisions = 0
        """Decisions after the warm-up."""
        self.num_rounds = 0
        """Gradient rounds run since the warm-up."""

    @property
    def warming_up(self) -> bool:
        """Whether the next decisions belong to the warm-up."""
        return self.num_warmup < self.config.warmup_decisions

    @property
    def informative(self) -> bool:
        """Whether the rewards so far can tell actions apart.

        Otherwise the values are the critics' errors, and the policy must not follow them.
        """
        return self.rewards.informative(self.config.reward_scale, self.config.reward_offset)

    def push(self, rows: TensorDictBase) -> None:
        """Keep decisions (B) in the memory."""
        self.rewards.add_rows(rows)
        self.replay.push(rows)

    def rounds_due(self, num_decisions: int) -> int:
        """Return the number of rounds that are due after further decisions of this rank.

        Those of all ranks count. It is 0 in the warm-up and `warmup_rounds` at its end. Afterwards
        it follows the update-to-data ratio, and fractions are carried over.
        """
        num_decisions = ranks.total(num_decisions)
        if self.warming_up:
            self.num_warmup += num_decisions
            return 0 if self.warming_up else self.config.warmup_rounds
        self.num_decisions += num_decisions
        due = int(self.config.updates_per_decision * self.num_decisions) - self.num_rounds
        self.num_rounds += due
        return due

    def sample(self) -> TensorDictBase:
        """Return rows (B) with `discounted_reward`, `discount` and `ended` (B)."""
        # discounted reward of the chunk
        config, batch = self.config, self._sample_rows()
        reward_steps = config.reward_scale * batch["reward_steps"] + config.reward_offset
        reward = chunk_reward(reward_steps, batch["live"], config.discount)  # (B, 1)
        batch["discounted_reward"] = reward.squeeze(-1)

        # discount and end of the next value
        batch["discount"] = config.discount ** batch["duration"].squeeze(-1).float()
        ended = batch["terminated"]
        if config.time_limit == "terminal":
            ended = ended | batch["truncated"]
        batch["ended"] = ended.squeeze(-1)
        return batch

    def _sample_rows(self) -> TensorDictBase:
        """Return this rank's share of rows (B) of its memory and, if any, of the demonstrations."""
        size = ranks.share(self.config.minibatch_size)
        if self.demonstrations is None:
            return self.replay.sample(size)
        num = round(self.config.offline_share * size)
        parts = (self.replay.sample(size - num), self.demonstrations.sample(num))
        rows: TensorDictBase = TensorDict.cat(parts)
        return rows

    def store_demonstrations(self, rows: TensorDictBase) -> None:
        """Keep demonstrations (N), rows like those of the memory, in a memory of their own."""
        self.rewards.add_rows(rows)
        self.demonstrations = Replay(len(rows), self.replay.device)
        self.demonstrations.push(rows)

    def time(self, rows: TensorDictBase) -> Tensor:
        """Return the used share of the episode's time (B, 1), or 0 with `time_limit="bootstrap"`.

        Values that continue past the time limit must not depend on the time. No decision is taken
        at the limit itself, so the critics have no data there.
        """
        return rows["elapsed"] * (self.config.time_limit == "terminal")

    def next_value(self, batch: TensorDictBase, *inputs: Tensor) -> Tensor:
        """Return the target critics' values (B) of the next observations and actions."""
        values = self.target(*inputs, self.time(sub_dict(batch, "next")))
        return reduce_ensemble(values, self.config.pessimism, self.config.critic_subset)

    def value(self, batch: TensorDictBase, *inputs: Tensor) -> Tensor:
        """Return the values (B) of observations and actions, reduced over all critics."""
        return reduce_ensemble(self.critic(*inputs, self.time(batch)), self.config.pessimism)

    def critic_step(
        self, batch: TensorDictBase, next_value: Tensor, *inputs: Tensor
    ) -> dict[str, float]:
        """Take a gradient step towards the TD targets and update the target critics.

        Args:
            batch: Rows (B) from `sample`.
            next_value: Values of the next observations (B).
            *inputs: Observations and actions (B, ...), which are joined along the last axis.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        # targets
        target = td_target(
            batch["discounted_reward"], batch["discount"], batch["ended"], next_value.detach()
        )
        joined = torch.cat([*inputs, self.time(batch)], dim=-1)  # (B, D)

        # gradient step of the critics, followed by their targets
        metrics, _ = gradient_step(
            self.optimizer,
            partial(regression_loss, self.critic),
            TensorDict({"input": joined, "target": target}, batch_size=[len(batch)]),
            name="critic",
            step=f"round {self.num_rounds}",
            num_parts=self.config.num_parts,
            summarize=explained_share,
        )
        polyak_update(self.target, self.critic, self.config.target_update_rate)
        return to_floats(metrics)

    def state(self) -> dict[str, Any]:
        """Return the state for resuming, without networks, optimizers and the memory."""
        return {
            "rewards": self.rewards.state(),
            "num_warmup": self.num_warmup,
            "num_decisions": self.num_decisions,
            "num_rounds": self.num_rounds,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `state`."""
        if "replay" in state:  # a run of pitune 0.4 and before
            self.replay.load_state(state["replay"])
        if "rewards" in state:
            self.rewards.load_state(state["rewards"])
        elif len(self.replay):  # a run of pitune 0.2
            self.rewards.add_rows(self.replay.all())
        self.num_warmup = state["num_warmup"]
        self.num_decisions, self.num_rounds = state["num_decisions"], state["num_rounds"]
