"""Hyper-connections: several residual streams through the layers of the action expert.

With n streams h_1 ... h_n, both parts of a layer (attention and feed-forward part) compute

    input  = sum_j read_j h_j
    h_i   <- sum_j mix_ij h_j + write_i * part(input)

The streams begin as copies of the tokens, and their mean enters the final norm. At first `read` is
1 for one stream (that of the layer's number) and 0 for the others, `mix` is the identity and
`write` is 1, so all streams stay equal to the single one of the published network. With
`dynamic=True` each of the three also has a term that depends on the token, scale * tanh(W
norm(h_i)), whose W starts at 0.
Letters: B rows, L tokens, D width.
Source: Zhu et al. 2024 (hyper-connections). The paper sums the streams at the end; the mean is the
same up to the scale, which the norm removes, and is exact for pretrained weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from einops import einsum, repeat
from torch import Tensor, nn

from pitune.policies.network.extensions import Extension
from pitune.policies.network.options.option import OptionConfig
from pitune.ranges import Range

SCALE = 0.01
"""Initial scale of the dynamic terms, the paper's."""


@dataclass(frozen=True, kw_only=True)
class HyperConnectionsConfig(OptionConfig):
    """The number of streams.

    Example:
        >>> HyperConnectionsConfig(streams=4).is_on
        True
    """

    group: ClassVar[str | None] = "hyper_connections"

    streams: Annotated[int, Range(low=0, high=64)] = 0
    """Residual streams of the action expert. 0 for the published single one."""
    dynamic: bool = True
    """Whether the connections also depend on the token. Without streams it has no meaning."""

    @property
    def is_on(self) -> bool:
        return self.streams > 0


class HyperConnection(Extension):
    """The connections around one part of a layer.

    Args:
        config: Settings.
        width: D.
        index: Number of the part, which chooses the stream that it reads at first.

    Example:
        >>> connection = HyperConnection(HyperConnectionsConfig(streams=2), width=4, index=0)
        >>> streams = expand(torch.ones(1, 3, 4), 2)  # (streams, B, L, D)
        >>> x, rest, write = connection(streams)
        >>> torch.equal(x, streams[0]) and torch.equal(rest, streams)
        True
    """

    group = "hyper_connections"
    weight: nn.Parameter | None
    scale: nn.Parameter | None

    def __init__(self, config: HyperConnectionsConfig, width: int, index: int) -> None:
        super().__init__()
        n = config.streams
        self.first = index % n
        self.read = nn.Parameter(torch.empty(n))
        self.mix = nn.Parameter(torch.empty(n, n))
        self.write = nn.Parameter(torch.empty(n))
        # one linear map for the dynamic terms: a number to read, n to mix, one to write
        shape = (n + 2, width)
        dynamic = config.dynamic
        self.register_parameter("weight", nn.Parameter(torch.empty(shape)) if dynamic else None)
        self.register_parameter("scale", nn.Parameter(torch.empty(n + 2)) if dynamic else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.read.copy_(torch.arange(len(self.read)) == self.first)
            self.mix.copy_(torch.eye(len(self.mix)))
            self.write.fill_(1.0)
            if self.weight is not None and self.scale is not None:
                self.weight.zero_()
                self.scale.fill_(SCALE)

    def forward(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the part's input, the mixed streams, and the weights of its output.

        Args:
            streams: (streams, B, L, D).

        Returns:
            The input (B, L, D), the streams without the part's output (streams, B, L, D), and the
            weight of the output in each stream (streams, 1 or B, 1 or L, 1).
        """
        n, dtype = len(streams), streams.dtype
        read, mix, write = (value.to(dtype) for value in (self.read, self.mix, self.write))
        if self.weight is None or self.scale is None:
            x = einsum(read, streams, "j, j b l d -> b l d")
            rest = einsum(mix, streams, "i j, j b l d -> i b l d")
            return x, rest, write[:, None, None, None]
        # (streams, B, L, streams + 2), from each stream's normed tokens
        long = streams.float()
        normed = long * torch.rsqrt(long.square().mean(-1, keepdim=True) + 1e-6)
        terms = (self.scale * torch.tanh(normed @ self.weight.float().T)).to(dtype)
        # fixed and dynamic terms: `read` (from j, B, L), `mixed`, and `write` (to i, B, L, 1)
        x = einsum(read[:, None, None] + terms[..., 0], streams, "j b l, j b l d -> b l d")
        mixed = mix.T[:, None, None] + terms[..., 1 : n + 1]  # (from j, B, L, to i)
        rest = einsum(mixed, streams, "j b l i, j b l d -> i b l d")
        return x, rest, (write[:, None, None] + terms[..., n + 1])[..., None]


def expand(x: Tensor, n: int) -> Tensor:
    """Return n equal streams (streams, B, L, D) of tokens (B, L, D)."""
    return repeat(x, "b l d -> n b l d", n=n)


def collapse(streams: Tensor) -> Tensor:
    """Return the mean (B, L, D) of streams (streams, B, L, D), exact if all are equal."""
    return streams[0] + (streams - streams[0]).mean(0)
