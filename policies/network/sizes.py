"""Sizes of one tower of the π0 and π0.5 networks."""

from __future__ import annotations

from dataclasses import dataclass

from pitune.ranges import PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(Settings):
    """Sizes of one tower. Towers that attend to each other share depth, heads and head dim.

    Raises:
        ValueError: the key and value heads do not divide the query heads, or `head_dim` is odd.

    Example:
        >>> GemmaConfig(
        ...     width=64, depth=2, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16
        ... ).adaptive
        False
    """

    width: PositiveInt
    """D."""
    depth: PositiveInt
    """Number of layers."""
    mlp_dim: PositiveInt
    """Hidden width of the gated feed-forward part."""
    num_heads: PositiveInt
    """Query heads."""
    num_kv_heads: PositiveInt
    """Key and value heads. Each serves an equal number of query heads."""
    head_dim: PositiveInt
    """Width of a head. It is even, because the rotary embedding splits it in two."""
    adaptive: bool = False
    """Whether a condition modulates the norms, as in the action expert of π0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of "
                f"num_kv_heads={self.num_kv_heads}; change one"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} must be even for the rotary embedding; change it"
            )
