"""Critics that predict a distribution over bins of the value, and learn it by cross-entropy.

A critic of this kind has one logit per bin. Its value is the mean of the bins' centers. The target
is a distribution too: a Gaussian histogram around the value target (HL-Gauss), or the weights of
the nearest bins. The mean of a two-hot target is the value target exactly. The other two round it.

Letters: N rows.
Sources: Farebrother et al. 2024 (HL-Gauss), Bellemare et al. 2017 (two-hot projection), Physical
Intelligence 2025 (π*0.6, the nearest of 201 bins).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pitune.ranges import Finite, PositiveFloat, Range, Settings

Form = Literal["none", "hl_gauss", "two_hot", "nearest"]


@dataclass(frozen=True, kw_only=True)
class DistributionConfig(Settings):
    """Bins of a critic's values, and the form of its targets.

    Raises:
        ValueError: `low` is not below `high`.

    Example:
        >>> DistributionConfig(form="nearest", num_bins=3, low=-1, high=0).centers().tolist()
        [-1.0, -0.5, 0.0]
    """

    form: Form = "none"
    """Targets of a categorical critic: "hl_gauss" a Gaussian over the bins, "two_hot" the two
    nearest bins, "nearest" one bin. "none" is a critic of one number with a squared error."""
    num_bins: Annotated[int, Range(low=2, high=10_000)] = 101
    """Bins, whose centers go from `low` to `high` at equal distances."""
    low: Finite = -1.0
    """Center of the lowest bin [reward]. Lower targets count as this."""
    high: Finite = 1.0
    """Center of the highest bin [reward]. Higher targets count as this."""
    smoothing: PositiveFloat = 0.75
    """Standard deviation of "hl_gauss" [bin widths]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise ValueError(
                f"low={self.low} must be below high={self.high}; they are the least and the "
                "greatest value of the critic"
            )

    @property
    def used(self) -> bool:
        """Whether the critic is categorical."""
        return self.form != "none"

    @property
    def num_outputs(self) -> int:
        """Outputs of the critic: one per bin, or its value."""
        return self.num_bins if self.used else 1

    @property
    def width(self) -> float:
        """Distance of two centers [reward]."""
        return (self.high - self.low) / (self.num_bins - 1)

    def centers(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the centers of the bins (num_bins,) float32 [reward]."""
        # one division, so that a center such as -0.5 is exact
        step = torch.arange(self.num_bins, dtype=torch.float64)
        exact = self.low + (self.high - self.low) * step / (self.num_bins - 1)
        return exact.float().to(device)

    def value(self, output: Tensor) -> Tensor:
        """Return the values (..., 1) [reward] of a critic's outputs (..., num_outputs)."""
        if not self.used:
            return output
        share = output.float().softmax(-1)  # (..., num_bins)
        return (share * self.centers(output.device)).sum(-1, keepdim=True)

    def target(self, value: Tensor) -> Tensor:
        """Return the target distribution (..., num_bins) of value targets (..., 1) [reward]."""
        # in bin widths from the lowest center (..., 1)
        place = ((value.double() - self.low) / self.width).clamp(0, self.num_bins - 1)
        if self.form == "hl_gauss":
            return self._gaussian(place)
        if self.form == "nearest":
            return one_hot(place.round().long().squeeze(-1), self.num_bins).float()
        # share of each center that is less than a bin's width away
        number = torch.arange(self.num_bins, device=value.device)
        return (1 - (place - number).abs()).clamp(min=0).float()

    def _gaussian(self, place: Tensor) -> Tensor:
        """Return a Gaussian's share of each bin, around places (..., 1) [bins], with sum 1."""
        edges = torch.arange(self.num_bins + 1, device=place.device) - 0.5
        below = torch.erf((edges - place) / (self.smoothing * math.sqrt(2)))  # (..., num_bins + 1)
        # normalized, because the tails beyond both ends are cut off
        share = below.diff(dim=-1)
        return (share / share.sum(-1, keepdim=True)).float()

    def cross_entropy(self, output: Tensor, value: Tensor) -> Tensor:
        """Return the loss (...) of outputs (..., num_bins) for value targets (..., 1) [nats]."""
        return -(self.target(value) * output.float().log_softmax(-1)).sum(-1)

    def clamped(self, value: Tensor) -> Tensor:
        """Return the share of value targets outside of the bins [-], a scalar."""
        half = self.width / 2
        return ((value < self.low - half) | (value > self.high + half)).float().mean()
