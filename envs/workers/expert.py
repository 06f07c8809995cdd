"""The experts of sub-environments.

Letters: E envs, d robot action dim.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pitune.envs.workers.pool import WorkerPool


class WorkerExpert:
    """The `expert_action` of all sub-environments.

    Example:
        >>> import gymnasium
        >>> class Coasting(gymnasium.Wrapper):
        ...     def expert_action(self):
        ...         return np.zeros(1, np.float32)
        >>> def factory():
        ...     return Coasting(gymnasium.make("Pendulum-v1"))
        >>> pool = WorkerPool(factory, "pendulum", num_envs=2, num_workers=0)
        >>> WorkerExpert(pool).act().shape  # (E, d)
        torch.Size([2, 1])

    Args:
        pool: The sub-environments to act in.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    def act(self) -> Tensor:
        """Return the expert's action (E, d) [robot units], zeros before the first reset."""
        action = np.concatenate(self._pool.call_all("expert"))
        return torch.from_numpy(action)
