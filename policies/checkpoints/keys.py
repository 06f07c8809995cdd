"""Names and shapes of a checkpoint's weights, compared before they are loaded or written.

`openpi_keys` and `lerobot_keys` list the weights of the two references' PyTorch models for given
sizes. They are written down here independently of our network, so that an export which drifts from
the references fails.
Source: openpi `models_pytorch/pi0_pytorch.py`, `gemma_pytorch.py`; lerobot `modeling_pi0.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pitune.policies.network.config import Pi0Config
from pitune.policies.network.siglip import SiglipConfig
from pitune.policies.network.sizes import GemmaConfig

VLM = "paligemma_with_expert.paligemma.model."
EXPERT = "paligemma_with_expert.gemma_expert."
EMBEDDING = VLM + "language_model.embed_tokens.weight"
LM_HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
EXPERT_HEAD = EXPERT + "lm_head.weight"
VISION = VLM + "vision_tower.vision_model."

Shapes = dict[str, tuple[int, ...]]


def check_keys(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: Path) -> None:
    """Fail if weights differ from the network's in their names or shapes.

    Raises:
        ValueError: names the missing, surplus and misshapen weights.
    """
    differences = key_differences(expected, weights)
    if differences:
        raise ValueError(
            f"{source} does not fit the network: {differences}; take a checkpoint of this network"
        )


def check_written_keys(format: str, reference: Shapes, weights: Mapping[str, Tensor]) -> None:
    """Fail if weights differ from those that another package's reader expects.

    Args:
        format: Name of the format, for the message.
        reference: The reader's own names and shapes.
        weights: The weights about to be written.

    Raises:
        ValueError: names the missing, surplus and misshapen weights.
    """
    expected = {key: torch.empty(shape, device="meta") for key, shape in reference.items()}
    differences = key_differences(expected, weights)
    if differences:
        raise ValueError(
            f"{format} cannot read these weights: {differences}; save with format='pitune'"
        )


def key_differences(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Return the missing, surplus and misshapen weights as text, empty if there are none."""
    missing = sorted(expected.keys() - weights.keys())
    surplus = sorted(weights.keys() - expected.keys())
    wrong = {
        key: (tuple(weights[key].shape), tuple(expected[key].shape))
        for key in sorted(expected.keys() & weights.keys())
        if weights[key].shape != expected[key].shape
    }
    if not (missing or surplus or wrong):
        return ""
    return f"missing keys {missing}, surplus keys {surplus}, wrong shapes (found, expected) {wrong}"


def openpi_keys(config: Pi0Config) -> Shapes:
    """Return the weights of openpi's `PI0Pytorch` of these sizes, by name.

    openpi ties the prompt's embedding to `lm_head` and stores only the latter. The expert's unused
    `lm_head` must be present.

    Raises:
        ValueError: the sizes have no vision-language model.
    """
    vlm, vision = config.vlm, config.vision
    if vlm is None or vision is None:
        raise ValueError(
            f"openpi's model has a vision-language model, but vlm={vlm}, vision={vision}; give "
            "the sizes of both"
        )
    width = config.expert.width
    # output heads of both language models, the first of which holds the embedding
    keys: Shapes = {
        LM_HEAD: (config.vocab_size, vlm.width),
        EXPERT_HEAD: (config.vocab_size, width),
    }

    # layers around the expert
    keys |= _linear("action_in_proj", config.action_dim, width)
    keys |= _linear("action_out_proj", width, config.action_dim)
    if config.family == "pi0":
        keys |= _linear("state_proj", config.state_dim, width)
        keys |= _linear("action_time_mlp_in", 2 * width, width)
        keys |= _linear("action_time_mlp_out", width, width)
    else:
        keys |= _linear("time_mlp_in", width, width) | _linear("time_mlp_out", width, width)

    # towers
    keys |= _siglip_keys(vision)
    keys |= _linear(f"{VLM}multi_modal_projector.linear", vision.width, vlm.width)
    keys |= _gemma_keys(f"{VLM}language_model.", vlm)
    return keys | _gemma_keys(f"{EXPERT}model.", config.expert)


def lerobot_keys(config: Pi0Config) -> Shapes:
    """Return the weights of lerobot's `PI0Policy` or `PI05Policy` of these sizes, by name.

    They are openpi's after `model.`, with both `embed_tokens` and `lm_head`.
    """
    keys = openpi_keys(config)
    keys[EMBEDDING] = keys[LM_HEAD]
    return {f"model.{key}": shape for key, shape in keys.items()}


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    weight: Shapes = {f"{name}.weight": (outputs, inputs)}
    return weight | {f"{name}.bias": (outputs,)} if bias else weight


def _layer_norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _gemma_norm(name: str, config: GemmaConfig) -> Shapes:
    if config.adaptive:
        return _linear(f"{name}.dense", config.width, 3 * config.width)
    return {f"{name}.weight": (config.width,)}


def _gemma_keys(prefix: str, config: GemmaConfig) -> Shapes:
    """Return the weights of a tower of the language model, without embeddings."""
    width, queries = config.width, config.num_heads * config.head_dim
    shared = config.num_kv_heads * config.head_dim
    keys = _gemma_norm(f"{prefix}norm", config)
    for i in range(config.depth):
        layer = f"{prefix}layers.{i}"
        # norms
        keys |= _gemma_norm(f"{layer}.input_layernorm", config)
        keys |= _gemma_norm(f"{layer}.post_attention_layernorm", config)
        # attention
        keys |= _linear(f"{layer}.self_attn.q_proj", width, queries, bias=False)
        keys |= _linear(f"{layer}.self_attn.k_proj", width, shared, bias=False)
        keys |= _linear(f"{layer}.self_attn.v_proj", width, shared, bias=False)
        keys |= _linear(f"{layer}.self_attn.o_proj", queries, width, bias=False)
        # feed-forward part
        keys |= _linear(f"{layer}.mlp.gate_proj", width, config.mlp_dim, bias=False)
        keys |= _linear(f"{layer}.mlp.up_proj", width, config.mlp_dim, bias=False)
        keys |= _linear(f"{layer}.mlp.down_proj", config.mlp_dim, width, bias=False)
    return keys


def _siglip_keys(config: SiglipConfig) -> Shapes:
    """Return the weights of the vision tower."""
    width, patch = config.width, config.patch_size
    # embeddings
    keys: Shapes = {
        f"{VISION}embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{VISION}embeddings.patch_embedding.bias": (width,),
        f"{VISION}embeddings.position_embedding.weight": (config.num_patches, width),
    }
    keys |= _layer_norm(f"{VISION}post_layernorm", width)
    # encoder layers
    for i in range(config.depth):
        layer = f"{VISION}encoder.layers.{i}"
        keys |= _layer_norm(f"{layer}.layer_norm1", width)
        keys |= _layer_norm(f"{layer}.layer_norm2", width)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            keys |= _linear(f"{layer}.self_attn.{part}", width, width)
        keys |= _linear(f"{layer}.mlp.fc1", width, config.mlp_dim)
        keys |= _linear(f"{layer}.mlp.fc2", config.mlp_dim, width)
    return keys
