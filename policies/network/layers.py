"""Parts that the towers share: linear layers, norms and rotary positions.

The dtype of the activations sets the precision. A layer casts its weights to it once after each
change, see `pitune.policies.network.held_casts`.
Letters: B rows, L tokens, D width, M scored flow steps.
Source: Gemma Team 2024; Physical Intelligence 2025 (π0.5, adaptive norms).
"""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor, nn
from torch.nn.functional import linear

from pitune.policies.network.held_casts import HeldCasts


class Linear(nn.Linear):
    """A linear layer that computes in its input's precision, with an optional low-rank update.

    `lora_a` (rank, in) and `lora_b` (out, rank) are None until
    `pitune.policies.network.lora.add_lora` attaches them.

    Example:
        >>> Linear(3, 2)(torch.zeros(1, 3, dtype=torch.bfloat16)).dtype
        torch.bfloat16
    """

    lora_a: nn.Parameter | None
    lora_b: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        # class attributes would hide the registered parameters of the same name
        self.register_parameter("lora_a", None)
        self.register_parameter("lora_b", None)
        self.lora_scale = 1.0  # alpha / rank
        self.casts = HeldCasts()

    def forward(self, x: Tensor) -> Tensor:
        cast, dtype = self.casts.of, x.dtype
        bias = None if self.bias is None else cast("bias", self.bias, dtype)
        y = linear(x, cast("weight", self.weight, dtype), bias)
        if self.lora_a is not None and self.lora_b is not None:
            low = linear(x, cast("lora_a", self.lora_a, dtype))
            y = y + self.lora_scale * linear(low, cast("lora_b", self.lora_b, dtype))
        return y


class RMSNorm(nn.Module):
    """Root-mean-square norm. As in Gemma, a weight of 0 scales by 1.

    Example:
        >>> tokens, gate = RMSNorm(2)(torch.tensor([[[3.0, 3.0]]]))
        >>> tokens.round(decimals=3).tolist(), gate
        ([[[1.0, 1.0]]], None)
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the normed tokens (B, L, D) and no gate."""
        return (_normed(x) * (1 + self.weight.float())).to(x.dtype), None


class AdaptiveRMSNorm(nn.Module):
    """Root-mean-square norm with scale, shift and gate from a condition (π0.5's flow time).

    At initialization the scale is 1, the shift 0 and the gate 1.

    Example:
        >>> norm = AdaptiveRMSNorm(4)
        >>> tokens, gate = norm(torch.zeros(2, 6, 4), condition=torch.zeros(2, 3, 4))
        >>> tokens.shape, gate.shape  # (B, L, D)
        (torch.Size([2, 6, 4]), torch.Size([2, 6, 4]))
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = Linear(width, 3 * width)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)
        with torch.no_grad():
            self.dense.bias[2 * width :] = 1.0

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the normed tokens (B, L, D), and the gate of the residual branch (B, L, D).

        Args:
            x: Tokens. L is a multiple of M.
            condition: (B, M, D). Each applies to L / M neighboring tokens.

        Raises:
            ValueError: there is no condition.
        """
        if condition is None:
            raise ValueError(
                "an adaptive norm needs a condition, but condition is None; pass the embedded flow "
                "time"
            )
        # (B, M, 3 * D) -> (B, L, 3 * D), each flow time for its L / M tokens
        each = x.shape[1] // condition.shape[1]
        modulation = repeat(self.dense(condition), "b m d -> b (m each) d", each=each)
        scale, shift, gate = modulation.chunk(3, dim=-1)
        y = _normed(x) * (1 + scale.float()) + shift.float()
        return y.to(x.dtype), gate.to(x.dtype)


def _normed(x: Tensor) -> Tensor:
    """Return the tokens divided by their root mean square, float32."""
    y = x.float()
    return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)


def rotary_angles(positions: Tensor, head_dim: int) -> Tensor:
    """Return cosines and sines of the rotary angles (2, B, 1, L, head_dim / 2), float32."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    frequency = 10000.0 ** -(exponent / head_dim)
    angle = positions[:, None, :, None].float() * frequency  # (B, 1, L, head_dim / 2)
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Return queries or keys (B, heads, L, head_dim) rotated by their positions.

    Pairs are (i, i + head_dim / 2), as in Hugging Face's Gemma.
    """
    cosine, sine = rotation
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return rotated.to(x.dtype)
