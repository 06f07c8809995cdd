"""PEFT's low-rank adapters, merged into the weights that they were trained on.

    W + scale * B A        scale = alpha / r, or alpha / sqrt(r) for rank-stabilized adapters

An adapter lies beside its base, in a folder that names its base, or unmerged among the weights. It
is merged as a whole or rejected, because the base alone is another policy.
Source: PEFT `tuners/lora/layer.py`; Hu et al. 2021 (LoRA); Kalajdzievski 2023 (rsLoRA).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pitune.policies.checkpoints.files import read_safetensors
from pitune.policies.checkpoints.layouts.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PICKLES,
    adapter_files,
    check_adapter_config,
    read_adapter_config,
)
from pitune.policies.checkpoints.layouts.wrappers import unwrapped

_LOW_RANK = re.compile(
    r"(?P<layer>.+)\.lora_(?P<embedding>embedding_)?(?P<part>[AB])(\.(?P<name>(?!weight$|bias$)\w+))?(\.weight)?"
)


def merge_adapters(weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return unwrapped weights with the adapter of a folder merged into them.

    Args:
        weights: The base's weights, or those of a model with unmerged adapters.
        folder: Where the adapter's files lie, if there are any.

    Raises:
        FileNotFoundError: one of the adapter's files is missing.
        ValueError: the adapter cannot be merged completely.
    """
    present = adapter_files(folder)
    inside = [key for key in weights if _is_adapted(key)]
    if not present and not inside:
        return weights

    _check_files(present, inside, folder)
    config = read_adapter_config(folder)
    check_adapter_config(config, folder / ADAPTER_CONFIG)

    # tensors of the adapter, from its file or among the weights
    tensors = {key: weights[key] for key in inside}
    base = {key: value for key, value in weights.items() if key not in tensors}
    if ADAPTER_WEIGHTS in present:
        if inside:
            raise ValueError(
                f"{folder} holds an adapter twice, in {ADAPTER_WEIGHTS} and as {inside[0]!r} among "
                "the weights; remove one of them"
            )
        tensors = unwrapped(read_safetensors(folder / ADAPTER_WEIGHTS), folder / ADAPTER_WEIGHTS)
        beside = any(file.name != ADAPTER_WEIGHTS for file in folder.glob("model*.safetensors"))
        place = "the weights beside it" if beside else "its base"
        warnings.warn(
            f"the adapter in {folder} is merged into {place}, and {ADAPTER_CONFIG} names "
            f"{config.get('base_model_name_or_path')!r} as its base",
            stacklevel=2,
        )
    return _merge(base, tensors, config, folder)


def _check_files(present: list[str], inside: list[str], folder: Path) -> None:
    """Fail if an adapter's file is missing, or a pickle.

    Args:
        present: Names of the adapter's files that exist.
        inside: Names of unmerged weights among those of the model.
        folder: Their folder.
    """
    pickles = [name for name in present if name in PICKLES]
    if pickles and ADAPTER_WEIGHTS not in present:
        raise ValueError(
            f"{folder / pickles[0]} is a pickle, which can run any code and is never loaded; save "
            "the adapter with safe_serialization=True"
        )
    if ADAPTER_CONFIG not in present:
        raise FileNotFoundError(
            f"{folder} holds an adapter ({(present or inside)[0]}) without {ADAPTER_CONFIG}, which "
            "has its scale; put it there, or merge the adapter with PEFT's merge_and_unload"
        )
    if ADAPTER_WEIGHTS not in present and not inside:
        raise FileNotFoundError(
            f"{folder} holds {ADAPTER_CONFIG} without {ADAPTER_WEIGHTS}; put it there. If the "
            f"weights are merged already, remove {ADAPTER_CONFIG}"
        )


def is_unmerged(weights: Mapping[str, Tensor]) -> bool:
    """Return whether some weights are those of a model with unmerged adapters."""
    return any(_is_adapted(key) for key in weights)


def _is_adapted(key: str) -> bool:
    """Return whether a weight's name shows an unmerged adapter."""
    marks = ("base_layer", "modules_to_save", "original_module")
    return any(part.startswith("lora_") or part in marks for part in key.split("."))


def _merge(
    base: dict[str, Tensor], tensors: dict[str, Tensor], config: dict[str, Any], folder: Path
) -> dict[str, Tensor]:
    merged = dict(base)
    low_rank: dict[str, dict[str, Tensor]] = {}
    names: set[str] = set()
    # weights that the adapter replaces, and factors of those that it updates
    for key, value in tensors.items():
        match = _LOW_RANK.fullmatch(key)
        if match:
            names.add(match["name"] or "")
            part = ("embedding_" if match["embedding"] else "") + match["part"]
            low_rank.setdefault(match["layer"], {})[part] = value
        elif ".original_module." not in key:
            name, adapter = _replaced(key)
            names |= adapter
            _check_replacement(key, name, value, base, config, folder)
            merged[name] = value
    if len(names - {""}) > 1:
        raise ValueError(
            f"{folder} holds the adapters {sorted(names)}; merge the wanted one with PEFT's "
            "merge_and_unload and load the result"
        )
    for layer, factors in low_rank.items():
        name = f"{layer}.weight"
        if name not in merged:
            raise ValueError(
                f"{folder / ADAPTER_WEIGHTS} updates {layer!r}, which the base does not have; take "
                "the adapter's own base"
            )
        merged[name] = _updated(merged[name], factors, _scale(layer, config), layer, folder)
    _check_complete(merged, low_rank, config, folder)
    return merged


