"""From the weights of openpi, lerobot and their forks to our network.

Our parameter names are openpi's. `rename_weights` maps the other names to them, `sizes_of` infers
the network's sizes from the shapes, and `build` loads the weights strictly: a missing or surplus
key is an error that names it.
Sources: openpi `convert_jax_model_to_pytorch.py`; lerobot `modeling_pi0.py`; transformers `pi0`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pitune.policies.checkpoints.keys import (
    EMBEDDING,
    EXPERT,
    EXPERT_HEAD,
    LM_HEAD,
    VISION,
    VLM,
    check_keys,
)
from pitune.policies.network.config import Family, Pi0Config
from pitune.policies.network.extensions import initialize_extensions, new_parameters
from pitune.policies.network.pi0 import Pi0
from pitune.policies.network.siglip import SiglipConfig
from pitune.policies.network.sizes import GemmaConfig

_RENAMES = (
    # lerobot <= 0.3, from the transformers of that time
    (r"\.paligemma\.language_model\.lm_head\.", ".paligemma.lm_head."),
    (r"\.paligemma\.language_model\.model\.", ".paligemma.model.language_model."),
    (r"\.paligemma\.vision_tower\.", ".paligemma.model.vision_tower."),
    (r"\.paligemma\.multi_modal_projector\.", ".paligemma.model.multi_modal_projector."),
    # transformers' own PI0ForConditionalGeneration
    (r"^vlm\.", VLM),
    (r"^dit\.", EXPERT + "model."),
    (r"^embed_action_time\.", ""),
)


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Numbers of attention heads, which the shapes of the weights do not determine.

    Example:
        >>> Heads().num_heads
        8
    """

    num_heads: int = 8
    """Query heads of the language model and of the expert."""
    num_kv_heads: int = 1
    """Their key and value heads."""
    vision_heads: int | None = None
    """Heads of the vision tower. None for the published 72 channels per head."""


def rename_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under our names, without the unused heads.

    The prompt's embedding is `embed_tokens` if it exists, and `lm_head` otherwise. openpi ties the
    two and writes `lm_head`. lerobot writes both, but its `lm_head` is stale.

    Raises:
        ValueError: two weights get the same name.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        key = key.removeprefix("model.")
        for pattern, name in _RENAMES:
            key = re.sub(pattern, name, key)
        if key in renamed:
            raise ValueError(
                f"two weights are called {key!r}; the checkpoint mixes two formats, remove one"
            )
        renamed[key] = value

    # the language model's head is its embedding, and a file may hold only one of them
    head = renamed.pop(LM_HEAD, None)
    renamed.pop(EXPERT_HEAD, None)
    if head is not None:
        renamed.setdefault(EMBEDDING, head)
    return renamed


def family_of(weights: Mapping[str, Tensor]) -> Family:
    """Return the family of renamed weights, π0 or π0.5.

    Raises:
        ValueError: they belong to neither.
    """
    marks: dict[str, Family] = {"state_proj.weight": "pi0", "time_mlp_in.weight": "pi05"}
    families = [family for key, family in marks.items() if key in weights]
    if len(families) != 1:
        raise ValueError(
            "the weights are neither π0's nor π0.5's: of state_proj.weight (π0) and "
            f"time_mlp_in.weight (π0.5) there are {len(families)}, and the keys begin with "
            f"{sorted(weights)[:3]}; take a π0 or π0.5 checkpoint"
        )
    return families[0]


