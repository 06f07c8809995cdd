"""Value residual: the attention of later layers reads the first layer's values too.

    V_n <- V_n + share * (V_1 - V_n),      share = bias + W x

per key-value head and token, where V_1 are the first layer's values of the same token. The share
starts at 0, so every layer keeps its own values. It acts on the tokens of the action expert (the
state and the actions), and the cached values of the state are the mixed ones.
Letters: B rows, L tokens of this block, D width.
Source: Zhou et al. 2024 (value residual learning), with learned shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from pitune.policies.network.extensions import Extension
from pitune.policies.network.options.option import OptionConfig


@dataclass(frozen=True, kw_only=True)
class ValueResidualConfig(OptionConfig):
    """The share of the first layer's values.

    Example:
        >>> ValueResidualConfig(mode="dynamic").is_on
        True
    """

    group: ClassVar[str | None] = "value_residual"

    mode: Literal["off", "static", "dynamic"] = "off"
    """Whether the first layer's values are mixed into those of the others: a learned share of each
    head ("static"), which may also depend on the token ("dynamic")."""


class ValueResidual(Extension):
    """The mixing of one layer.

    Args:
        config: Settings.
        width: D.
        num_heads: Key-value heads.

    Example:
        >>> mix = ValueResidual(ValueResidualConfig(mode="static"), width=8, num_heads=1)
        >>> value, first = torch.ones(1, 1, 3, 4), torch.zeros(1, 1, 3, 4)
        >>> torch.equal(mix(torch.zeros(1, 3, 8), value, first), value)  # (B, heads, L, head dim)
        True
    """

    group = "value_residual"
    weight: nn.Parameter | None

    def __init__(self, config: ValueResidualConfig, width: int, num_heads: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(num_heads))
        shape = (num_heads, width)
        weight = nn.Parameter(torch.empty(shape)) if config.mode == "dynamic" else None
        self.register_parameter("weight", weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for value in self.parameters():
            nn.init.zeros_(value)

    def forward(self, x: Tensor, value: Tensor, first: Tensor) -> Tensor:
        """Return the mixed values (B, kv heads, L, head dim).

        Args:
            x: The layer's normed tokens (B, L, D).
            value: Its values.
            first: Those of the first layer.
        """
        share = self.bias.to(x.dtype)  # (heads,)
        if self.weight is not None:
            share = share + x @ self.weight.to(x.dtype).T  # (B, L, heads)
        else:
            share = share.expand(*x.shape[:2], -1)
        # (B, kv heads, L, 1) against (B, kv heads, L, head dim)
        return value + rearrange(share, "b l heads -> b heads l 1") * (first - value)
