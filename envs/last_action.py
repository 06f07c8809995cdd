"""The last executed action of each environment, for critics that read it.

Letters: E envs, d robot action dim.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LastAction:
    """Remembers the last executed action of every running episode.

    Args:
        num_envs: E.
        action_dim: d.
        device: Device of the actions.
        recorded: Whether it is an entry of the observations.

    Example:
        >>> last = LastAction(2, 1, torch.device("cpu"), recorded=True)
        >>> last.add(torch.ones(2, 1), torch.tensor([True, False]))
        >>> last.entries()["has_acted"].tolist()
        [True, False]
    """

    def __init__(
        self, num_envs: int, action_dim: int, device: torch.device | None, recorded: bool
    ) -> None:
        self.recorded = recorded
        self._action = torch.zeros(num_envs, action_dim, device=device)
        self._has_acted = torch.zeros(num_envs, dtype=torch.bool, device=device)

    def start(self, env_idx: Tensor) -> None:
        """Begin new episodes in some environments."""
        self._has_acted = self._has_acted.index_fill(0, env_idx, False)

    def add(self, action: Tensor, active: Tensor) -> None:
        """Remember actions (E, d) [robot units] of the environments that are active (E,)."""
        if self.recorded:
            self._action = torch.where(active[:, None], action.to(self._action), self._action)
            self._has_acted = self._has_acted | active

    def entries(self) -> dict[str, Tensor]:
        """Return `last_action` (E, d) and `has_acted` (E,), nothing if they are not recorded."""
        if not self.recorded:
            return {}
        return {"last_action": self._action, "has_acted": self._has_acted}