def sizes_of(weights: Mapping[str, Tensor], heads: Heads, action_horizon: int) -> Pi0Config:
    """Return the network's sizes from the shapes of renamed weights.

    Raises:
        ValueError: a weight that determines a size is missing, or the heads do not divide it.
    """

    def shape(key: str) -> torch.Size:
        if key not in weights:
            raise ValueError(f"the checkpoint lacks the weight {key!r}; take a complete checkpoint")
        return weights[key].shape

    family = family_of(weights)
    action_dim = shape("action_in_proj.weight")[1]
    return Pi0Config(
        # π0.5 has its state in the prompt, and no layer for it
        state_dim=shape("state_proj.weight")[1] if family == "pi0" else action_dim,
        action_dim=action_dim,
        action_horizon=action_horizon,
        expert=_tower(EXPERT + "model.", shape, weights, heads, adaptive=family == "pi05"),
        family=family,
        vlm=_tower(VLM + "language_model.", shape, weights, heads, adaptive=False),
        vision=_vision_tower(shape, weights, heads),
        vocab_size=shape(EMBEDDING)[0],
    )


def _vision_tower(
    shape: Callable[[str], torch.Size], weights: Mapping[str, Tensor], heads: Heads
) -> SiglipConfig:
    """Return the sizes of the vision tower."""
    # (D, C, Y, X), the kernel of a convolution
    width, _, patch, _ = shape(VISION + "embeddings.patch_embedding.weight")
    if heads.vision_heads is None and width % 72:
        raise ValueError(
            f"the vision tower is {width} wide, which is not the published 72 channels per "
            "head; write the number of heads into arch.json beside the weights "
            '({"vision": {"num_attention_heads": ...}})'
        )

    # (patches, D), the patches of a square picture
    patches = shape(VISION + "embeddings.position_embedding.weight")[0]
    return SiglipConfig(
        width=width,
        depth=_depth(VISION + "encoder.layers.", weights),
        mlp_dim=shape(VISION + "encoder.layers.0.mlp.fc1.weight")[0],
        num_heads=width // 72 if heads.vision_heads is None else heads.vision_heads,
        image_size=round(patches**0.5) * patch,
        patch_size=patch,
    )


def _tower(
    prefix: str,
    shape: Callable[[str], torch.Size],
    weights: Mapping[str, Tensor],
    heads: Heads,
    *,
    adaptive: bool,
) -> GemmaConfig:
    """Return the sizes of the tower whose parameters begin with a prefix."""
    # (kv heads * head dim, D)
    key_dim, width = shape(prefix + "layers.0.self_attn.k_proj.weight")
    query_dim = shape(prefix + "layers.0.self_attn.q_proj.weight")[0]
    head_dim, rest = divmod(key_dim, heads.num_kv_heads)
    if rest or query_dim != heads.num_heads * head_dim:
        raise ValueError(
            f"{prefix}layers.0: {query_dim} query and {key_dim} key channels do not make "
            f"{heads.num_heads} query and {heads.num_kv_heads} key heads; write their numbers "
            "into arch.json beside the weights "
            '({"vlm": {"num_heads": ..., "num_kv_heads": ...}})'
        )
    return GemmaConfig(
        width=width,
        depth=_depth(prefix + "layers.", weights),
        mlp_dim=shape(prefix + "layers.0.mlp.gate_proj.weight")[0],
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=head_dim,
        adaptive=adaptive,
    )


def _depth(prefix: str, weights: Mapping[str, Tensor]) -> int:
    """Return the number of layers. A gap among them fails later, when the weights are loaded."""
    numbers = [int(k[len(prefix) :].split(".")[0]) for k in weights if k.startswith(prefix)]
    return max(numbers, default=-1) + 1


def build(config: Pi0Config, weights: Mapping[str, Tensor], source: Path) -> Pi0:
    """Return the network with renamed weights, which it shares without a copy.

    Published weights have no parameters of the config's extensions and options. Those get their
    initial values.

    Raises:
        ValueError: keys are missing or surplus, shapes differ, or an option would change the
            numbers of pretrained weights.
    """
    config.options.check_pretrained()
    with torch.device("meta"):
        network = Pi0(config)
    new = new_parameters(network)
    published = {key: value for key, value in network.state_dict().items() if key not in new}
    check_keys(published, weights, source)
    network.load_state_dict(weights, strict=False, assign=True)
    initialize_extensions(network)
    return network.requires_grad_(True)
