"""Additional tokens that the action expert reads through gates: registers and state tokens.

The published attention stays as it is. Each kind of additional tokens has an attention of its own
in each layer, whose output is added with a share of every head:

    y = attention(published tokens) + tanh(gate) * attention(additional tokens)

The gates start at 0, so the numbers of a pretrained network stay the same. A key bias would have to
start so low that no gradient reaches it, and the gate has one from the first step.
Letters: B rows, L tokens of this block, M scored flow steps, H action horizon.
Source: the gate is that of Zhang et al. 2023 (LLaMA-Adapter).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from pitune.policies.network.attention import additive, attend
from pitune.policies.network.extensions import Extension

KeysValues = tuple[Tensor, Tensor]
"""Keys and values (B, kv heads, tokens, head dim)."""


class Extra(NamedTuple):
    """The additional tokens of a pass through the expert.

    Example:
        >>> Extra().registers
        0
    """

    side: Mapping[str, list[KeysValues]] = {}
    """Keys and values of each kind of context tokens, per layer."""
    groups: int = 1
    """M, groups of tokens in the block (flow times)."""
    registers: int = 0
    """Tokens at the end of each group that are registers."""

    def at(self, layer: int) -> Extra:
        """Return the tokens of one layer."""
        side = {kind: [layers[layer]] for kind, layers in self.side.items()}
        return self._replace(side=side)

    def split(self, key: Tensor, value: Tensor) -> tuple[KeysValues, KeysValues | None]:
        """Return the keys and values of a block without those of its registers, and the latter."""
        if not self.registers:
            return (key, value), None
        parts = [
            rearrange(y, "b heads (m l) dim -> b heads m l dim", m=self.groups)
            for y in (key, value)
        ]
        # the registers are the last tokens of each group
        own, extra = (
            tuple(
                rearrange(y[:, :, :, rows], "b heads m l dim -> b heads (m l) dim") for y in parts
            )
            for rows in (slice(None, -self.registers), slice(-self.registers, None))
        )
        return (own[0], own[1]), (extra[0], extra[1])

    def register_mask(self, num_tokens: int, device: torch.device) -> Tensor | None:
        """Return True where a token may attend to a register (1, 1, L, M * registers).

        It attends to those of its own group. None stands for a mask that is True everywhere.
        """
        if self.groups == 1:
            return None
        group = torch.arange(self.groups, device=device)
        own = repeat(group, "m -> (m l)", l=num_tokens // self.groups)
        registers = repeat(group, "m -> (m r)", r=self.registers)
        # (L, 1) against (1, M * registers)
        return (own[:, None] == registers)[None, None]


class TokenGate(Extension):
    """The gated attention of one layer to one kind of additional tokens.

    Args:
        group: Parameter group of the option.
        num_heads: Query heads.

    Example:
        >>> gate = TokenGate("registers", num_heads=2)
        >>> query, keys = torch.ones(1, 2, 3, 4), torch.ones(1, 1, 5, 4)
        >>> gate(query, (keys, keys), None).abs().max().item()  # (B, heads, L, head dim)
        0.0
    """

    def __init__(self, group: str, num_heads: int) -> None:
        super().__init__()
        self.group = group  # type: ignore[misc]
        self.gate = nn.Parameter(torch.empty(num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gate)

    def forward(self, query: Tensor, keys: KeysValues, mask: Tensor | None) -> Tensor:
        """Return the addition to the attention's output (B, heads, L, head dim)."""
        y = attend(query, *keys, additive(mask, query.dtype))
        # (heads,) -> (heads, 1, 1)
        return torch.tanh(self.gate).to(y.dtype)[:, None, None] * y


def gated_reads(
    gates: nn.ModuleDict, query: Tensor, extra: Extra, registers: KeysValues | None
) -> Iterator[Tensor]:
    """Yield the additions (B, heads, L, head dim) of all kinds of additional tokens.

    Args:
        gates: The layer's gates by kind.
        query: Its queries (B, heads, L, head dim).
        extra: The additional tokens of this layer.
        registers: Keys and values of the block's registers.
    """
    if registers is not None:
        mask = extra.register_mask(query.shape[2], query.device)
        yield gates["registers"](query, registers, mask)
    for kind, (keys_values,) in extra.side.items():
        yield gates[kind](query, keys_values, None)
