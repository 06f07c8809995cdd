"""The decision delay of a robot: steps that it executes before a new chunk arrives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pitune.ranges import NonNegativeInt, Settings

Seam = Literal["plain", "ensemble", "real_time"]


@dataclass(frozen=True, kw_only=True)
class DelayConfig(Settings):
    """Decision delay of a robot, and its answer to it.

    Raises:
        ValueError: a setting is unknown or out of range.

    Example:
        >>> DelayConfig(steps=2, seam="real_time").highest
        2
    """

    steps: NonNegativeInt = 0
    """Control steps from an observation to the arrival of its chunk, or the least of them."""
    max_steps: NonNegativeInt | None = None
    """Most control steps, for delays that are drawn anew at each decision."""
    seam: Seam = "plain"
    """Passage from the old chunk to the new one: "plain" changes at once, "ensemble" averages all
    predictions of a step (ACT), "real_time" continues the old chunk as `sampler.real_time` sets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps is not None and self.max_steps < self.steps:
            raise ValueError(f"max_steps={self.max_steps} must be at least steps={self.steps}")

    @property
    def highest(self) -> int:
        """The longest delay [control steps]."""
        return self.steps if self.max_steps is None else self.max_steps

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Return the delays of decisions (num,) int64 [control steps]."""
        return torch.randint(self.steps, self.highest + 1, (num,), generator=generator)

    def __str__(self) -> str:
        steps = f"{self.steps}" if self.max_steps is None else f"{self.steps} to {self.max_steps}"
        return f"{steps} steps ({self.seam})"
