"""Estimate of the activations that a training step keeps, from the sizes of the network.

The estimate counts the tensors that autograd saves in the flow-matching loss with one flow time per
observation: the inputs of trained layers, and the tensors that gradients need to pass through
frozen layers. On the CPU it is within 15 % of measurements. On CUDA, attention with a mask and
shared heads falls back to a plain implementation, which keeps its weights and a copy of keys and
values per query head. The estimate includes these, but was not measured on CUDA.

Of the network's options, those that lengthen a block or multiply its residual are counted:
hyper-connections, registers, state tokens and memory, and the predicted tokens of a language head
with their logits. A memory is counted for one decision. Registered extensions are not counted.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pitune.policies.finetuning.trainable import parameter_groups, trained_parameters
from pitune.policies.network.config import Pi0Config
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


class Block(NamedTuple):
    """A block of tokens in a tower, per observation.

    Example:
        >>> Block(tokens=50, keys=867).gated
        ()
    """

    tokens: int
    """Number of tokens, registers included."""
    keys: int
    """Number of tokens that they attend to, themselves included and registers left out."""
    gated: tuple[int, ...] = ()
    """Numbers of tokens of each kind that they read through gates."""


def activation_bytes(policy: FlowPolicy, batch_size: int, predicted: int = 0) -> int:
    """Return the estimated activations of the flow-matching loss of a batch [bytes].

    A tower keeps activations if it is trained, or a tower whose output it reads.

    Args:
        policy: The policy to train.
        batch_size: Observations.
        predicted: Tokens that a language head predicts for each, 0 without its loss.
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
    options = config.options
    registers = options.registers.prefix
    own = (registers,) if registers else ()

    # passes that keep activations. Registers of the prefix are trained inside the language model
    in_vlm = trained & {"vision", "vlm"} or (registers and "registers" in trained)
    passes: list[Pass] = []
    if config.vision is not None and "vision" in trained:
        passes.append(_vision(config.vision, patches, size))
    if config.vlm is not None and in_vlm:
        blocks = [Block(prefix + registers, prefix, own)]
        if predicted:
            blocks.append(Block(predicted, prefix + predicted, own))
        vlm, is_trained = config.vlm, "vlm" in trained
        passes.extend(_gemma(vlm, block, size, fused, is_trained) for block in blocks)
    streams = _Streams(
        options.hyper_connections.streams,
        options.hyper_connections.dynamic,
        "hyper_connections" in trained,
    )
    for block in _expert_blocks(config, prefix):
        of_block = _gemma(config.expert, block, size, fused, "action_expert" in trained)
        passes.append(_with_streams(of_block, config.expert, block, streams, size))
    kept = _kept(passes, network.expert.gradient_checkpointing)
    if predicted and config.vlm is not None and in_vlm:
        # hidden states and log-probabilities of all tokens of the vocabulary, float32
        kept += predicted * FLOAT32 * (config.vlm.width + config.vocab_size)
    if options.memory.is_on:
        kept += _memory_read(config, size)
    return batch_size * kept + _casts(network)


def _expert_blocks(config: Pi0Config, prefix: int) -> list[Block]:
    """Return the blocks of the action expert: the state, further tokens of it, and the chunk.

    Args:
        config: Sizes of the network.
        prefix: Number of tokens of pictures and prompt.
    """
    options = config.options
    side = (options.registers.prefix,) if options.registers.prefix else ()
    # π0's state token is a block of its own, before the chunk
    state = int(config.family == "pi0")
    blocks = [Block(1, prefix + 1, side)] if state else []
    if options.state_tokens.is_on:
        tokens = len(options.state_tokens.parts) + len(options.state_tokens.encoders)
        blocks.append(Block(tokens, prefix + state + tokens, side))
        side = (*side, tokens)
    if options.memory.is_on:
        tokens = options.memory.num_tokens
        blocks.append(Block(tokens, prefix + state + tokens, side))
    registers, horizon = options.registers.num, config.action_horizon
    own = (registers,) if registers else ()
    blocks.append(Block(horizon + registers, prefix + state + horizon, (*side, *own)))
    return blocks


def _memory_read(config: Pi0Config, size: int) -> int:
    """Return the activations of the actions' attention to a memory, per observation [bytes]."""
    width, tokens = config.expert.width, config.options.memory.num_tokens
    # norm, queries, output and its projection for each action, and two projections of the memory
    actions = config.action_horizon * width * (2 * FLOAT32 + 4 * size)
    return actions + tokens * width * 3 * size


class _Streams(NamedTuple):
    """Residual streams of a pass, 0 for the published one."""

    number: int
    dynamic: bool
    trained: bool


def _with_streams(
    of_block: Pass, config: GemmaConfig, block: Block, streams: _Streams, size: int
) -> Pass:
    """Return the pass of a block whose residual has several streams."""
    number, dynamic, trained = streams
    if not number:
        return of_block
    width = config.width
    # the streams, of which products with learned weights keep all
    part = number * width * size * (trained or dynamic)
    part += width * size * trained  # the part's output, for the gradient of its weights
    if dynamic:
        # normed streams for the weights, and their float32 copy in a lower precision
        part += number * width * FLOAT32 * (int(trained) + int(size < FLOAT32))
        part += 2 * number * (number + 2) * FLOAT32
    layer = of_block.layer + 2 * block.tokens * part
    entrance = of_block.entrance + (number - 1) * block.tokens * width * size
    return Pass(of_block.depth, layer, entrance)


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


def _gemma(config: GemmaConfig, block: Block, size: int, fused: bool, trained: bool) -> Pass:
    """Return the pass of a block through a tower of the language model.

    Args:
        config: Sizes.
        block: Its tokens, and those that they attend to.
        size: Bytes of one activation.
        fused: Whether attention keeps neither its weights nor keys per query head.
        trained: Whether the tower is trained. Gradients only pass through a frozen one.
    """
    tokens, keys = block.tokens, block.keys
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
    # the output of each gated attention
    attention += len(block.gated) * tokens * queries * size
    if not fused:
        attention += tokens * sum(block.gated) * config.num_heads * FLOAT32
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
