"""Settings that all kinds of algorithms share, and range checks of settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

TimeLimit = Literal["terminal", "bootstrap"]


def check_range(
    config: Any,
    *names: str,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Check that fields of a config lie in a range. Fields that are None are skipped.

    Args:
        config: A dataclass.
        *names: Its fields.
        low: Smallest valid value.
        high: Largest valid value.
        low_open: Whether `low` itself is invalid.
        high_open: Whether `high` itself is invalid.

    Raises:
        ValueError: a value is outside the range, or not a number.
    """
    bounds = []
    if low > -math.inf:
        bounds.append(f"above {low:g}" if low_open else f"at least {low:g}")
    if high < math.inf:
        bounds.append(f"below {high:g}" if high_open else f"at most {high:g}")
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        above = value > low if low_open else value >= low
        below = value < high if high_open else value <= high
        if not (above and below):
            raise ValueError(f"{name}={value} must be {' and '.join(bounds)}")


def check_counts(config: Any, *names: str) -> None:
    """Check that fields of a config are at least 1. See `check_range`."""
    check_range(config, *names, low=1)


def check_positive(config: Any, *names: str) -> None:
    """Check that fields of a config are above 0. See `check_range`."""
    check_range(config, *names, low=0, low_open=True)


def check_not_negative(config: Any, *names: str) -> None:
    """Check that fields of a config are at least 0. See `check_range`."""
    check_range(config, *names, low=0)


def check_shares(config: Any, *names: str) -> None:
    """Check that fields of a config are between 0 and 1. See `check_range`."""
    check_range(config, *names, low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class ReturnConfig:
    """Weight of future rewards.

    Example:
        >>> ReturnConfig(discount=0.9).time_limit
        'terminal'
    """

    discount: float = 0.99
    """Discount per environment step, not per chunk [-]."""
    time_limit: TimeLimit = "terminal"
    """Whether the time limit ends the task, or values continue past it."""

    def __post_init__(self) -> None:
        check_shares(self, "discount")


@dataclass(frozen=True, kw_only=True)
class MinibatchConfig:
    """Rows of one gradient step.

    Example:
        >>> MinibatchConfig(minibatch_size=64, num_parts=4).num_parts
        4
    """

    minibatch_size: int = 512
    """Chunk decisions per gradient step."""
    num_parts: int = 1
    """Number of parts of a minibatch. More parts need less memory and give the same gradient, up to
    rounding."""

    @property
    def part_size(self) -> int:
        """Decisions of one part of a minibatch."""
        return -(-self.minibatch_size // self.num_parts)

    def __post_init__(self) -> None:
        check_counts(self, "minibatch_size", "num_parts")
