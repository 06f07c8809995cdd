"""The transformer of π0: Gemma layers over a key-value cache.

π0's "joint attention" of a vision-language tower and an action expert has a block mask: a token
sees its own block and the blocks before it. Such a mask factorises, so the towers run one after the
other: each block attends to the cached keys and values of the blocks before it and to itself, and
what does not change between flow steps is computed once. The result equals the joint pass.

Parameter names are openpi's (which are Hugging Face's), so that its checkpoints load unchanged.
Activations say in which precision is computed; weights are cast to it where they are used, so
bfloat16 compute and float32 master weights need nothing else.
Letters: N rows, L tokens of this block, P tokens of the blocks before it, D width, M conditions.
Source: Gemma Team 2024; Black et al. 2024; Physical Intelligence 2025 (π0.5, adaptive norms).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

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
    adaptive: bool = False
    """Norms modulated by a condition: the action expert of π0.5."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for the rotary embedding")


class Linear(nn.Linear):
    """A linear layer that computes in its input's precision, with room for a low-rank update.

    `lora_a` (rank, in) and `lora_b` (out, rank) are there only after
    `pitune.policies.network.lora.add_lora`.
    """

    lora_a: nn.Parameter | None
    lora_b: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        # no class attributes: torch would find those before its parameters
        self.register_parameter("lora_a", None)
        self.register_parameter("lora_b", None)
        self.lora_scale = 1.0  # alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = linear(x, self.weight.to(x.dtype), bias)
        if self.lora_a is not None and self.lora_b is not None:
            low = linear(x, self.lora_a.to(x.dtype))
            y = y + self.lora_scale * linear(low, self.lora_b.to(x.dtype))
        return y


class RMSNorm(nn.Module):
    """Root-mean-square norm with Gemma's weight convention: 0 is the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the normed tokens (N, L, D) and no gate."""
        return (_normed(x) * (1 + self.weight.float())).to(x.dtype), None


class AdaptiveRMSNorm(nn.Module):
    """Root-mean-square norm whose scale, shift and gate come from a condition (π0.5's flow time).

    A fresh one is the identity with an open gate.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = Linear(width, 3 * width)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)
        with torch.no_grad():
            self.dense.bias[2 * width :] = 1.0

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the normed tokens (N, L, D), and the gate of the residual branch (N, L, D).

        Args:
            x: Tokens; L is a multiple of M.
            condition: (N, M, D); each holds for L / M neighboring tokens.
        """
        if condition is None:
            raise ValueError("an adaptive norm needs a condition; π0.5's is the flow time")
        each = x.shape[1] // condition.shape[1]
        modulation = self.dense(condition).repeat_interleave(each, dim=1)
        scale, shift, gate = modulation.chunk(3, dim=-1)
        y = _normed(x) * (1 + scale.float()) + shift.float()
        return y.to(x.dtype), gate.to(x.dtype)


def _normed(x: Tensor) -> Tensor:
    """Return tokens divided by their root mean square, float32."""
    y = x.float()
    return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, over a cache and this block."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        query_dim = config.num_heads * config.head_dim
        kv_dim = config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.width, query_dim, bias=False)
        self.k_proj = Linear(config.width, kv_dim, bias=False)
        self.v_proj = Linear(config.width, kv_dim, bias=False)
        self.o_proj = Linear(query_dim, config.width, bias=False)

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
        self.gate_proj = Linear(config.width, config.mlp_dim, bias=False)
        self.up_proj = Linear(config.width, config.mlp_dim, bias=False)
        self.down_proj = Linear(config.mlp_dim, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Layer(nn.Module):
    """One transformer layer, norms before the parts."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        norm = AdaptiveRMSNorm if config.adaptive else RMSNorm
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = norm(config.width)
        self.post_attention_layernorm = norm(config.width)

    def forward(
        self,
        x: Tensor,
        rotation: Tensor,
        mask: Tensor | None,
        before: tuple[Tensor, Tensor] | None,
        condition: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, gate = self.input_layernorm(x, condition)
        y, after = self.self_attn(y, rotation, mask, before)
        x = x + (y if gate is None else y * gate)
        y, gate = self.post_attention_layernorm(x, condition)
        y = self.mlp(y)
        return x + (y if gate is None else y * gate), after


class Gemma(nn.Module):
    """A tower: its layers and the norm after the last; with a vocabulary, its embeddings too."""

    def __init__(self, config: GemmaConfig, vocab_size: int = 0) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        if vocab_size:
            self.embed_tokens = nn.Embedding(vocab_size, config.width)
            nn.init.normal_(self.embed_tokens.weight, std=config.width**-0.5)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = (AdaptiveRMSNorm if config.adaptive else RMSNorm)(config.width)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Cache]:
        """Return the hidden states (N, L, D) and the cache that now includes this block.

        Args:
            x: Token embeddings of the block (N, L, D).
            positions: Rotary positions (N, L), counted over valid tokens.
            mask: True where a token may look (N, 1, L, P + L); everywhere by default, which is
                right within one block without padding.
            cache: Keys and values of the blocks before.
            condition: Of adaptive norms (N, M, D), each for L / M neighboring tokens.
        """
        rotation = rotary_angles(positions, self.config.head_dim)
        after: Cache = []
        for i, layer in enumerate(self.layers):
            inputs = (x, rotation, mask, None if cache is None else cache[i], condition)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, keys_values = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                x, keys_values = layer(*inputs)
            after.append(keys_values)
        return self.norm(x, condition)[0], after


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
