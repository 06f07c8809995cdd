"""The results of several sub-environments.

Letters: N rows, C, Y, X image channels and pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from pitune.envs.workers.observation import Arrays, empty_obs


@dataclass
class Rows:
    """The results of N rows. In a row of `failed` all other fields are meaningless.

    Example:
        >>> rows = Rows.empty(state_dim=3, cameras={}, num_rows=2)
        >>> rows.obs["state"].shape, rows.reward.tolist(), rows.failed
        ((2, 3), [0.0, 0.0], {})
    """

    obs: Arrays
    drawn: np.ndarray
    """Whether `obs` has pictures of the present state (N,) bool. Others are meaningless."""
    reward: np.ndarray
    """(N,) float32."""
    terminated: np.ndarray
    """(N,) bool."""
    truncated: np.ndarray
    """(N,) bool."""
    success: np.ndarray
    """(N,) bool."""
    failed: dict[int, str]
    """Position within the N rows -> traceback of the sub-environment that broke down."""
    words: dict[int, str]
    """Position within the N rows -> instruction of the episode that begins, where it has one."""

    reports_success: bool = False
    """Whether any `info` reported success, be it True or False."""

    @classmethod
    def empty(
        cls, state_dim: int, cameras: Mapping[str, tuple[int, int, int]], num_rows: int
    ) -> Rows:
        """Return N rows of zeros."""
        drawn, terminated, truncated, success = np.zeros((4, num_rows), bool)
        obs = empty_obs(state_dim, cameras, num_rows)
        reward = np.zeros(num_rows, np.float32)
        return cls(obs, drawn, reward, terminated, truncated, success, failed={}, words={})

    def without_pictures(self) -> Rows:
        """Return the same rows without pictures, which need not travel between processes."""
        obs = {key: value for key, value in self.obs.items() if not key.startswith("image/")}
        return replace(self, obs=obs)
