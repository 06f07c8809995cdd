"""Attaches the options that act inside the layers of the action expert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from pitune.policies.network.options.config import NetworkOptions
from pitune.policies.network.options.hyper_connections import HyperConnection
from pitune.policies.network.options.linear_norms import LinearNorm
from pitune.policies.network.options.tokens.gated_tokens import TokenGate
from pitune.policies.network.options.value_residual import ValueResidual

if TYPE_CHECKING:
    from pitune.policies.network.sizes import GemmaConfig

GATED = ("registers", "state_tokens")
"""Options whose tokens are read through gates."""


def add_layer_options(layers: nn.ModuleList, config: GemmaConfig, options: NetworkOptions) -> None:
    """Attach the modules of the options that are on to the layers of a tower.

    Args:
        layers: Its layers. Each has a place for every module, which is None without the option.
        config: Sizes of the tower.
        options: Options of the network.
    """
    width, names = config.width, options.names
    for index, layer in enumerate(layers):
        attention: Any = layer.self_attn
        parts: Any = layer
        # from the second layer on, because the first has no earlier values
        if options.value_residual.is_on and index > 0:
            attention.value_residual = ValueResidual(
                options.value_residual, width, config.num_kv_heads
            )
        gated = [name for name in GATED if name in names]
        if gated:
            attention.gates = nn.ModuleDict(
                {name: TokenGate(name, config.num_heads) for name in gated}
            )
        # two parts in each layer: attention, and feed-forward part
        if options.hyper_connections.is_on:
            parts.connections = nn.ModuleList(
                HyperConnection(options.hyper_connections, width, 2 * index + part)
                for part in range(2)
            )
        if options.linear_norms.is_on:
            for block in (attention, parts.mlp):
                block.norms = nn.ModuleDict(
                    {
                        name: LinearNorm(options.linear_norms, linear.out_features)
                        for name, linear in block.named_children()
                        if name.endswith("_proj")
                    }
                )
