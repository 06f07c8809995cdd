"""The attention of π0's full sizes runs in a fast kernel of CUDA."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pitune.policies.network.attention import additive, attend

pytestmark = pytest.mark.gpu
FAST = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
PREFIX, SUFFIX = 816, 51
"""Tokens of three pictures and 48 words, and of a state with 50 actions."""


def tensors(device: torch.device, dtype: torch.dtype, length: int) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    shapes = ((2, 8, length, 256), *2 * [(2, 1, PREFIX + SUFFIX, 256)])
    return tuple(torch.randn(shape, dtype=dtype, device=device) for shape in shapes)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_attention_needs_the_plain_kernel(
    masked: bool, dtype: torch.dtype, cuda: torch.device
) -> None:
    query, key, value = (x.requires_grad_() for x in tensors(cuda, dtype, SUFFIX))
    mask = None
    if masked:
        mask = torch.rand(2, 1, SUFFIX, PREFIX + SUFFIX, device=cuda) > 0.3
    bias = additive(mask, dtype)
    with sdpa_kernel(FAST):  # raises if none of them takes it
        found = attend(query, key, value, bias)
        found.float().square().mean().backward()
    with sdpa_kernel([SDPBackend.MATH]):
        expected = attend(query, key, value, bias)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_flash_refuses_the_mask(cuda: torch.device) -> None:
    """Negative control: a kernel that does not take the form raises an error here."""
    query, key, value = tensors(cuda, torch.bfloat16, SUFFIX)
    mask = torch.ones(2, 1, SUFFIX, PREFIX + SUFFIX, dtype=torch.bool, device=cuda)
    with (
        sdpa_kernel([SDPBackend.FLASH_ATTENTION]),
        pytest.raises(RuntimeError, match="No available kernel"),
    ):
        attend(query, key, value, additive(mask, query.dtype))
