"""RECAP: a policy that is conditioned on the advantage of its data."""

from pitune.rl.algorithms.recap.config import RecapConfig
from pitune.rl.algorithms.recap.learner import Recap

__all__ = ["Recap", "RecapConfig"]
