"""Whether the advantages of a rollout carry information, or are a critic's errors alone.

Standardization gives any advantages the same size, and Adam any gradient the same step. Advantages
without information would therefore move the policy as fast as others, in a random direction.
Letters: E envs, T chunk decisions.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from pitune.rl import ranks
from pitune.rl.experience.reward_record import RewardRecord

LEAST_SHARE = 0.1
"""Least spread of a critic's advantages without rewards, relative to those with rewards [-]."""


class Information:
    """Decides whether the policy learns from a rollout.

    It does if the rollout's rewards differ, or if they are equal but make a difference by the
    episodes' lengths. A critic that learned from such rollouts may then judge others, whose rewards
    are equal, while its advantages stay as large as `LEAST_SHARE` of the last informative ones.

    Attributes:
        std: Standard deviation of the last informative advantages [reward], 0 before any.

    Example:
        >>> information = Information()
        >>> information.of(rollout, rollout["advantage"])  # doctest: +SKIP
        True
    """

    def __init__(self) -> None:
        self.std = 0.0

    def of(self, rollout: TensorDictBase, advantage: Tensor) -> bool:
        """Return whether advantages carry information.

        Args:
            rollout: Decisions (E, T).
            advantage: Advantages of the valid ones, before they are standardized [reward].
        """
        if not ranks.least(advantage.numel()):
            return False
        std = float(ranks.std(advantage, correction=0))
        record = RewardRecord()
        record.add_rollout(rollout)
        if record.informative():
            self.std = std
            return True
        return self.std > 0 and std >= LEAST_SHARE * self.std
