"""What each leaf of an openpi JAX checkpoint is called, and how it lies, in PyTorch.

JAX keeps matrices as (in, out), heads as an axis of their own, and all layers of a tower in one
leaf; PyTorch keeps (out, in) and one tensor per layer. A rule names the PyTorch parameters that
one layer of a leaf holds, and the function that takes them out of it.
Letters: D width of a tower, M hidden width, N query heads, K key and value heads, h head dim,
C colors, Y, X pixels.
Source: openpi `models/pi0.py`, `models/gemma.py`, `models/siglip.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from pitune.policies.network.config import Family

VLM = "paligemma_with_expert.paligemma.model."
EXPERT = "paligemma_with_expert.gemma_expert.model."
PROJECTIONS: dict[Family, tuple[str, ...]] = {
    "pi0": (
        "state_proj",
        "action_in_proj",
        "action_out_proj",
        "action_time_mlp_in",
        "action_time_mlp_out",
    ),
    "pi05": ("action_in_proj", "action_out_proj", "time_mlp_in", "time_mlp_out"),
}
"""The linear layers around the expert; JAX and PyTorch call them the same."""


class Rule(NamedTuple):
    """How one leaf becomes PyTorch parameters."""

    names: tuple[str, ...]
    """The parameters; `{layer}` stands for the layer's number."""
    rank: int
    """Number of axes of one layer."""
    split: Callable[[Tensor], list[Tensor]]
    """From one layer of the leaf to the parameters, in the order of `names`."""

    @property
    def stacked(self) -> bool:
        """Whether the leaf holds all layers, on its first axis."""
        return "{layer}" in self.names[0]


def same(x: Tensor) -> list[Tensor]:
    """Leave scales, biases and the embedding as they are."""
    return [x]


def transposed(x: Tensor) -> list[Tensor]:
    """(in, out) -> (out, in)."""
    return [x.T]


def flat(x: Tensor) -> list[Tensor]:
    """(N, h) -> (N * h,): the bias of a projection to heads."""
    return [x.flatten()]


def without_first(x: Tensor) -> list[Tensor]:
    """(1, patches, D) -> (patches, D)."""
    return [x[0]]


def patches(x: Tensor) -> list[Tensor]:
    """(Y, X, C, D) -> (D, C, Y, X)."""
    return [x.permute(3, 2, 0, 1)]


def to_heads(x: Tensor) -> list[Tensor]:
    """(D, N, h) -> (N * h, D), the vision tower's order."""
    return [x.flatten(1).T]


def query(x: Tensor) -> list[Tensor]:
    """(N, D, h) -> (N * h, D), the language model's order."""
    return [x.transpose(1, 2).flatten(0, 1)]


def key_value(x: Tensor) -> list[Tensor]:
    """(2, K, D, h) -> (K * h, D) twice."""
    return query(x[0]) + query(x[1])


def from_heads(x: Tensor) -> list[Tensor]:
    """(N, h, D) -> (D, N * h)."""
    return [x.flatten(0, 1).T]


def gate_up(x: Tensor) -> list[Tensor]:
    """(2, D, M) -> (M, D) twice."""
    return [x[0].T, x[1].T]


def rules(family: Family) -> dict[str, Rule]:
    """Return the rule of every leaf that a checkpoint of this family has, by the leaf's path."""
    found = _vision()
    found["PaliGemma/llm/embedder/input_embedding"] = Rule(
        (f"{VLM}language_model.embed_tokens.weight",), 2, same
    )
    found |= _gemma("", f"{VLM}language_model.", adaptive=False)
    found |= _gemma("_1", EXPERT, adaptive=family == "pi05")
    for name in PROJECTIONS[family]:
        found |= _dense(name, name)
    return found


def _dense(leaf: str, name: str) -> dict[str, Rule]:
    """Return the rules of a linear layer."""
    return {
        f"{leaf}/kernel": Rule((f"{name}.weight",), 2, transposed),
        f"{leaf}/bias": Rule((f"{name}.bias",), 1, same),
    }


