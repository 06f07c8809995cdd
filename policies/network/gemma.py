"""The transformer of π0: Gemma layers over a key-value cache.

π0's "joint attention" of a vision-language tower and an action expert has a block mask: a token
attends to its own block and to the blocks before it. Such a mask factorizes, so the towers run one
after the other. Each block attends to itself and to the cached keys and values of the blocks before
it, and the flow steps share the cache of the observation. The result equals the joint pass.

Parameter names are openpi's, which are Hugging Face's, so that its checkpoints load unchanged.
The dtype of the activations sets the precision. Each layer computes with its weights in it, which
is all that bfloat16 computation with float32 master weights needs.
In shapes, `prefix` is the number of tokens of the blocks before.
Letters: B rows, L tokens of this block, D width, M scored flow steps.
Source: Gemma Team 2024; Black et al. 2024; Physical Intelligence 2025 (π0.5, adaptive norms).
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint

from pitune.policies.network.attention import additive, attend
from pitune.policies.network.layers import AdaptiveRMSNorm, Linear, RMSNorm, rotary_angles, rotate
from pitune.policies.network.options.config import NetworkOptions
from pitune.policies.network.options.hyper_connections import collapse, expand
from pitune.policies.network.options.layers import add_layer_options
from pitune.policies.network.options.tokens.gated_tokens import Extra, gated_reads
from pitune.policies.network.options.value_residual import ValueResidual
from pitune.policies.network.sizes import GemmaConfig

Cache = list[tuple[Tensor, Tensor]]
"""Per layer: keys and values (B, kv heads, prefix, head dim) of the blocks before."""


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
    gates: nn.ModuleDict | None
    norms: nn.ModuleDict | None

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        for option in ("value_residual", "gates", "norms"):
            self.register_module(option, None)
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
        extra: Extra | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the block's output (B, L, D) and the keys and values of all blocks so far.

        Args:
            x: Normed tokens (B, L, D).
            rotation: See `rotary_angles`.
            mask: See `Gemma.forward`.
            before: Keys and values of the blocks before.
            first: The first layer's values of this block (B, kv heads, L, head dim), for a value
                residual.
            extra: Additional tokens of this layer, which are read through gates.
        """
        query = rotate(self._heads("q_proj", x), rotation)
        key, value = self.own(x, rotation, first)
        # (B, kv heads, prefix + L, head dim), and those of the block's registers apart
        after, registers = joined(before, (key, value)), None
        keys, values = after
        if extra is not None and extra.registers:
            own, registers = extra.split(key, value)
            keys, values = joined(before, own)
        y = attend(query, keys, values, mask)
        if self.gates is not None and extra is not None:
            for addition in gated_reads(self.gates, query, extra, registers):
                y = y + addition
        # (B, heads, L, head dim) -> (B, L, heads * head dim)
        y = rearrange(y, "b heads l dim -> b l (heads dim)")
        return project(self, "o_proj", y), after

    def own(self, x: Tensor, rotation: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return this block's keys and values (B, kv heads, L, head dim). See `forward`."""
        key, value = rotate(self._heads("k_proj", x), rotation), self._heads("v_proj", x)
        if self.value_residual is not None and first is not None:
            value = self.value_residual(x, value, first)
        return key, value

    def _heads(self, name: str, x: Tensor) -> Tensor:
        """Return a projection of the tokens (B, heads, L, head dim)."""
        # (B, L, heads * head dim) -> (B, heads, L, head dim)
        y, dim = project(self, name, x), self.config.head_dim
        return rearrange(y, "b l (heads dim) -> b heads l dim", dim=dim)


def joined(
    before: tuple[Tensor, Tensor] | None, own: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return keys and values (B, kv heads, tokens, head dim) of the blocks before and of this."""
    if before is None:
        return own
    return torch.cat([before[0], own[0]], dim=2), torch.cat([before[1], own[1]], dim=2)


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
        self.register_module("norms", None)

    def forward(self, x: Tensor) -> Tensor:
        gate = gelu(project(self, "gate_proj", x), approximate="tanh")
        return project(self, "down_proj", gate * project(self, "up_proj", x))


def project(part: nn.Module, name: str, x: Tensor) -> Tensor:
    """Return the output of a part's linear layer, with the norm after it if the part has norms."""
    y: Tensor = getattr(part, name)(x)
    norms: nn.ModuleDict | None = part.norms  # type: ignore[assignment]
    return y if norms is None else norms[name](y)


class Layer(nn.Module):
    """One transformer layer with pre-normalization.

    With hyper-connections its tokens are streams (streams, B, L, D).

    Example:
        >>> sizes = GemmaConfig(
        ...     width=8, depth=1, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=4
        ... )
        >>> x, rotation = torch.zeros(1, 3, 8), rotary_angles(torch.arange(3)[None], 4)
        >>> y, after = Layer(sizes)(x, rotation, mask=None, before=None, condition=None)
        >>> y.shape  # (B, L, D)
        torch.Size([1, 3, 8])
    """

    connections: nn.ModuleList | None

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        norm = AdaptiveRMSNorm if config.adaptive else RMSNorm
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = norm(config.width)
        self.post_attention_layernorm = norm(config.width)
        self.register_module("connections", None)

    def forward(
        self,
        x: Tensor,
        rotation: Tensor,
        mask: Tensor | None,
        before: tuple[Tensor, Tensor] | None,
        condition: Tensor | None,
        first: Tensor | None = None,
        extra: Extra | None = None,
        keys_only: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the tokens after the layer, and the keys and values of all blocks so far.

        See `Gemma.forward` and `Attention.forward` for the arguments. With `keys_only` the tokens
        are those before the layer.
        """
        # attention, where only an adaptive norm has a gate
        y, rest, write = self._enter(0, x)
        y, gate = self.input_layernorm(y, condition)
        if keys_only:
            return x, joined(before, self.self_attn.own(y, rotation, first))
        y, after = self.self_attn(y, rotation, mask, before, first, extra)
        y = y if gate is None else y * gate
        x = rest + (y if write is None else write * y)

        # feed-forward part
        y, rest, write = self._enter(1, x)
        y, gate = self.post_attention_layernorm(y, condition)
        y = self.mlp(y)
        y = y if gate is None else y * gate
        return rest + (y if write is None else write * y), after

    def _enter(self, part: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return a part's input (B, L, D), the residual, and the weights of the part's output.

        They are those of the hyper-connections, if there are any.
        """
        if self.connections is None:
            return x, x, None
        y, rest, write = self.connections[part](x)
        return y, rest, write


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
        self.streams = 0 if options is None else options.hyper_connections.streams
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
        extra: Extra | None = None,
        cache_only: bool = False,
    ) -> tuple[Tensor, Cache]:
        """Return the hidden states (B, L, D) and the cache including this block.

        Args:
            x: Token embeddings of the block (B, L, D).
            positions: Rotary positions (B, L), counted over valid tokens.
            mask: True where a token may attend (B, 1, L, prefix + L). By default it is everywhere,
                for one block without padding.
            cache: Keys and values of the blocks before.
            condition: Of adaptive norms (B, M, D), each for L / M neighboring tokens.
            extra: Additional tokens, which are read through gates.
            cache_only: Whether only the cache is used. Then the last layer computes its keys and
                values alone, and the hidden states are those before it, not normed.
        """
        mask = additive(mask, x.dtype)
        rotation = rotary_angles(positions, self.config.head_dim)
        after: Cache = []
        first = None  # values of the first layer
        x = expand(x, self.streams) if self.streams else x
        for i, layer in enumerate(self.layers):
            before, additional = None if cache is None else cache[i], extra and extra.at(i)
            keys_only = cache_only and i == len(self.layers) - 1
            inputs = (x, rotation, mask, before, condition, first, additional, keys_only)
            # the backward pass computes the layer's activations again
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, keys_values = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                x, keys_values = layer(*inputs)
            after.append(keys_values)
            first = keys_values[1][:, :, -positions.shape[1] :] if i == 0 else first
        if cache_only:
            return x, after
        x = collapse(x) if self.streams else x
        return self.norm(x, condition)[0], after
