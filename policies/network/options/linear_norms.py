"""Norms after the linear layers of the action expert.

    y <- y + share * (RMSNorm(y) - y)

after every linear layer of attention and feed-forward part. With `mode="full"` the share is 1, as
published, which suits a new network only. With `mode="gated"` it is a learned number per linear
layer that starts at 0, so that a pretrained network computes the same numbers.
Letters: B rows, L tokens, D width of a layer's output.
Source: Cheang et al. 2025 (GR-3), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pitune.policies.network.extensions import Extension
from pitune.policies.network.options.option import OptionConfig


@dataclass(frozen=True, kw_only=True)
class LinearNormsConfig(OptionConfig):
    """The share of the norms.

    Example:
        >>> LinearNormsConfig(mode="full").pretrained_fault()
        "mode='full' norms every linear layer's output"
    """

    group: ClassVar[str | None] = "linear_norms"

    mode: Literal["off", "gated", "full"] = "off"
    """Whether norms follow the expert's linear layers: wholly ("full", for a new network), or by a
    learned share that starts at 0 ("gated", also for pretrained weights)."""

    def pretrained_fault(self) -> str | None:
        if self.mode == "full":
            return "mode='full' norms every linear layer's output"
        return None


class LinearNorm(Extension):
    """The norm after one linear layer.

    Args:
        config: Settings.
        width: D.

    Example:
        >>> norm, y = LinearNorm(LinearNormsConfig(mode="gated"), width=2), torch.ones(1, 1, 2)
        >>> torch.equal(norm(y), y)
        True
    """

    group = "linear_norms"
    share: nn.Parameter | None

    def __init__(self, config: LinearNormsConfig, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        share = nn.Parameter(torch.empty(())) if config.mode == "gated" else None
        self.register_parameter("share", share)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for value in self.parameters():
            nn.init.zeros_(value)

    def forward(self, y: Tensor) -> Tensor:
        """Return the layer's output (B, L, D) with the norm's share."""
        long = y.float()
        normed = long * torch.rsqrt(long.square().mean(-1, keepdim=True) + 1e-6)
        normed = (normed * (1 + self.weight.float())).to(y.dtype)
        return normed if self.share is None else y + self.share.to(y.dtype) * (normed - y)
