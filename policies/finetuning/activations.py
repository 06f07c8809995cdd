"""Estimate of the activations that a training step keeps, from the sizes of the network.

The estimate counts the tensors that autograd saves in the flow-matching loss with one flow time per
observation: the inputs of trained layers, and the tensors that gradients need to pass through
frozen layers. On the CPU it is within 15 % of measurements. On CUDA, attention with a mask and
shared heads falls back to a plain implementation, which keeps its weights and a copy of keys and
values per query head. The estimate includes these, but was not measured on CUDA. Extensions are not
counted.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pitune.policies.finetuning.trainable import parameter_groups, trained_parameters
from pitune.policies.network.pi0 import Pi0
from pitune.policies.network.siglip import SiglipConfig
from pitune.policies.network.sizes import GemmaConfig
from pitune.policies.policy import FlowPolicy

FLOAT32 = 4
"""Bytes of a float32. Norms compute in it, whatever the precision of the towers."""


class Pass(NamedTuple):
    """One pass of a block through a tower, per observation.

    Example:
        >>> Pass(depth=18, layer=4096, entrance=512).layer
        4096
    """

    depth: int
    """Number of layers."""
    layer: int
    """Activations of a layer [bytes]."""
    entrance: int
    """Inputs of a layer, all that gradient checkpointing keeps of it [bytes]."""


def activation_bytes(policy: FlowPolicy, batch_size: int) -> int:
    """Return the estimated activations of the flow-matching loss of a batch [bytes].

    A tower keeps activations if it is trained, or a tower whose output it reads.
    """
    # trained groups
    network, config = policy.network, policy.network.config
    groups = parameter_groups(network)
    trained = {groups[name] for name, _ in trained_parameters(network)}
    if not trained:
        return 0
    size, fused = network.compute_dtype.itemsize, policy.device.type == "cpu"

    # tokens of the prefix
    pictures, prompt = policy.preprocessor.config.pictures, policy.preprocessor.config.prompt
    cameras = 0 if pictures is None else len(pictures.cameras)
    patches = 0 if config.vision is None else cameras * config.vision.num_patches
    prefix = patches + (0 if prompt is None else prompt.max_tokens)

    # passes that keep activations
    passes: list[Pass] = []
    if config.vision is not None and "vision" in trained:
        passes.append(_vision(config.vision, patches, size))
    if config.vlm is not None and trained & {"vision", "vlm"}:
        passes.append(_gemma(config.vlm, prefix, prefix, size, fused, "vlm" in trained))
    # π0's state token is a block of its own, before the chunk
    state = int(config.family == "pi0")
    blocks = [(1, prefix + 1)] if state else []
    blocks.append((config.action_horizon, prefix + state + config.action_horizon))
    for tokens, keys in blocks:
        passes.append(_gemma(config.expert, tokens, keys, size, fused, "action_expert" in trained))
    return batch_size * _kept(passes, network.expert.gradient_checkpointing) + _casts(network)


def _kept(passes: list[Pass], gradient_checkpointing: bool) -> int:
    """Return the activations of all passes per observation [bytes].

    With gradient checkpointing at most one layer's activations exist at a time.
    """
    if gradient_checkpointing:
        entrances = sum(depth * entrance for depth, _, entrance in passes)
        return entrances + max(layer for _, layer, _ in passes)
    return sum(depth * layer for depth, layer, _ in passes)


def _vision(config: SiglipConfig, tokens: int, size: int) -> Pass:
    """Return the pass of pictures through a trained vision tower."""
    width = config.width
    each = 2 * (FLOAT32 + size) * width + 5 * size * width + 2 * size * config.mlp_dim
    return Pass(config.depth, tokens * each, tokens * width * size)


def _gemma(
    config: GemmaConfig, tokens: int, keys: int, size: int, fused: bool, trained: bool
) -> Pass:
    """Return the pass of a block through a tower of the language model.

    Args:
        config: Sizes.
        tokens: Number of tokens in the block.
        keys: Number of tokens that the block attends to, itself included.
        size: Bytes of one activation.
        fused: Whether attention keeps neither its weights nor keys per query head.
        trained: Whether the tower is trained. Gradients only pass through a frozen one.
    """
    width, queries = config.width, config.num_heads * config.head_dim
    normed = FLOAT32 * (trained or config.adaptive)
    norms = 2 * (FLOAT32 + normed + trained * size) * width
    if config.adaptive:  # 1 + scale, the chunked modulation, and the input of the gate
        norms += 2 * (FLOAT32 + 3 * size + size) * width
    each = norms + (3 + trained) * size * config.mlp_dim + (2 + trained) * size * queries
    pair = 2 * keys * config.num_kv_heads * config.head_dim * size
    attention = pair
    if not fused:
        # weights of attention in float32, and keys and values per query head
        attention = 2 * keys * queries * size + tokens * keys * config.num_heads * FLOAT32
    return Pass(config.depth, tokens * each + attention, tokens * width * size + pair)


TOWERS = ("vision", "vlm", "action_expert")
"""Groups that compute in the network's precision."""


def _casts(network: Pi0) -> int:
    """Return the copies of master weights in the precision of the computation [bytes].

    All passes share the copy that a layer holds, with gradient checkpointing too.
    """
    if network.compute_dtype == torch.float32:
        return 0
    groups = parameter_groups(network)
    numbers = sum(
        value.numel()
        for name, value in trained_parameters(network)
        if value.ndim == 2 and "embed" not in name and groups[name] in TOWERS
    )
    return numbers * network.compute_dtype.itemsize
