"""The vision tower of π0: SigLIP, a vision transformer without a class token.

Parameter names are openpi's (which are Hugging Face's). Letters: N pictures, L patches, D width,
Y, X pixels.
Source: Zhai et al. 2023 (SigLIP); Beyer et al. 2024 (PaliGemma).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, layer_norm, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from pitune.policies.network.gemma import Linear


@dataclass(frozen=True, kw_only=True)
class SiglipConfig:
    """Sizes of the vision tower."""

    width: int
    """D."""
    depth: int
    """Number of layers."""
    mlp_dim: int
    """Hidden width of the feed-forward part."""
    num_heads: int
    """Attention heads; they divide the width."""
    image_size: int = 224
    """Height and width of the pictures [pixels]."""
    patch_size: int = 14
    """Height and width of a patch [pixels]."""

    def __post_init__(self) -> None:
        for name, part, whole in (
            ("num_heads", self.num_heads, self.width),
            ("patch_size", self.patch_size, self.image_size),
        ):
            if whole % part:
                raise ValueError(f"vision {name}={part} must divide {whole}")

    @property
    def num_patches(self) -> int:
        """L, tokens of one picture."""
        return (self.image_size // self.patch_size) ** 2


class LayerNorm(nn.LayerNorm):
    """Layer norm with float32 statistics, whatever the precision of the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class Embeddings(nn.Module):
    """Patches of a picture plus their learned positions, in float32."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.width, size, stride=size)
        self.position_embedding = nn.Embedding(config.num_patches, config.width)

    def forward(self, images: Tensor) -> Tensor:
        conv = self.patch_embedding
        weight, bias = conv.weight.float(), conv.bias
        bias = None if bias is None else bias.float()
        patches = conv2d(images.float(), weight, bias, stride=conv.stride)
        return patches.flatten(2).transpose(1, 2) + self.position_embedding.weight.float()


class VisionAttention(nn.Module):
    """Every patch attends to every patch of its picture."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q_proj = Linear(config.width, config.width)
        self.k_proj = Linear(config.width, config.width)
        self.v_proj = Linear(config.width, config.width)
        self.out_proj = Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        query, key, value = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        y = scaled_dot_product_attention(query, key, value)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    """Feed-forward part with the tanh form of gelu."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.width, config.mlp_dim)
        self.fc2 = Linear(config.mlp_dim, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    """One transformer layer, norms before the parts."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.width, eps=1e-6)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = LayerNorm(config.width, eps=1e-6)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Siglip(nn.Module):
    """Pictures to one feature per patch.

    Args:
        config: Sizes.
    """

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(VisionLayer(config) for _ in range(config.depth))}
        )
        self.post_layernorm = LayerNorm(config.width, eps=1e-6)

    def forward(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return features (N, L, D) of pictures (N, 3, Y, X) in [-1, 1], computed in `dtype`."""
        x = self.embeddings(images).to(dtype)
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        return self.post_layernorm(x)
