"""The transformer of π0: Gemma layers over a key-value cache.

π0's "joint attention" of a vision-language tower and an action expert has a block mask: a token
attends to its own block and to the blocks before it. Such a mask factorizes, so the towers run one
after the other. Each block attends to itself and to the cached keys and values of the blocks before
it, and the flow steps share the cache of the observation. The result equals the joint pass.

Parameter names are openpi's, which are Hugging Face's, so that its checkpoints load unchanged.
The dtype of the activations sets the precision. Each layer casts its weights to it, which is all
that bfloat16 computation with float32 master weights needs.
In shapes, `prefix` is the number of tokens of the blocks before.
Letters: B rows, L tokens of this block, D width, M scored flow steps.
Source: Gemma Team 2024; Black et al. 2024; Physical Intelligence 2025 (π0.5, adaptive norms).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from pitune.policies.network.layers import AdaptiveRMSNorm, Linear, RMSNorm, rotary_angles, rotate
from pitune.policies.network.options.config import NetworkOptions
from pitune.policies.network.options.layers import add_layer_options
from pitune.policies.network.options.value_residual import ValueResidual
from pitune.ranges import PositiveInt, Settings

Cache = list[tuple[Tensor, Tensor]]
"""Per layer: keys and values (B, kv heads, prefix, head dim) of the blocks before."""


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


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, over a cache and this block.

    Example:
        >>> sizes = GemmaConfig(
        ...     width=8, depth=1, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=4
        ... )
        >>> x, rotation = torch.zeros(1, 3, 8), rotary_angles(torch.arange(3)[None], 4)
        >>> y, (keys, values) = Attention(sizes)(x, rotation, mask=None, before=None)
        >>> y.shape, keys.shape  # (B, L, D), (B, kv heads, prefix + L, head dim)
        (torch.Size([1, 3, 8]), torch.Size([1, 1, 3, 4]))
    """

    value_residual: ValueResidual | None

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.register_module("value_residual", None)
        query_dim = config.num_heads * config.head_dim
        kv_dim = config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.width, query_dim, bias=False)
        self.k_proj = Linear(config.width, kv_dim, bias=False)
        self.v_proj = Linear(config.width, kv_dim, bias=False)
        self.o_proj = Linear(query_dim, config.width, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: Tensor,
        mask: Tensor | None,
        before: tuple[Tensor, Tensor] | None,
        first: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the block's output (B, L, D) and the keys and values of all blocks so far.

        `first` are the first layer's values of this block (B, kv heads, L, head dim), for a value
        residual.
        """
        # (B, L, heads * head dim) -> (B, heads, L, head dim)
        query, key, value = (
            rearrange(y, "b l (heads dim) -> b heads l dim", dim=self.config.head_dim)
            for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        query, key = rotate(query, rotation), rotate(key, rotation)
        if self.value_residual is not None and first is not None:
            value = self.value_residual(x, value, first)
        # (B, kv heads, prefix + L, head dim)
        if before is not None:
            key, value = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
        # with fewer key heads than query heads, several queries share a key
        grouped = self.config.num_heads != self.config.num_kv_heads
        y = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)
        # (B, heads, L, head dim) -> (B, L, heads * head dim)
        return self.o_proj(rearrange(y, "b heads l dim -> b l (heads dim)")), (key, value)


class MLP(nn.Module):
    """Gated feed-forward part with the tanh form of gelu.

    Example:
        >>> sizes = GemmaConfig(
        ...     width=8, depth=1, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=4
        ... )
        >>> MLP(sizes)(torch.zeros(1, 3, 8)).shape  # (B, L, D)
        torch.Size([1, 3, 8])
    """

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.width, config.mlp_dim, bias=False)
        self.up_proj = Linear(config.width, config.mlp_dim, bias=False)
        self.down_proj = Linear(config.mlp_dim, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Layer(nn.Module):
    """One transformer layer with pre-normalization.

    Example:
        >>> sizes = GemmaConfig(
        ...     width=8, depth=1, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=4
        ... )
        >>> x, rotation = torch.zeros(1, 3, 8), rotary_angles(torch.arange(3)[None], 4)
        >>> y, after = Layer(sizes)(x, rotation, mask=None, before=None, condition=None)
        >>> y.shape  # (B, L, D)
        torch.Size([1, 3, 8])
    """

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
        first: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        # attention, where only an adaptive norm has a gate
        y, gate = self.input_layernorm(x, condition)
        y, after = self.self_attn(y, rotation, mask, before, first)
        x = x + (y if gate is None else y * gate)

        # feed-forward part
        y, gate = self.post_attention_layernorm(x, condition)
        y = self.mlp(y)
        return x + (y if gate is None else y * gate), after


class Gemma(nn.Module):
    """A tower: its layers, the final norm, and token embeddings if there is a vocabulary.

    Args:
        config: Sizes.
        vocab_size: Pieces of the tokenizer. 0 for a tower without token embeddings.
        options: Options of the layers, None for the published ones.

    Example:
        >>> sizes = GemmaConfig(
        ...     width=8, depth=1, mlp_dim=8, num_heads=2, num_kv_heads=1, head_dim=4
        ... )
        >>> hidden, cache = Gemma(sizes)(torch.zeros(1, 3, 8), torch.arange(3)[None])
        >>> hidden.shape, len(cache)  # (B, L, D), one entry per layer
        (torch.Size([1, 3, 8]), 1)
    """

    def __init__(
        self, config: GemmaConfig, vocab_size: int = 0, options: NetworkOptions | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        if vocab_size:
            self.embed_tokens = nn.Embedding(vocab_size, config.width)
            nn.init.normal_(self.embed_tokens.weight, std=config.width**-0.5)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = (AdaptiveRMSNorm if config.adaptive else RMSNorm)(config.width)
        if options is not None:
            add_layer_options(self.layers, config, options)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Cache]:
        """Return the hidden states (B, L, D) and the cache including this block.

        Args:
            x: Token embeddings of the block (B, L, D).
            positions: Rotary positions (B, L), counted over valid tokens.
            mask: True where a token may attend (B, 1, L, prefix + L). By default it is everywhere,
                for one block without padding.
            cache: Keys and values of the blocks before.
            condition: Of adaptive norms (B, M, D), each for L / M neighboring tokens.
        """
        rotation = rotary_angles(positions, self.config.head_dim)
        after: Cache = []
        first = None  # values of the first layer
        for i, layer in enumerate(self.layers):
            inputs = (x, rotation, mask, None if cache is None else cache[i], condition, first)
            # the backward pass computes the layer's activations again
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, keys_values = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                x, keys_values = layer(*inputs)
            after.append(keys_values)
            first = keys_values[1][:, :, -positions.shape[1] :] if i == 0 else first
        return self.norm(x, condition)[0], after