def _replaced(key: str) -> tuple[str, set[str]]:
    """Return the name of the weight that a tensor stands for, and its adapter's name."""
    parts = key.split(".")
    if "modules_to_save" in parts:
        i = parts.index("modules_to_save")
        return ".".join(parts[:i] + parts[i + 2 :]), {parts[i + 1]}
    return ".".join(part for part in parts if part != "base_layer"), set()


def _check_replacement(
    key: str,
    name: str,
    value: Tensor,
    base: Mapping[str, Tensor],
    config: dict[str, Any],
    folder: Path,
) -> None:
    """Fail if an adapter holds a tensor that neither its config nor its form explains."""
    saved = [str(module) for module in config.get("modules_to_save") or ()]
    layer, _, last = name.rpartition(".")
    explained = (
        "base_layer" in key.split(".")
        or any(layer == module or layer.endswith(f".{module}") for module in saved)
        or (last == "bias" and config.get("bias", "none") != "none")
        or (name in base and torch.equal(base[name], value))
    )
    if not explained or (name in base and base[name].shape != value.shape):
        raise ValueError(
            f"{folder} holds an adapter with {key!r} of shape {tuple(value.shape)}, which "
            f"modules_to_save={saved} does not explain; merge it with PEFT's merge_and_unload and "
            "load the result"
        )


def _scale(layer: str, config: dict[str, Any]) -> tuple[float, float]:
    """Return the rank of a layer's update and its scale."""

    def of_layer(pattern: str, default: float) -> float:
        for name, value in (config.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({name})$", f"model.{layer}"):
                return float(value)
        return default

    rank = of_layer("rank_pattern", float(config["r"]))
    alpha = of_layer("alpha_pattern", float(config["lora_alpha"]))
    return rank, alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _updated(
    weight: Tensor,
    factors: dict[str, Tensor],
    rank_and_scale: tuple[float, float],
    layer: str,
    folder: Path,
) -> Tensor:
    """Return a weight plus its low-rank update, in the weight's precision."""
    rank, scale = rank_and_scale
    embedding = "embedding_A" in factors or "embedding_B" in factors
    first, second = (factors.get(("embedding_" if embedding else "") + part) for part in "AB")
    if first is None or second is None or len(factors) != 2:
        raise ValueError(
            f"{folder}: the adapter of {layer!r} holds {sorted(factors)}, and needs A and B; take "
            "a complete adapter"
        )
    # (out, r) @ (r, in), where kernels of a convolution are flattened
    update = second.float().flatten(1) @ first.float().flatten(1)
    update = update.T if embedding else update
    if len(first) != rank or update.numel() != weight.numel() or len(update) != len(weight):
        raise ValueError(
            f"{folder}: the adapter of {layer!r} has shapes {tuple(second.shape)} and "
            f"{tuple(first.shape)} for r={rank:g} and a weight {tuple(weight.shape)}; take the "
            "adapter's own base and config"
        )
    return (weight.float() + scale * update.reshape(weight.shape)).to(weight.dtype)


def _check_complete(
    merged: Mapping[str, Tensor],
    low_rank: Mapping[str, object],
    config: dict[str, Any],
    folder: Path,
) -> None:
    """Fail if a targeted layer of the base has no update."""
    if not low_rank:
        raise ValueError(f"{folder}: the adapter holds no low-rank update; take a complete adapter")
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    if not targets or targets == "all-linear" or config.get("layers_to_transform") is not None:
        return
    saved = config.get("modules_to_save") or ()
    layers = [key.removesuffix(".weight") for key in merged if key.endswith(".weight")]
    lacking = [
        layer
        for layer in layers
        if _targets(layer, targets)
        and not (excluded and _targets(layer, excluded))
        and not _targets(layer, list(saved))
        and layer not in low_rank
        and not layer.endswith("norm")
    ]
    if lacking:
        raise ValueError(
            f"{folder}: the adapter holds no update of {lacking[:3]}, which its target_modules="
            f"{targets!r} names; take a complete adapter"
        )


def _targets(layer: str, targets: str | list[str]) -> bool:
    """Return whether PEFT's targets, an expression or a list of last names, match a layer."""
    name = f"model.{layer}"
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None or re.fullmatch(targets, layer) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)
