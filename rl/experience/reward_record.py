"""Whether rewards depend on actions, as far as the rewards of a run show it.

A policy whose episodes all have the same rewards and the same length has nothing to learn from
them. The differences of a critic are then its own errors. Scaled to 1, they would move the policy.
Letters: E envs, T chunk decisions, B rows, h executed actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from tensordict import TensorDictBase
from torch import Tensor

from pitune.rl import ranks
from pitune.rl.experience.sub_dict import sub_dict

ROUNDING = 1e-6
"""Differences of rewards below this share of their size are rounding [-]."""


@dataclass(kw_only=True)
class RewardRecord:
    """The range of the rewards of all ranks so far, and of the times at which episodes ended.

    Example:
        >>> record = RewardRecord()
        >>> record.low, record.high, record.end_low, record.end_high = 0.0, 0.0, 0.3, 1.0
        >>> record.informative(), record.informative(offset=-1.0)
        (False, True)
    """

    low: float = math.inf
    """Least reward of a step [reward]."""
    high: float = -math.inf
    """Greatest reward of a step [reward]."""
    end_low: float = math.inf
    """Earliest end of an episode [share of its longest time]."""
    end_high: float = -math.inf
    """Latest end of an episode [share of its longest time]."""

    def add_rollout(self, rollout: TensorDictBase) -> None:
        """Record the valid decisions of a rollout (E, T)."""
        outcome = sub_dict(rollout, "next")
        valid = ~outcome["invalid"].squeeze(-1)  # (E, T)
        ended = outcome["done"].squeeze(-1) & valid
        live = outcome["live"] & valid[..., None]  # (E, T, h)
        self._add(outcome["reward_steps"][live], outcome["elapsed"][ended])

    def add_rows(self, rows: TensorDictBase) -> None:
        """Record the rows (B) of a replay memory."""
        ended = (rows["terminated"] | rows["truncated"]).squeeze(-1)  # (B,)
        self._add(rows["reward_steps"][rows["live"]], rows["next", "elapsed"][ended])

    def informative(self, scale: float = 1.0, offset: float = 0.0) -> bool:
        """Return whether the rewards, scaled and shifted, can tell actions apart.

        Equal rewards other than 0 can, if episodes differ in length.
        """
        if self.low > self.high:  # none so far
            return False
        if _differ(self.low, self.high):
            return True
        return scale * self.high + offset != 0 and _differ(self.end_low, self.end_high)

    def state(self) -> dict[str, float]:
        """Return the state for resuming."""
        return asdict(self)

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore the result of `state`."""
        for name, value in state.items():
            setattr(self, name, value)

    def _add(self, reward: Tensor, end: Tensor) -> None:
        """Record rewards of steps and times of ends, of any shapes."""
        if reward.numel():
            self.low = min(self.low, float(reward.min()))
            self.high = max(self.high, float(reward.max()))
        if end.numel():
            self.end_low = min(self.end_low, float(end.min()))
            self.end_high = max(self.end_high, float(end.max()))
        self.low, self.high = ranks.least(self.low), ranks.greatest(self.high)
        self.end_low, self.end_high = ranks.least(self.end_low), ranks.greatest(self.end_high)


def _differ(low: float, high: float) -> bool:
    """Return whether the ends of a range differ by more than rounding."""
    return high - low > ROUNDING * max(abs(low), abs(high))
