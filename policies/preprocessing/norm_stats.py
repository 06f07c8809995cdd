"""Norm statistics of states and actions over the demonstrations.

A policy with other statistics than in training fails silently. The statistics are therefore part of
the policy: stored with it, never recomputed on load, and never trained.
Letters: N rows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NormStats:
    """Statistics of one quantity over the demonstrations, per dimension [robot units].

    Example:
        >>> NormStats.of(torch.tensor([[0.0], [2.0]])).mean
        (1.0,)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...]
    """1 % quantile."""
    q99: tuple[float, ...]
    """99 % quantile."""

    def __post_init__(self) -> None:
        for name, values in asdict(self).items():
            if len(values) != len(self.mean):
                raise ValueError(
                    f"norm stats {name} has {len(values)} numbers, mean has {len(self.mean)}"
                )
            bad = [i for i, value in enumerate(values) if not math.isfinite(value)]
            if bad:
                raise ValueError(f"norm stats {name} is not finite in dimensions {bad}")

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

    def flat(self, min_scale: float) -> list[int]:
        """Return the dimensions whose standard deviation or half range is below `min_scale`."""
        spreads = zip(self.std, self.q01, self.q99, strict=True)
        return [
            i
            for i, (std, low, high) in enumerate(spreads)
            if std < min_scale or high - low < 2 * min_scale
        ]

    def floored(self, min_scale: float) -> NormStats:
        """Return a copy with standard deviations and half ranges of at least `min_scale`."""
        low, high, std = [], [], []
        for deviation, q01, q99 in zip(self.std, self.q01, self.q99, strict=True):
            missing = max(0.0, min_scale - (q99 - q01) / 2)
            low.append(q01 - missing)
            high.append(q99 + missing)
            std.append(max(deviation, min_scale))
        return NormStats(mean=self.mean, std=tuple(std), q01=tuple(low), q99=tuple(high))

    @classmethod
    def without_quantiles(cls, mean: tuple[float, ...], std: tuple[float, ...]) -> NormStats:
        """Return statistics from a source without quantiles.

        The quantiles are set to the mean, so their range is zero and quantile normalization is
        rejected.
        """
        return cls(mean=mean, std=std, q01=mean, q99=mean)

    @property
    def has_quantiles(self) -> bool:
        """Whether some quantile differs from the mean."""
        return self.q01 != self.mean or self.q99 != self.mean

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.mean)

    def first(self, dim: int) -> NormStats:
        """Return the statistics of the first `dim` dimensions, because openpi's may be padded.

        Raises:
            ValueError: there are fewer dimensions.
        """
        if dim > self.dim:
            raise ValueError(
                f"the norm stats have {self.dim} dimensions, the robot has {dim}; take the stats "
                "of this robot, or recompute them from its demonstrations"
            )
        return NormStats(**{name: values[:dim] for name, values in asdict(self).items()})
