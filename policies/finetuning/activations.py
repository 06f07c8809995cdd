"""How much a training step keeps for its gradient, estimated from the sizes of the network.

Counted is what autograd saves in the flow-matching loss, one point of flow time per observation:
the inputs of layers that are trained, and what gradients need to pass through frozen ones. On the
CPU the estimate is within 15 % of what was measured. Attention with a mask and shared heads falls
back to a plain one on CUDA, which keeps its weights and a copy of keys and values per query head:
this is counted there, but was not measured.
Letters: D width, M hidden width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pitune.policies.finetuning.trainable import group_of, trained_parameters
from pitune.policies.network.gemma import GemmaConfig
from pitune.policies.network.pi0 import Pi0
from pitune.policies.network.siglip import SiglipConfig
from pitune.policies.policy import FlowPolicy

FLOAT32 = 4
"""Bytes of a number; norms compute in float32 whatever the rest does."""


class Pass(NamedTuple):
    """One pass of a block through a tower, per observation."""

    depth: int
    """Number of layers."""
    layer: int
    """What a layer keeps [bytes]."""
    entrance: int
    """What a layer is given and, with gradient checkpointing, keeps [bytes]."""


def activation_bytes(policy: FlowPolicy, batch_size: int) -> int:
    """Estimate what the flow-matching loss of a batch keeps for its gradient [bytes].

    A tower keeps activations if it, or a tower whose output it reads, is trained.
    """
    network, config = policy.network, policy.network.config
    trained = {group_of(name) for name, _ in trained_parameters(network)}
    if not trained:
        return 0
    size, fused = network.compute_dtype.itemsize, policy.device.type == "cpu"
    pictures, prompt = policy.preprocessor.config.pictures, policy.preprocessor.config.prompt
    cameras = 0 if pictures is None else len(pictures.cameras)
    patches = 0 if config.vision is None else cameras * config.vision.num_patches
    prefix = patches + (0 if prompt is None else prompt.max_tokens)
    passes: list[Pass] = []
    if config.vision is not None and "vision" in trained:
        passes.append(_vision(config.vision, patches, size))
    if config.vlm is not None and trained & {"vision", "vlm"}:
        passes.append(_gemma(config.vlm, prefix, prefix, size, fused, "vlm" in trained))
    state = int(config.family == "pi0")
    blocks = [(1, prefix + 1)] if state else []
    blocks.append((config.action_horizon, prefix + state + config.action_horizon))
    for tokens, keys in blocks:
        passes.append(_gemma(config.expert, tokens, keys, size, fused, "action_expert" in trained))
    return batch_size * _kept(passes, network.expert.gradient_checkpointing) + _casts(network)


def _kept(passes: list[Pass], gradient_checkpointing: bool) -> int:
    """Return what all passes keep per observation, at most one whole layer if recomputed."""
    if gradient_checkpointing:
        entrances = sum(depth * entrance for depth, _, entrance in passes)
        return entrances + max(layer for _, layer, _ in passes)
    return sum(depth * layer for depth, layer, _ in passes)


def _vision(config: SiglipConfig, tokens: int, size: int) -> Pass:
    """Return the pass of a trained vision tower: norms, attention, feed-forward part."""
    width = config.width
    each = 2 * (FLOAT32 + size) * width + 5 * size * width + 2 * size * config.mlp_dim
    return Pass(config.depth, tokens * each, tokens * width * size)


def _gemma(
    config: GemmaConfig, tokens: int, keys: int, size: int, fused: bool, trained: bool
) -> Pass:
    """Return the pass of a block through a tower of the language model.

    Args:
        config: Sizes.
        tokens: Of the block.
        keys: Tokens that the block attends to, itself included.
        size: Of one number of an activation [bytes].
        fused: Whether attention keeps neither its weights nor keys per query head.
        trained: Whether the tower itself is; gradients only pass through a frozen one.
    """
    width, queries = config.width, config.num_heads * config.head_dim
    normed = FLOAT32 * (trained or config.adaptive)
    norms = 2 * (FLOAT32 + normed + trained * size) * width
    if config.adaptive:  # 1 + scale; scale, shift and gate in one; what the gate multiplies
        norms += 2 * (FLOAT32 + 3 * size + size) * width
    each = norms + (3 + trained) * size * config.mlp_dim + (2 + trained) * size * queries
    pair = 2 * keys * config.num_kv_heads * config.head_dim * size
    attention = pair
    if not fused:
        attention = 2 * keys * queries * size + tokens * keys * config.num_heads * FLOAT32
    return Pass(config.depth, tokens * each + attention, tokens * width * size + pair)


def _casts(network: Pi0) -> int:
    """Return the copies of master weights in the precision of the computation [bytes].

    A layer keeps one per pass for the gradient of its input; π0's expert has two passes. With
    gradient checkpointing they last for a layer only, and are neglected.
    """
    if network.compute_dtype == torch.float32 or network.expert.gradient_checkpointing:
        return 0
    passes = {"vision": 1, "vlm": 1, "action_expert": 1 + (network.config.family == "pi0")}
    numbers = sum(
        value.numel() * passes.get(group_of(name), 0)
        for name, value in trained_parameters(network)
        if value.ndim == 2 and "embed" not in name
    )
    return numbers * network.compute_dtype.itemsize
