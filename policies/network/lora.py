"""Low-rank updates of linear layers: W + alpha / rank * B A, with few parameters to train.

The adapters are float32, whatever the precision of their layer's weights. B starts at zero, so
fresh adapters leave the network's output unchanged. A starts Gaussian with variance 1 / inputs, so
that A x has the scale of x.
Source: Hu et al. 2021 (LoRA), section 4.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from pitune.policies.network.layers import Linear
from pitune.ranges import PositiveFloat, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(Settings):
    """The layers with a low-rank update, its rank and its scale.

    Raises:
        ValueError: `rank` or `alpha` is not positive, or there are no targets.

    Example:
        >>> LoRAConfig(rank=8, alpha=16.0, targets=("gemma_expert.*.q_proj",)).rank
        8
    """

    rank: PositiveInt = 16
    """Columns of B, rows of A."""
    alpha: PositiveFloat = 16.0
    """Scale of the update: B A is multiplied by alpha / rank [-]."""
    targets: tuple[str, ...] = ("gemma_expert.*_proj",)
    """Linear layers by the end of their name, with `*` for any part, for example `q_proj` or
    `language_model.*.mlp.*_proj`. Each target must match at least one layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets:
            raise ValueError("LoRA's targets are empty; name layers, such as 'gemma_expert.*_proj'")


def add_lora(network: nn.Module, config: LoRAConfig) -> list[str]:
    """Attach an adapter to each targeted layer, and return the layers' names.

    Raises:
        ValueError: a target matches no layer, or a layer has an adapter already.
    """
    # layers of each target
    layers = dict(_linears(network))
    names: dict[str, None] = {}
    for target in config.targets:
        matched = [name for name in layers if _matches(name, target)]
        if not matched:
            possible = sorted({re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in layers})
            raise ValueError(
                f"LoRA target {target!r} matches no layer of this network; its linear layers are "
                f"{possible}"
            )
        names |= dict.fromkeys(matched)
    taken = [name for name in names if layers[name].lora_a is not None]
    if taken:
        raise ValueError(
            f"layers {taken} have a low-rank update already; fold it in with merge_lora first"
        )

    # attached last, so that an error leaves the network unchanged
    for name in names:
        _attach(layers[name], config)
    return list(names)


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with the updates folded in and without adapters.

    The network itself is not changed.
    """
    state = {
        key: value
        for key, value in network.state_dict().items()
        if key.rpartition(".")[2] not in ("lora_a", "lora_b")
    }
    # weights with their update
    for name, layer in _linears(network):
        if layer.lora_a is not None:
            state[f"{name}.weight"] = _merged_weight(layer)
    return state


def merge_lora(network: nn.Module) -> None:
    """Fold the updates into the network's weights, and remove the adapters."""
    for _, layer in _linears(network):
        if layer.lora_a is not None:
            with torch.no_grad():
                layer.weight.copy_(_merged_weight(layer))
            layer.lora_a = layer.lora_b = None
            layer.lora_scale = 1.0


def _linears(network: nn.Module) -> Iterator[tuple[str, Linear]]:
    """Yield the layers that can have an adapter, with their names."""
    return ((name, layer) for name, layer in network.named_modules() if isinstance(layer, Linear))


def _matches(name: str, target: str) -> bool:
    """Return whether a target matches a layer's name, or its end after a dot."""
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")


def _attach(layer: Linear, config: LoRAConfig) -> None:
    """Attach a fresh adapter to a layer."""
    device = layer.weight.device
    # A (rank, in), B (out, rank)
    low = torch.randn(config.rank, layer.in_features, device=device) * layer.in_features**-0.5
    layer.lora_a = nn.Parameter(low)
    layer.lora_b = nn.Parameter(torch.zeros(layer.out_features, config.rank, device=device))
    layer.lora_scale = config.alpha / config.rank


@torch.no_grad()
def _merged_weight(layer: Linear) -> Tensor:
    """Return a layer's weight with its update, in the weight's precision."""
    if layer.lora_a is None or layer.lora_b is None:
        return layer.weight.detach()
    update = layer.lora_scale * (layer.lora_b.float() @ layer.lora_a.float())
    return (layer.weight.float() + update).to(layer.weight.dtype)
