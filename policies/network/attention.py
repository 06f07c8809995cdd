"""Attention in the form that the fastest kernel of a device accepts.

On CUDA, torch has three fast kernels and a plain one that keeps all scores in memory. Their rules
are those of torch's `aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`:

- flash takes float16 and bfloat16, heads of up to 256 and fewer key heads, and no mask,
- memory-efficient takes float32 too, and a mask, and fewer key heads in torch 2.14, not in older
  versions,
- cuDNN takes float16 and bfloat16, a mask and fewer key heads, and heads of up to 128, or of up to
  256 with some versions and GPUs.

π0 has eight query heads on one key head of width 256. Where the memory-efficient kernel takes no
fewer key heads, a mask leaves only the plain kernel. So away from the host the key heads are
expanded, without a copy, and there is no mask where nothing is padded. A mask of bools is converted
once for all layers, and not in each of them. The numbers are the same in every form, and their
times on an H100 are in docs/devices.md.

In shapes, `prefix` is the number of tokens of the blocks before.
Letters: B rows, L tokens of this block.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention (B, heads, L, head dim) of queries to keys and values.

    Args:
        query: (B, heads, L, head dim).
        key: (B, kv heads, prefix + L, head dim), where the kv heads divide the heads.
        value: As the keys.
        mask: Added to the scores, see `additive`. None for a mask without effect.

    Example:
        >>> query, key = torch.randn(2, 4, 3, 8), torch.randn(2, 1, 5, 8)
        >>> attend(query, key, key, None).shape
        torch.Size([2, 4, 3, 8])
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads == kv_heads:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)
    if query.device.type == "cpu":  # its fast kernel takes fewer key heads
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    key, value = (expanded(part, heads) for part in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


def expanded(part: Tensor, heads: int) -> Tensor:
    """Return keys or values (B, heads, L, head dim) of fewer heads, each repeated.

    A single head is repeated without a copy.
    """
    b, kv_heads, length, dim = part.shape
    if kv_heads == 1:
        return part.expand(b, heads, length, dim)
    # (B, kv heads, each, L, head dim) -> (B, heads, L, head dim)
    each = part[:, :, None].expand(b, kv_heads, heads // kv_heads, length, dim)
    return each.reshape(b, heads, length, dim)


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a mask that is added to the scores: 0 where a token may attend, else minus infinity.

    Args:
        mask: True where a token may attend, or None.
        dtype: Precision of the queries.

    Example:
        >>> additive(torch.tensor([True, False]), torch.float32)
        tensor([0., -inf])
    """
    if mask is None or mask.dtype != torch.bool:
        return mask
    zeros = torch.zeros((), dtype=dtype, device=mask.device)
    return torch.where(mask, zeros, zeros - torch.inf)
