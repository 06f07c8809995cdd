"""The vision tower of π0: SigLIP, a vision transformer without a class token.

Parameter names are openpi's, which are Hugging Face's.
Letters: B rows (pictures), L tokens (patches), D width, C, Y, X image channels and pixels.
Source: Zhai et al. 2023 (SigLIP); Beyer et al. 2024 (PaliGemma).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, layer_norm, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from pitune.policies.network.layers import Linear
from pitune.ranges import PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class SiglipConfig(Settings):
    """Sizes of the vision tower.

    Raises:
        ValueError: the heads do not divide the width, or the patches do not divide the image.

    Example:
        >>> SiglipConfig(width=1152, depth=27, mlp_dim=4304, num_heads=16).num_patches
        256
    """

    width: PositiveInt
    """D."""
    depth: PositiveInt
    """Number of layers."""
    mlp_dim: PositiveInt
    """Hidden width of the feed-forward part."""
    num_heads: PositiveInt
    """Attention heads. They divide the width."""
    image_size: PositiveInt = 224
    """Height and width of the pictures [pixels]."""
    patch_size: PositiveInt = 14
    """Height and width of a patch [pixels]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, part, whole in (
            ("num_heads", self.num_heads, self.width),
            ("patch_size", self.patch_size, self.image_size),
        ):
            if whole % part:
                size = "width" if name == "num_heads" else "image_size"
                raise ValueError(
                    f"the vision tower's {name}={part} must divide {size}={whole}; change one"
                )

    @property
    def num_patches(self) -> int:
        """L, tokens of one picture."""
        return (self.image_size // self.patch_size) ** 2


class LayerNorm(nn.LayerNorm):
    """Layer norm with float32 statistics, whatever the precision of the tokens.

    Example:
        >>> LayerNorm(8)(torch.zeros(1, 4, 8, dtype=torch.bfloat16)).dtype
        torch.bfloat16
    """

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class Embeddings(nn.Module):
    """Patches of a picture plus their learned positions, in float32.

    Example:
        >>> sizes = SiglipConfig(width=8, depth=1, mlp_dim=16, num_heads=2, image_size=28)
        >>> Embeddings(sizes)(torch.zeros(1, 3, 28, 28)).shape  # (B, L, D)
        torch.Size([1, 4, 8])
    """

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
        # (B, D, rows, columns) -> (B, L, D)
        tokens = rearrange(patches, "b d y x -> b (y x) d")
        return tokens + self.position_embedding.weight.float()


class VisionAttention(nn.Module):
    """Attention of each patch to all patches of its picture.

    Example:
        >>> sizes = SiglipConfig(width=8, depth=1, mlp_dim=16, num_heads=2, image_size=28)
        >>> VisionAttention(sizes)(torch.zeros(1, 4, 8)).shape  # (B, L, D)
        torch.Size([1, 4, 8])
    """

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q_proj = Linear(config.width, config.width)
        self.k_proj = Linear(config.width, config.width)
        self.v_proj = Linear(config.width, config.width)
        self.out_proj = Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        # (B, L, D) -> (B, heads, L, head dim)
        query, key, value = (
            rearrange(y, "b l (heads dim) -> b heads l dim", heads=self.num_heads)
            for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        y = scaled_dot_product_attention(query, key, value)
        # (B, heads, L, head dim) -> (B, L, D)
        return self.out_proj(rearrange(y, "b heads l dim -> b l (heads dim)"))


class VisionMLP(nn.Module):
    """Feed-forward part with the tanh form of gelu.

    Example:
        >>> sizes = SiglipConfig(width=8, depth=1, mlp_dim=16, num_heads=2, image_size=28)
        >>> VisionMLP(sizes)(torch.zeros(1, 4, 8)).shape  # (B, L, D)
        torch.Size([1, 4, 8])
    """

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.width, config.mlp_dim)
        self.fc2 = Linear(config.mlp_dim, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    """One transformer layer with pre-normalization.

    Example:
        >>> sizes = SiglipConfig(width=8, depth=1, mlp_dim=16, num_heads=2, image_size=28)
        >>> VisionLayer(sizes)(torch.zeros(1, 4, 8)).shape  # (B, L, D)
        torch.Size([1, 4, 8])
    """

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
    """Vision transformer: one feature vector per patch of a picture.

    Args:
        config: Sizes.

    Example:
        >>> tower = Siglip(SiglipConfig(width=8, depth=1, mlp_dim=8, num_heads=2, image_size=28))
        >>> tower(torch.zeros(1, 3, 28, 28)).shape  # (B, L, D)
        torch.Size([1, 4, 8])
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
        """Return features (B, L, D) of pictures (B, C, Y, X) in [-1, 1], computed in `dtype`."""
        x = self.embeddings(images).to(dtype)
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        return self.post_layernorm(x)
