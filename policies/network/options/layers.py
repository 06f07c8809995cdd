"""Attaches the options that act inside the layers of the action expert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from pitune.policies.network.options.config import NetworkOptions
from pitune.policies.network.options.hyper_connections import HyperConnection
from pitune.policies.network.options.linear_norms import LinearNorm
from pitune.policies.network.options.tokens.gated_tokens import TokenGate
from pitune.policies.network.options.tokens.registers import PREFIX_REGISTERS
from pitune.policies.network.options.value_residual import ValueResidual

if TYPE_CHECKING:
    from pitune.policies.network.sizes import GemmaConfig


def gated_tokens(options: NetworkOptions) -> dict[str, str]:
    """Return the kinds of tokens that the action expert reads through gates, and their groups."""
    registers = options.registers
    kinds = {
        "registers": registers.num > 0,
        "state_tokens": options.state_tokens.is_on,
        PREFIX_REGISTERS: registers.prefix > 0,
    }
    groups = {PREFIX_REGISTERS: "registers"}
    return {kind: groups.get(kind, kind) for kind, is_on in kinds.items() if is_on}


def add_register_gates(layers: nn.ModuleList, config: GemmaConfig) -> None:
    """Attach the gates to the prefix's registers to the layers of the language model."""
    for layer in layers:
        attention: Any = layer.self_attn
        attention.gates = nn.ModuleDict({"registers": TokenGate("registers", config.num_heads)})


def add_layer_options(layers: nn.ModuleList, config: GemmaConfig, options: NetworkOptions) -> None:
    """Attach the modules of the options that are on to the layers of a tower.

    Args:
        layers: Its layers. Each has a place for every module, which is None without the option.
        config: Sizes of the tower.
        options: Options of the network.
    """
    width, gated = config.width, gated_tokens(options)
    for index, layer in enumerate(layers):
        attention: Any = layer.self_attn
        parts: Any = layer
        # from the second layer on, because the first has no earlier values
        if options.value_residual.is_on and index > 0:
            attention.value_residual = ValueResidual(
                options.value_residual, width, config.num_kv_heads
            )
        if gated:
            attention.gates = nn.ModuleDict(
                {kind: TokenGate(group, config.num_heads) for kind, group in gated.items()}
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
