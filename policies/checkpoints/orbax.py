"""Reads openpi's JAX checkpoints (orbax) with `tensorstore` alone: no JAX, no orbax, no pickle.

It reads both layouts: the released one, and that of openpi's own training runs, whose leaves end in
`.value`. LoRA leaves are folded into their weights. An unknown or missing leaf is an error.
Source: openpi `models/model.py: restore_params`, `models/lora.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import reduce
from torch import Tensor

from pitune.extras import install_command
from pitune.policies.checkpoints.orbax_rules import Rule, rules
from pitune.policies.network.config import Family

ATTENTION = "PaliGemma/llm/layers/attn"
VISION_QUERY = "PaliGemma/img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"


@dataclass(frozen=True, kw_only=True)
class HeadCounts:
    """Numbers of attention heads, which PyTorch's flattened weights do not determine.

    Example:
        >>> HeadCounts(num_heads=8, num_kv_heads=1, head_dim=256, vision_heads=16).head_dim
        256
    """

    num_heads: int
    """Query heads of the language model and of the expert."""
    num_kv_heads: int
    """Their key and value heads."""
    head_dim: int
    """Width of one of these heads."""
    vision_heads: int
    """Heads of the vision tower."""


def is_orbax(path: Path) -> bool:
    """Return whether a folder is an openpi JAX checkpoint, or the `params` folder of one."""
    return _params(path) is not None


def read_orbax(path: Path) -> tuple[dict[str, Tensor], HeadCounts]:
    """Return the weights under openpi's PyTorch names, in their stored precision, and the heads.

    The embedding is `...language_model.embed_tokens.weight`. There is no `lm_head`.

    Args:
        path: The checkpoint (the folder that holds `params`), or its `params` folder.

    Raises:
        FileNotFoundError: the folder is no orbax checkpoint.
        ModuleNotFoundError: `tensorstore` is not installed.
        ValueError: leaves are missing, unknown, of a wrong shape, or damaged.
    """
    # leaves of the checkpoint and of its family
    leaves = _open_leaves(path)
    family: Family = "pi05" if "time_mlp_in/kernel" in leaves else "pi0"
    expected = rules(family)
    lora = {leaf: _lora_leaves(leaf, leaves) for leaf in expected}
    known = expected.keys() | {part for parts in lora.values() for part in parts}
    missing, surplus = sorted(expected.keys() - leaves.keys()), sorted(leaves.keys() - known)
    if missing or surplus:
        raise ValueError(
            f"{path} does not hold a {family} policy of openpi: missing leaves {missing}, surplus "
            f"leaves {surplus}; take a complete π0 or π0.5 checkpoint"
        )

    # weights, with low-rank updates merged
    depths = _check_shapes(path, expected, leaves)
    weights: dict[str, Tensor] = {}
    for leaf, rule in expected.items():
        value = _read(path, leaf, leaves)
        if lora[leaf]:
            low, high = (_read(path, part, leaves) for part in lora[leaf])
            value = _merged(leaf, value, low, high)
        weights |= _layers(rule, value, depths.get(leaf))
    return weights, _head_counts(leaves)


def _params(path: Path) -> Path | None:
    """Return the folder of the leaves, or None if there is none."""
    folders = (path / "params", path)
    return next((folder for folder in folders if (folder / "manifest.ocdbt").is_file()), None)


def _open_leaves(path: Path) -> dict[str, Any]:
    """Return the arrays by their path below `params`, opened without reading their values."""
    folder = _params(path)
    if folder is None:
        raise FileNotFoundError(
            f"no manifest.ocdbt in {path} or {path / 'params'}; pass an openpi JAX checkpoint, "
            "a folder with params/manifest.ocdbt in it"
        )
    try:
        import tensorstore
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is a JAX checkpoint, and the package tensorstore, which reads it, is not "
            f"installed; run {install_command('orbax')}"
        ) from error

    # arrays of the store
    store = {"driver": "ocdbt", "base": f"file://{folder.resolve()}/"}
    # with this flag the writer stored every chunk, so a missing chunk was lost and is not zero
    complete = _metadata(folder).get("store_array_data_equal_to_fill_value", False)
    leaves: dict[str, Any] = {}
    try:
        keys = [key.decode() for key in tensorstore.KvStore.open(store).result().list().result()]
        for name in (key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray")):
            spec = {
                "driver": "zarr",
                "kvstore": {**store, "path": f"{name}/"},
                "fill_missing_data_reads": not complete,
            }
            # from params.PaliGemma.img.head.kernel.value to PaliGemma/img/head/kernel
            leaf = name.removeprefix("params.").removesuffix(".value").replace(".", "/")
            leaves[leaf] = tensorstore.open(spec, read=True).result()
    except ValueError as error:
        raise _damaged(path, error) from error
    return leaves


def _metadata(folder: Path) -> dict[str, Any]:
    """Return orbax's metadata of the leaves, empty if there is none."""
    file = folder / "_METADATA"
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text()))
    except ValueError as error:
        raise _damaged(file, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged or cut short ({error}); take a complete checkpoint")


def _lora_leaves(leaf: str, leaves: Mapping[str, Any]) -> list[str]:
    """Return the two leaves of a leaf's low-rank update, empty if it has no update.

    In attention they are siblings of `w`. In the feed-forward part their names are suffixes.
    """
    stem = leaf.removesuffix("w") if leaf.endswith("/w") else f"{leaf}_"
    pair = [f"{stem}lora_a", f"{stem}lora_b"]
    return pair if all(part in leaves for part in pair) else []


def _check_shapes(
    path: Path, expected: Mapping[str, Rule], leaves: Mapping[str, Any]
) -> dict[str, int]:
    """Return the number of layers of each stacked leaf.

    Raises:
        ValueError: a leaf has a wrong number of axes, or a tower's leaves differ in layers.
    """
    depths: dict[str, int] = {}
    for leaf, rule in expected.items():
        shape = tuple(leaves[leaf].shape)
        if len(shape) != rule.rank + rule.stacked:
            raise ValueError(
                f"{path}: leaf {leaf} has shape {shape}; it must have {rule.rank} axes"
                f"{' after that of the layers' if rule.stacked else ''}, take a π0 or π0.5 "
                "checkpoint of openpi"
            )
        # the number of layers must be the same in all leaves of a tower
        if rule.stacked:
            tower = leaf.split("/")[1]
            depths[leaf] = shape[0]
            first = next(other for other in depths if other.split("/")[1] == tower)
            if shape[0] != depths[first]:
                raise ValueError(
                    f"{path}: leaf {leaf} has {shape[0]} layers, {first} has {depths[first]}; the "
                    "leaves of a tower must agree, take a complete checkpoint"
                )
    return depths


def _read(path: Path, leaf: str, leaves: Mapping[str, Any]) -> Tensor:
    """Return the values of a leaf."""
    try:
        array = leaves[leaf].read().result()
    except ValueError as error:
        raise _damaged(path, error) from error
    if array.dtype.name == "bfloat16":  # numpy has no bfloat16 of its own
        return torch.from_numpy(array.view("uint16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def _merged(leaf: str, weight: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return a leaf with its low-rank update, alpha / rank = 1 as in all of openpi's variants.

    openpi's einsum for the attention's output, `BTL,NLD->BTD`, sums the second factor over the
    heads. There each head's update is its first factor times that sum.
    """
    try:
        if "attn_vec_einsum" in leaf:
            # openpi's equation sums over the heads on both sides of the rank
            high = reduce(high.float(), "layers heads rank d -> layers 1 rank d", "sum")
        # (..., inputs, rank) @ (..., rank, outputs)
        update = low.float() @ high.float()
        return (weight.float() + update).to(weight.dtype)
    except RuntimeError as error:
        raise ValueError(
            f"the low-rank update of leaf {leaf} does not fit it: shapes {tuple(low.shape)} and "
            f"{tuple(high.shape)} for {tuple(weight.shape)}; take a complete checkpoint"
        ) from error


def _layers(rule: Rule, value: Tensor, depth: int | None) -> dict[str, Tensor]:
    """Return the parameters of a leaf by name, each with its own memory."""
    named: dict[str, Tensor] = {}
    for layer in range(1 if depth is None else depth):
        parts = rule.split(value if depth is None else value[layer])
        for name, part in zip(rule.names, parts, strict=True):
            named[name.format(layer=layer)] = part.clone(memory_format=torch.contiguous_format)
    return named


def _head_counts(leaves: Mapping[str, Any]) -> HeadCounts:
    """Return the numbers of heads, from the leaves that have them as an axis."""
    # (layers, heads, D, head_dim)
    _, num_heads, _, head_dim = leaves[f"{ATTENTION}/q_einsum/w"].shape
    num_kv_heads = leaves[f"{ATTENTION}/kv_einsum/w"].shape[2]
    return HeadCounts(
        num_heads=int(num_heads),
        num_kv_heads=int(num_kv_heads),
        head_dim=int(head_dim),
        vision_heads=int(leaves[VISION_QUERY].shape[2]),
    )