def _scale_bias(leaf: str, name: str) -> dict[str, Rule]:
    """Return the rules of a layer norm."""
    return {
        f"{leaf}/scale": Rule((f"{name}.weight",), 1, same),
        f"{leaf}/bias": Rule((f"{name}.bias",), 1, same),
    }


def _vision() -> dict[str, Rule]:
    """Return the rules of the vision tower and its projector."""
    tower = f"{VLM}vision_tower.vision_model."
    leaf, name = "PaliGemma/img/Transformer/encoderblock", f"{tower}encoder.layers.{{layer}}"
    found = {
        "PaliGemma/img/embedding/kernel": Rule(
            (f"{tower}embeddings.patch_embedding.weight",), 4, patches
        ),
        "PaliGemma/img/embedding/bias": Rule((f"{tower}embeddings.patch_embedding.bias",), 1, same),
        "PaliGemma/img/pos_embedding": Rule(
            (f"{tower}embeddings.position_embedding.weight",), 3, without_first
        ),
    }
    for i in (0, 1):
        found |= _scale_bias(f"{leaf}/LayerNorm_{i}", f"{name}.layer_norm{i + 1}")
        found |= _dense(f"{leaf}/MlpBlock_0/Dense_{i}", f"{name}.mlp.fc{i + 1}")
    attention = f"{leaf}/MultiHeadDotProductAttention_0"
    for part in ("query", "key", "value"):
        parameter = f"{name}.self_attn.{part[0]}_proj"
        found[f"{attention}/{part}/kernel"] = Rule((f"{parameter}.weight",), 3, to_heads)
        found[f"{attention}/{part}/bias"] = Rule((f"{parameter}.bias",), 2, flat)
    parameter = f"{name}.self_attn.out_proj"
    found[f"{attention}/out/kernel"] = Rule((f"{parameter}.weight",), 3, from_heads)
    found[f"{attention}/out/bias"] = Rule((f"{parameter}.bias",), 1, same)
    found |= _scale_bias("PaliGemma/img/Transformer/encoder_norm", f"{tower}post_layernorm")
    found |= _dense("PaliGemma/img/head", f"{VLM}multi_modal_projector.linear")
    return found


def _gemma(suffix: str, prefix: str, adaptive: bool) -> dict[str, Rule]:
    """Return the rules of a tower of the language model; the expert's leaves end in `_1`."""
    leaf, name = "PaliGemma/llm/layers", f"{prefix}layers.{{layer}}"
    attention, mlp = f"{name}.self_attn", f"{name}.mlp"
    found = {
        f"{leaf}/attn/q_einsum{suffix}/w": Rule((f"{attention}.q_proj.weight",), 3, query),
        f"{leaf}/attn/kv_einsum{suffix}/w": Rule(
            (f"{attention}.k_proj.weight", f"{attention}.v_proj.weight"), 4, key_value
        ),
        f"{leaf}/attn/attn_vec_einsum{suffix}/w": Rule(
            (f"{attention}.o_proj.weight",), 3, from_heads
        ),
        f"{leaf}/mlp{suffix}/gating_einsum": Rule(
            (f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"), 3, gate_up
        ),
        f"{leaf}/mlp{suffix}/linear": Rule((f"{mlp}.down_proj.weight",), 2, transposed),
    }
    for norm, parameter in (
        (f"{leaf}/pre_attention_norm{suffix}", f"{name}.input_layernorm"),
        (f"{leaf}/pre_ffw_norm{suffix}", f"{name}.post_attention_layernorm"),
        (f"PaliGemma/llm/final_norm{suffix}", f"{prefix}norm"),
    ):
        if adaptive:
            found |= _dense(f"{norm}/Dense_0", f"{parameter}.dense")
        else:
            found[f"{norm}/scale"] = Rule((f"{parameter}.weight",), 1, same)
    return found
