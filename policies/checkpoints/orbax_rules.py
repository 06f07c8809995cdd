"""The PyTorch names and layouts of the leaves of an openpi JAX checkpoint.

JAX stores matrices as (in, out), heads as a separate axis, and all layers of a tower in one leaf.
PyTorch stores (out, in) and one tensor per layer. A rule names the PyTorch parameters in one layer
of a leaf, and the function that extracts them.
Letters: D width of a tower, C, Y, X image channels and pixels.
Source: openpi `models/pi0.py`, `models/gemma.py`, `models/siglip.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from einops import rearrange
from torch import Tensor

from pitune.policies.checkpoints.keys import EXPERT, VISION, VLM
from pitune.policies.network.config import Family

EXPERT_MODEL = EXPERT + "model."
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
"""The linear layers around the expert. JAX and PyTorch use the same names."""


class Rule(NamedTuple):
    """The conversion of one leaf to PyTorch parameters.

    Example:
        >>> Rule(("layers.{layer}.weight",), 2, transpose).stacked
        True
    """

    names: tuple[str, ...]
    """Names of the parameters. `{layer}` stands for the layer's number."""
    rank: int
    """Number of axes of one layer."""
    split: Callable[[Tensor], list[Tensor]]
    """Maps one layer of the leaf to the parameters, in the order of `names`."""

    @property
    def stacked(self) -> bool:
        """Whether the leaf's first axis is the layers."""
        return "{layer}" in self.names[0]


def keep(x: Tensor) -> list[Tensor]:
    """Return scales, biases and the embedding unchanged."""
    return [x]


def transpose(x: Tensor) -> list[Tensor]:
    """Return a matrix of PyTorch's layout."""
    return [rearrange(x, "inputs outputs -> outputs inputs")]


def flatten_bias(x: Tensor) -> list[Tensor]:
    """Return the bias of a projection to heads."""
    return [rearrange(x, "heads dim -> (heads dim)")]


def drop_first(x: Tensor) -> list[Tensor]:
    """Return position embeddings without the leading axis of length 1."""
    return [rearrange(x, "1 patches d -> patches d")]


def to_convolution(x: Tensor) -> list[Tensor]:
    """Return the patch embedding's kernel."""
    return [rearrange(x, "y x c d -> d c y x")]


def to_heads(x: Tensor) -> list[Tensor]:
    """Return a projection to heads, from the vision tower's layout."""
    return [rearrange(x, "d heads dim -> (heads dim) d")]


def query(x: Tensor) -> list[Tensor]:
    """Return a projection to heads, from the language model's layout."""
    return [rearrange(x, "heads d dim -> (heads dim) d")]


def key_value(x: Tensor) -> list[Tensor]:
    """Return key and value projections, from one leaf (2, heads, D, dim)."""
    return query(x[0]) + query(x[1])


def from_heads(x: Tensor) -> list[Tensor]:
    """Return a projection from heads."""
    return [rearrange(x, "heads dim d -> d (heads dim)")]


def gate_up(x: Tensor) -> list[Tensor]:
    """Return the gate and the up projection (hidden, D), from one leaf (2, D, hidden)."""
    return transpose(x[0]) + transpose(x[1])


def rules(family: Family) -> dict[str, Rule]:
    """Return the rule of every leaf in a checkpoint of this family, by the leaf's path."""
    leaves = _vision()
    leaves["PaliGemma/llm/embedder/input_embedding"] = Rule(
        (f"{VLM}language_model.embed_tokens.weight",), 2, keep
    )
    leaves |= _gemma("", f"{VLM}language_model.", adaptive=False)
    leaves |= _gemma("_1", EXPERT_MODEL, adaptive=family == "pi05")
    for name in PROJECTIONS[family]:
        leaves |= _dense(name, name)
    return leaves


def _dense(leaf: str, name: str) -> dict[str, Rule]:
    """Return the rules of a linear layer."""
    return {
        f"{leaf}/kernel": Rule((f"{name}.weight",), 2, transpose),
        f"{leaf}/bias": Rule((f"{name}.bias",), 1, keep),
    }


def _scale_bias(leaf: str, name: str) -> dict[str, Rule]:
    """Return the rules of a layer norm."""
    return {
        f"{leaf}/scale": Rule((f"{name}.weight",), 1, keep),
        f"{leaf}/bias": Rule((f"{name}.bias",), 1, keep),
    }


def _vision() -> dict[str, Rule]:
    """Return the rules of the vision tower and its projector."""
    leaf, name = "PaliGemma/img/Transformer/encoderblock", f"{VISION}encoder.layers.{{layer}}"
    # embeddings
    leaves = {
        "PaliGemma/img/embedding/kernel": Rule(
            (f"{VISION}embeddings.patch_embedding.weight",), 4, to_convolution
        ),
        "PaliGemma/img/embedding/bias": Rule(
            (f"{VISION}embeddings.patch_embedding.bias",), 1, keep
        ),
        "PaliGemma/img/pos_embedding": Rule(
            (f"{VISION}embeddings.position_embedding.weight",), 3, drop_first
        ),
    }

    # norms and feed-forward part
    for i in (0, 1):
        leaves |= _scale_bias(f"{leaf}/LayerNorm_{i}", f"{name}.layer_norm{i + 1}")
        leaves |= _dense(f"{leaf}/MlpBlock_0/Dense_{i}", f"{name}.mlp.fc{i + 1}")

    # attention
    attention = f"{leaf}/MultiHeadDotProductAttention_0"
    for part in ("query", "key", "value"):
        parameter = f"{name}.self_attn.{part[0]}_proj"
        leaves[f"{attention}/{part}/kernel"] = Rule((f"{parameter}.weight",), 3, to_heads)
        leaves[f"{attention}/{part}/bias"] = Rule((f"{parameter}.bias",), 2, flatten_bias)
    parameter = f"{name}.self_attn.out_proj"
    leaves[f"{attention}/out/kernel"] = Rule((f"{parameter}.weight",), 3, from_heads)
    leaves[f"{attention}/out/bias"] = Rule((f"{parameter}.bias",), 1, keep)

    # last norm, and the projector to the language model
    leaves |= _scale_bias("PaliGemma/img/Transformer/encoder_norm", f"{VISION}post_layernorm")
    leaves |= _dense("PaliGemma/img/head", f"{VLM}multi_modal_projector.linear")
    return leaves


def _gemma(suffix: str, prefix: str, adaptive: bool) -> dict[str, Rule]:
    """Return the rules of a tower of the language model. The expert's leaves end in `_1`."""
    leaf, name = "PaliGemma/llm/layers", f"{prefix}layers.{{layer}}"
    attention, mlp = f"{name}.self_attn", f"{name}.mlp"
    # attention and feed-forward part
    leaves = {
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
        f"{leaf}/mlp{suffix}/linear": Rule((f"{mlp}.down_proj.weight",), 2, transpose),
    }

    # norms, which the flow time conditions in an adaptive tower
    for norm, parameter in (
        (f"{leaf}/pre_attention_norm{suffix}", f"{name}.input_layernorm"),
        (f"{leaf}/pre_ffw_norm{suffix}", f"{name}.post_attention_layernorm"),
        (f"PaliGemma/llm/final_norm{suffix}", f"{prefix}norm"),
    ):
        if adaptive:
            leaves |= _dense(f"{norm}/Dense_0", f"{parameter}.dense")
        else:
            leaves[f"{norm}/scale"] = Rule((f"{parameter}.weight",), 1, keep)
    return leaves
