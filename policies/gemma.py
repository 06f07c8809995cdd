"""The transformer of π0: Gemma layers over a key-value cache.

π0's "joint attention" of a vision-language tower and an action expert has a block mask: a token
sees its own block and the blocks before it. Such a mask factorises, so the towers run one after the
other: each block attends to the cached keys and values of the blocks before it and to itself, and
what does not change between flow steps is computed once. The result equals the joint pass.

Parameter names are openpi's (which are Hugging Face's), so that its checkpoints load unchanged.
Letters: N rows, L tokens of this block, P tokens of the blocks before it, D width.
Source: Gemma Team 2024; Black et al. 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

Cache = list[tuple[Tensor, Tensor]]
"""Per layer: keys and values (N, kv heads, P, head dim) of the blocks before."""


@dataclass(frozen=True, kw_only=True)
class GemmaConfig:
    """Sizes of one tower. Towers that attend to each other share depth, heads and head dim."""

    width: int
    """D."""
    depth: int
    """Number of layers."""
    mlp_dim: int
    """Hidden width of the gated feed-forward part."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads, each shared by an equal number of query heads."""
    head_dim: int
    """Width of a head; even, for the rotary embedding."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for the rotary embedding")


class RMSNorm(nn.Module):
    """Root-mean-square norm with Gemma's weight convention: 0 is the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)
        return (y * (1 + self.weight.float())).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, over a cache and this block."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        query_dim = config.num_heads * config.head_dim
        kv_dim = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, query_dim, bias=False)
        self.k_proj = nn.Linear(config.width, kv_dim, bias=False)
        self.v_proj = nn.Linear(config.width, kv_dim, bias=False)
        self.o_proj = nn.Linear(query_dim, config.width, bias=False)

    def forward(
        self, x: Tensor, rotation: Tensor, mask: Tensor | None, before: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the block's output (N, L, D) and the keys and values of all blocks so far."""
        n, length, _ = x.shape
        head_dim = self.config.head_dim
        query = self.q_proj(x).view(n, length, -1, head_dim).transpose(1, 2)
        key = self.k_proj(x).view(n, length, -1, head_dim).transpose(1, 2)
        value = self.v_proj(x).view(n, length, -1, head_dim).transpose(1, 2)
        query, key = rotate(query, rotation), rotate(key, rotation)
        if before is not None:
            key, value = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
        grouped = self.config.num_heads != self.config.num_kv_heads
        y = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)
        return self.o_proj(y.transpose(1, 2).reshape(n, length, -1)), (key, value)


class MLP(nn.Module):
    """Gated feed-forward part with the tanh form of gelu."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_dim, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_dim, bias=False)
        self.down_proj = nn.Linear(config.mlp_dim, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Layer(nn.Module):
    """One transformer layer, norms before the parts."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.width)
        self.post_attention_layernorm = RMSNorm(config.width)

    def forward(
        self, x: Tensor, rotation: Tensor, mask: Tensor | None, before: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, after = self.self_attn(self.input_layernorm(x), rotation, mask, before)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), after


class Gemma(nn.Module):
    """A tower: its layers and the norm after the last."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, Cache]:
        """Return the hidden states (N, L, D) and the cache that now includes this block.

        Args:
            x: Token embeddings of the block (N, L, D).
            positions: Rotary positions (N, L), counted over valid tokens.
            mask: True where a token may look (N, 1, L, P + L); everywhere by default, which is
                right within one block without padding.
            cache: Keys and values of the blocks before.
        """
        rotation = rotary_angles(positions, self.config.head_dim)
        after: Cache = []
        for i, layer in enumerate(self.layers):
            x, keys_values = layer(x, rotation, mask, None if cache is None else cache[i])
            after.append(keys_values)
        return self.norm(x), after


def rotary_angles(positions: Tensor, head_dim: int) -> Tensor:
    """Return cosines and sines of the rotary angles (2, N, 1, L, head_dim / 2), float32."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    frequency = 10000.0 ** -(exponent / head_dim)
    angle = positions[:, None, :, None].float() * frequency
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Return queries or keys (N, heads, L, head_dim) turned by their positions, half-split form."""
    cosine, sine = rotation
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(x.dtype)
