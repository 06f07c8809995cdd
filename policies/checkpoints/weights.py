"""One set of parameter names: from what openpi, lerobot and their forks write to ours.

Ours are openpi's. Everything else is renamed by the rules here and then loaded strictly: a missing
or a surplus key is an error that names it, never a warning.
Sources: openpi `convert_jax_model_to_pytorch.py`; lerobot `modeling_pi0.py`; transformers `pi0`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pitune.policies.network.config import Family, Pi0Config
from pitune.policies.network.gemma import GemmaConfig
from pitune.policies.network.pi0 import Pi0
from pitune.policies.network.siglip import SiglipConfig

VLM = "paligemma_with_expert.paligemma.model."
EXPERT = "paligemma_with_expert.gemma_expert."
EMBEDDING = VLM + "language_model.embed_tokens.weight"
LM_HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
EXPERT_HEAD = EXPERT + "lm_head.weight"
VISION = VLM + "vision_tower.vision_model."

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
    """What the shapes of the weights do not tell."""

    num_heads: int = 8
    num_kv_heads: int = 1
    vision_heads: int | None = None
    """None for the published 72 channels per head."""


def canonical(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under our names, without what no network of ours has.

    The embedding of the prompt is `embed_tokens` if that is there, and else `lm_head`: openpi ties
    the two and writes the latter; lerobot writes both, of which `lm_head` is stale.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        key = key.removeprefix("model.")
        for pattern, name in _RENAMES:
            key = re.sub(pattern, name, key)
        if key in renamed:
            raise ValueError(f"two weights are called {key!r}; the checkpoint mixes two formats")
        renamed[key] = value
    head = renamed.pop(LM_HEAD, None)
    renamed.pop(EXPERT_HEAD, None)
    if head is not None:
        renamed.setdefault(EMBEDDING, head)
    return renamed


def family_of(weights: dict[str, Tensor]) -> Family:
    """Return whether canonical weights are π0's or π0.5's.

    Raises:
        ValueError: they are neither's.
    """
    found: list[Family] = []
    if "state_proj.weight" in weights:
        found.append("pi0")
    if "time_mlp_in.weight" in weights:
        found.append("pi05")
    if len(found) != 1:
        raise ValueError(
            "the weights are neither π0's nor π0.5's: of state_proj.weight (π0) and "
            f"time_mlp_in.weight (π0.5) there are {len(found)}; its keys begin with "
            f"{sorted(weights)[:3]}"
        )
    return found[0]


def sizes_of(weights: dict[str, Tensor], heads: Heads, action_horizon: int) -> Pi0Config:
    """Return the network's sizes from the shapes of canonical weights.

    Raises:
        ValueError: a weight that tells a size is missing, or the heads do not divide it.
    """

    def shape(key: str) -> torch.Size:
        if key not in weights:
            raise ValueError(f"the checkpoint lacks the weight {key!r}; is the file complete?")
        return weights[key].shape

    family = family_of(weights)
    expert = _tower(EXPERT + "model.", shape, weights, heads, adaptive=family == "pi05")
    vlm = _tower(VLM + "language_model.", shape, weights, heads, adaptive=False)
    width, _, patch, _ = shape(VISION + "embeddings.patch_embedding.weight")
    vision_heads = heads.vision_heads
    if vision_heads is None:
        if width % 72:
            raise ValueError(
                f"the vision tower is {width} wide, which is not the published 72 channels per "
                "head; say how many heads it has in arch.json beside the weights "
                '({"vision": {"num_attention_heads": ...}})'
            )
        vision_heads = width // 72
    patches = shape(VISION + "embeddings.position_embedding.weight")[0]
    action_dim = shape("action_in_proj.weight")[1]
    return Pi0Config(
        state_dim=shape("state_proj.weight")[1] if family == "pi0" else action_dim,
        action_dim=action_dim,
        action_horizon=action_horizon,
        expert=expert,
        family=family,
        vlm=vlm,
        vision=SiglipConfig(
            width=width,
            depth=_depth(VISION + "encoder.layers.", weights),
            mlp_dim=shape(VISION + "encoder.layers.0.mlp.fc1.weight")[0],
            num_heads=vision_heads,
            image_size=round(patches**0.5) * patch,
            patch_size=patch,
        ),
        vocab_size=shape(EMBEDDING)[0],
    )


def _tower(
    prefix: str,
    shape: Callable[[str], torch.Size],
    weights: dict[str, Tensor],
    heads: Heads,
    *,
    adaptive: bool,
) -> GemmaConfig:
    """Return the sizes of the tower whose parameters begin with a prefix."""
    key_dim, width = shape(prefix + "layers.0.self_attn.k_proj.weight")
    query_dim = shape(prefix + "layers.0.self_attn.q_proj.weight")[0]
    head_dim, rest = divmod(key_dim, heads.num_kv_heads)
    if rest or query_dim != heads.num_heads * head_dim:
        raise ValueError(
            f"{prefix}layers.0: {query_dim} query and {key_dim} key channels do not make "
            f"{heads.num_heads} query and {heads.num_kv_heads} key heads; say how many there are "
            'in arch.json beside the weights ({"vlm": {"num_heads": ..., "num_kv_heads": ...}})'
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


def _depth(prefix: str, weights: dict[str, Tensor]) -> int:
    """Return how many layers there are; a gap among them shows when they are loaded."""
    numbers = [int(k[len(prefix) :].split(".")[0]) for k in weights if k.startswith(prefix)]
    return max(numbers, default=-1) + 1


def build(config: Pi0Config, weights: dict[str, Tensor], source: Path) -> Pi0:
    """Return the network around canonical weights, which it takes over without copying them.

    Raises:
        ValueError: keys are missing or surplus, or shapes differ.
    """
    with torch.device("meta"):
        network = Pi0(config)
    check_keys(network.state_dict(), weights, source)
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(True)


def check_keys(expected: dict[str, Tensor], found: dict[str, Tensor], source: Path) -> None:
    """Refuse weights that are not exactly what is expected.

    Raises:
        ValueError: names what is missing, surplus or of the wrong shape.
    """
    differences = key_differences(expected, found)
    if differences:
        raise ValueError(f"{source} does not fit the network: {differences}")


def key_differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Return in words what is missing, surplus or of the wrong shape; empty if nothing is."""
    missing = sorted(expected.keys() - found.keys())
    surplus = sorted(found.keys() - expected.keys())
    wrong = {
        key: (tuple(found[key].shape), tuple(expected[key].shape))
        for key in expected.keys() & found.keys()
        if found[key].shape != expected[key].shape
    }
    if not (missing or surplus or wrong):
        return ""
    return f"missing keys {missing}, surplus keys {surplus}, wrong shapes (found, expected) {wrong}"


MAPPED_BYTES = 256 * 2**20
"""Files from this size on stay mapped into memory. Smaller ones are copied: aligned memory gives
the same last bits whatever file the numbers came from."""


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; those of a large one are mapped into memory, not copied.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole safetensors file; a pickle is never opened.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {file}")
    with file.open("rb") as opened:
        start = opened.read(9)
    # a safetensors file has "{" after its header's length, whose own bytes may be anything
    if start[8:] != b"{" and (start.startswith(b"PK") or start.startswith(b"\x80")):
        raise ValueError(
            f"{file} is a pickle, which can run any code and is never loaded; convert it to "
            "safetensors with the program that wrote it"
        )
    try:
        with safe_open(file, framework="pt") as tensors:
            found = {key: tensors.get_tensor(key) for key in tensors.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is damaged or cut short ({error}); take a complete checkpoint"
        ) from error
    if file.stat().st_size < MAPPED_BYTES:
        found = {key: value.clone() for key, value in found.items()}
    return found
