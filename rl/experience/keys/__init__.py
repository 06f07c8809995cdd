"""Every key of rollouts, batches and replay rows, declared once."""

from pitune.rl.experience.keys.declaration import Key, Place, declare
from pitune.rl.experience.keys.table import KEYS, declared, select_decisions

__all__ = ["KEYS", "Key", "Place", "declare", "declared", "select_decisions"]
