"""The temperature of soft actor-critic."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Temperature(nn.Module):
    """The weight of the entropy, which rises while the entropy is below its target.

    Args:
        initial: Weight at the start [reward per nat].

    Example:
        >>> round(float(Temperature(0.5)()), 3)
        0.5
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self) -> Tensor:
        return self.log.exp()
