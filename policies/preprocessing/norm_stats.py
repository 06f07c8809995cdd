"""Norm statistics of states and actions over the demonstrations.

A policy with other statistics than in training fails silently. The statistics are therefore part of
the policy: stored with it, never recomputed on load, and never trained.
Letters: N rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

NAMES = ("mean", "std", "q01", "q99")
"""The statistics of one quantity."""
PADDING = 1e-6
"""Largest distance of a padded dimension's statistics from those of a constant [robot units]."""


@dataclass(frozen=True, kw_only=True)
class NormStats:
    """Statistics of one quantity over the demonstrations, per dimension [robot units].

    Raises:
        ValueError: a number is not finite, a standard deviation is negative, a quantile is above
            the other, one of the two is missing, or the numbers of dimensions differ.

    Example:
        >>> NormStats.of(torch.tensor([[0.0], [2.0]])).mean
        (1.0,)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...] | None = None
    """1 % quantile. None if the quantiles were never computed."""
    q99: tuple[float, ...] | None = None
    """99 % quantile."""

    def __post_init__(self) -> None:
        problem = problem_of(asdict(self))
        if problem:
            raise ValueError(f"norm stats: {problem}")

    @classmethod
    def of(cls, values: Tensor) -> NormStats:
        """Compute the statistics of samples (N, dimensions)."""
        values = values.double()
        quantiles = torch.quantile(values, values.new_tensor([0.01, 0.99]), dim=0)
        return cls(
            mean=tuple(values.mean(0).tolist()),
            std=tuple(values.std(0, correction=0).tolist()),
            q01=tuple(quantiles[0].tolist()),
            q99=tuple(quantiles[1].tolist()),
        )

    @classmethod
    def identity(cls, dim: int) -> NormStats:
        """Return statistics under which z-scoring does not change `dim` dimensions."""
        return cls(mean=(0.0,) * dim, std=(1.0,) * dim, q01=(-1.0,) * dim, q99=(1.0,) * dim)

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float] | None]) -> NormStats:
        """Rebuild the statistics from `dataclasses.asdict`, also after passing through JSON."""
        return cls(**{name: tuple(row) for name, row in values.items() if row is not None})

    @classmethod
    def without_quantiles(cls, mean: tuple[float, ...], std: tuple[float, ...]) -> NormStats:
        """Return statistics from a source without quantiles.

        Quantile normalization rejects them.
        """
        return cls(mean=mean, std=std)

    def as_dict(self) -> dict[str, tuple[float, ...]]:
        """Return the statistics that were computed, by name."""
        computed = {"mean": self.mean, "std": self.std}
        return computed | dict(zip(("q01", "q99"), self.quantiles or (), strict=False))

    @property
    def quantiles(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """`q01` and `q99`, or None if they were never computed."""
        if self.q01 is None or self.q99 is None or not self.has_quantiles:
            return None
        return self.q01, self.q99

    @property
    def has_quantiles(self) -> bool:
        """Whether the quantiles were computed.

        Files of other programs fill them with zeros or with the mean. Such quantiles have no range
        in any dimension, although some standard deviation is above zero.
        """
        if self.q01 is None or self.q99 is None:
            return False
        return self.q01 != self.q99 or not any(self.std)

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.mean)

    def check_spread(self, name: str, quantiles: bool) -> None:
        """Reject statistics by which nothing can be divided.

        Args:
            name: Name of the quantity, for the message.
            quantiles: Whether the quantiles are the scale, or the standard deviation is.

        Raises:
            ValueError: a dimension has no spread.
        """
        low, high = self.quantiles or (self.mean, self.mean)
        ranges = [b - a for a, b in zip(low, high, strict=True)]
        if zero := [i for i, spread in enumerate(ranges if quantiles else self.std) if not spread]:
            raise ValueError(
                f"the norm stats of the {name} have no spread in dimensions {zero}, and neither "
                "epsilon=0.0 nor min_scale=0.0 adds one; set one of them above 0"
            )

    def flat(self, min_scale: float) -> list[int]:
        """Return the dimensions whose standard deviation or half range is below `min_scale`."""
        flat = {i for i, std in enumerate(self.std) if std < min_scale}
        if self.quantiles is not None:
            low, high = self.quantiles
            flat |= {i for i in range(self.dim) if high[i] - low[i] < 2 * min_scale}
        return sorted(flat)

    def floored(self, min_scale: float) -> NormStats:
        """Return a copy with standard deviations and half ranges of at least `min_scale`."""
        std = tuple(max(deviation, min_scale) for deviation in self.std)
        if self.quantiles is None:
            return NormStats(mean=self.mean, std=std)
        low, high = [], []
        for q01, q99 in zip(*self.quantiles, strict=True):
            missing = max(0.0, min_scale - (q99 - q01) / 2)
            low.append(q01 - missing)
            high.append(q99 + missing)
        return NormStats(mean=self.mean, std=std, q01=tuple(low), q99=tuple(high))

    def first(self, dim: int) -> NormStats:
        """Return the statistics of the first `dim` dimensions. The others must be padding.

        Raises:
            ValueError: there are fewer dimensions, or a surplus one is no padding. Then the
                statistics belong to another robot.
        """
        surplus = [i for i in range(dim, self.dim) if not self._is_padding(i)]
        if dim > self.dim or surplus:
            measured = f", and the surplus ones, {surplus}, are no padding" if surplus else ""
            raise ValueError(
                f"the norm stats have {self.dim} dimensions, the robot has {dim}{measured}; take "
                "the stats of this robot (--load.norm-stats, --load.asset), recompute them from "
                "its demonstrations (pitune norm-stats), or pass the pipeline of the robot that "
                "they belong to (--load.pipeline)"
            )
        return NormStats(**{name: row[:dim] for name, row in self.as_dict().items()})

    def unpadded(self) -> NormStats:
        """Return the statistics without the padded dimensions at their end."""
        dim = self.dim
        while dim > 1 and self._is_padding(dim - 1):
            dim -= 1
        return self.first(dim)

    def _is_padding(self, index: int) -> bool:
        """Return whether a dimension is as openpi pads it: constant 0, or a unit scale."""

        def near(value: float, *expected: float) -> bool:
            return any(abs(value - number) <= PADDING for number in expected)

        if not (near(self.mean[index], 0.0) and near(self.std[index], 0.0, 1.0)):
            return False
        if self.q01 is None or self.q99 is None:
            return True
        return near(self.q01[index], 0.0, -1.0) and near(self.q99[index], 0.0, 1.0)


def problem_of(values: Mapping[str, Any]) -> str:
    """Return the first problem of some statistics by key and index, or an empty text.

    Args:
        values: Lists of numbers by name. None for quantiles that were never computed.
    """
    rows = {name: row for name, row in values.items() if row is not None}
    for name in NAMES:
        if name in rows and (problem := _problem_of_row(name, rows[name])):
            return problem
    for name, other in (("std", "mean"), ("mean", "std"), ("q01", "q99"), ("q99", "q01")):
        if name in rows and other not in rows:
            return f"{other} is missing beside {name}"

    # comparisons between them
    lengths = {name: len(rows[name]) for name in NAMES if name in rows}
    if len(set(lengths.values())) > 1:
        return f"{lengths} are the numbers of dimensions; they must agree"
    for i, (low, high) in enumerate(zip(rows.get("q01", ()), rows.get("q99", ()), strict=True)):
        if high < low:
            return f"q99[{i}]={high} is below q01[{i}]={low}; recompute the stats"
    return ""


def _problem_of_row(name: str, row: Any) -> str:
    if not isinstance(row, Sequence) or isinstance(row, str | bytes):
        return f"{name}={row!r} is no list of numbers, one per dimension"
    if not row:
        return f"{name} has no numbers; there must be one per dimension"
    for i, value in enumerate(row):
        if isinstance(value, Sequence) and not isinstance(value, str):
            return (
                f"{name}[{i}] is a list of {len(value)}; there must be one number per dimension, "
                "statistics per time step are not supported"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{name}[{i}]={value!r} is no number; recompute the stats"
        if not math.isfinite(value):
            return f"{name}[{i}]={value} is not finite; recompute the stats"
        if name == "std" and value < 0:
            return f"{name}[{i}]={value} is negative; recompute the stats"
    return ""
