"""Attaches the options that act inside the layers of the action expert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from pitune.policies.network.options.config import NetworkOptions
from pitune.policies.network.options.value_residual import ValueResidual

if TYPE_CHECKING:
    from pitune.policies.network.gemma import GemmaConfig


def add_layer_options(layers: nn.ModuleList, config: GemmaConfig, options: NetworkOptions) -> None:
    """Attach the modules of the options that are on to the layers of a tower.

    Args:
        layers: Its layers. Each has a place for every module, which is None without the option.
        config: Sizes of the tower.
        options: Options of the network.
    """
    for index, layer in enumerate(layers):
        attention: Any = layer.self_attn
        if options.value_residual.is_on and index > 0:
            attention.value_residual = ValueResidual(
                options.value_residual, config.width, config.num_kv_heads
            )
