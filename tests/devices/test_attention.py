"""Attention has one result in every form, and the form that fast kernels of CUDA accept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from device_runs import policy_of
from pretend_device import device
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pitune.policies import FlowPolicy
from pitune.policies.network import attention as attention_module
from pitune.policies.network import siglip
from pitune.policies.network.attention import additive, attend, expanded


def tensors(heads: int, kv_heads: int, length: int = 6, past: int = 9) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    shapes = ((2, heads, length, 8), (2, kv_heads, past, 8), (2, kv_heads, past, 8))
    return tuple(torch.randn(shape) for shape in shapes)


def mask_of(length: int = 6, past: int = 9) -> Tensor:
    mask = torch.rand(2, 1, length, past) > 0.3
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 1), (8, 2), (4, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_every_form_gives_the_result_of_grouped_queries(
    heads: int, kv_heads: int, masked: bool
) -> None:
    query, key, value = tensors(heads, kv_heads)
    mask = mask_of() if masked else None
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    ours = attend(query, key, value, additive(mask, query.dtype))
    assert torch.equal(ours, expected)
    query, key, value = (part.to(device()) for part in (query, key, value))
    theirs = attend(
        query, key, value, additive(None if mask is None else mask.to(device()), query.dtype)
    )
    assert torch.allclose(theirs.cpu(), expected, atol=1e-5)


def test_a_single_key_head_is_expanded_without_a_copy() -> None:
    _, key, _ = tensors(8, 1)
    assert expanded(key, 8).data_ptr() == key.data_ptr()
    assert torch.equal(expanded(tensors(8, 2)[1], 8), tensors(8, 2)[1].repeat_interleave(4, 1))


@pytest.mark.parametrize("kind", ["state", "pi0 frozen bf16", "pi05 frozen bf16"])
def test_every_attention_has_a_form_that_a_fast_kernel_of_cuda_takes(
    kind: str, tiny_policy: Callable[..., FlowPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By rules of torch's `sdp_utils.cpp` that hold in every version, see `fast_kernels`."""
    policy = policy_of(kind, tiny_policy(), device())
    config = policy.network.config
    images = tokens = mask = None
    if config.vision is not None:
        images = torch.rand(2, 2, 3, config.vision.image_size, config.vision.image_size)
        tokens, mask = torch.ones(2, 6, dtype=torch.int64), torch.ones(2, 6, dtype=torch.bool)
        images, tokens, mask = (value.to(device()) for value in (images, tokens, mask))
    state = torch.zeros(2, config.state_dim, device=device())
    with recorded(monkeypatch) as forms, torch.no_grad():
        context = policy.network.encode(state, images, None, tokens, mask)
        for m in (1, 3):
            x = torch.randn(2, m, *policy.chunk_shape, device=device())
            policy.network.velocity(context, x, torch.ones(2, m, device=device()))
    assert forms
    for form in forms:
        assert fast_kernels(form), form


def test_grouped_queries_with_a_mask_leave_the_plain_kernel_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: the form on the host."""
    query, key, value = tensors(8, 1)
    with recorded(monkeypatch) as forms:
        attend(query, key, value, additive(mask_of(), query.dtype))
    assert [fast_kernels(form) for form in forms] == [[]]


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Give the arguments of each attention."""
    forms: list[dict[str, Any]] = []

    def attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        mask, grouped = options.get("attn_mask"), options.get("enable_gqa", False)
        shapes = {"query": query.shape, "key": key.shape, "dtype": query.dtype}
        forms.append({**shapes, "mask": mask, "grouped": grouped})
        return scaled_dot_product_attention(query, key, value, **options)

    with monkeypatch.context() as patch:
        for module in (attention_module, siglip):
            patch.setattr(module, "scaled_dot_product_attention", attention)
        yield forms


def fast_kernels(form: dict[str, Any]) -> list[str]:
    """Return the kernels of CUDA that take an attention in every version of torch.

    They are read from its sources, and nothing runs on CUDA here. `check_for_attn_mask` refuses a
    mask in flash. `check_batch_size_and_num_heads_dense` of the memory-efficient kernel takes
    grouped queries in torch 2.14, but not in older versions. Its `check_tensor_dtype` includes
    float32, that of flash does not. Flash takes heads of up to 256.
    """
    low = form["dtype"] in (torch.float16, torch.bfloat16)
    found = []
    if form["mask"] is None and low and form["query"][-1] <= 256:
        found.append("flash")
    if not form["grouped"] and form["query"][1] == form["key"][1]:
        found.append("memory-efficient")
    return found


def test_without_padding_there_is_no_mask(tiny_policy: Callable[..., FlowPolicy]) -> None:
    """Pictures and unpadded words attend as with a mask that is true everywhere."""
    policy = policy_of("pi0 frozen", tiny_policy(), torch.device("cpu"))
    network, config = policy.network, policy.network.config
    assert config.vision is not None
    images = torch.rand(2, 2, 3, config.vision.image_size, config.vision.image_size)
    tokens = torch.ones(2, 6, dtype=torch.int64)
    state, x = torch.randn(2, config.state_dim), torch.randn(2, 3, *policy.chunk_shape)
    outputs = []
    for mask in (None, torch.ones(2, 6, dtype=torch.bool)):
        context = network.encode(state, images, None, tokens, mask)
        assert (context.valid is None) == (mask is None)
        outputs.append(network.velocity(context, x, torch.full((2, 3), 0.5)).velocity)
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)
