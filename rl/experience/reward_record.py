"""Whether rewards depend on actions, as far as the rewards of a run show it.

A policy whose episodes all have the same rewards and the same length has nothing to learn from
them. The differences of a critic are then its own errors. Scaled to 1, they would move the policy.
Letters: E envs, T chunk decisions, B rows, h executed actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
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
        self._add((outcome["reward_steps"], live), (outcome["elapsed"], ended[..., None]))

    def add_rows(self, rows: TensorDictBase) -> None:
        """Record the rows (B) of a replay memory."""
        ended = (rows["terminated"] | rows["truncated"]).squeeze(-1)  # (B,)
        elapsed = rows["next", "elapsed"]
        self._add((rows["reward_steps"], rows["live"]), (elapsed, ended[..., None]))

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

    def _add(self, reward: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> None:
        """Record rewards of steps and times of ends, each with a mask of those that count."""
        # infinite where nothing counts
        bounds = [bound for value in (reward, end) for bound in _bounds(*value)]
        low, high, end_low, end_high = torch.stack(bounds).tolist()
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.end_low, self.end_high = min(self.end_low, end_low), max(self.end_high, end_high)
        self.low, self.high = ranks.least(self.low), ranks.greatest(self.high)
        self.end_low, self.end_high = ranks.least(self.end_low), ranks.greatest(self.end_high)


def _bounds(value: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest of the values that count, of equal shapes, in double."""
    infinite = torch.full((), math.inf, dtype=torch.float64, device=value.device)
    value = value.double()
    low = torch.where(counts, value, infinite).amin() if value.numel() else infinite
    high = torch.where(counts, value, -infinite).amax() if value.numel() else -infinite
    return low, high


def _differ(low: float, high: float) -> bool:
    """Return whether the ends of a range differ by more than rounding."""
    return high - low > ROUNDING * max(abs(low), abs(high))
