"""Adds options to a network that was made without them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pitune.policies.network.extensions import Extension, initialize_extensions
from pitune.policies.network.gemma import Gemma
from pitune.policies.network.lora import LoRAConfig, add_lora
from pitune.policies.network.options.config import NetworkOptions
from pitune.policies.network.siglip import Siglip

if TYPE_CHECKING:
    from pitune.policies.network.config import Pi0Config
    from pitune.policies.network.pi0 import Pi0


def option_modules(config: Pi0Config) -> dict[str, Extension]:
    """Return the modules that options have at the level of the network, by the option's name."""
    # the global random numbers stay as they are without options
    with torch.random.fork_rng(devices=[]):
        modules = {name: option.module(config) for name, option in config.options.active()}
    return {name: module for name, module in modules.items() if module is not None}


def network_with_options(network: Pi0, options: NetworkOptions, lora: LoRAConfig | None) -> Pi0:
    """Return a network with more options, which shares its weights with the given one.

    The new parameters have their initial values, with which the numbers stay the same. It computes
    as the given one: in its precision, compiled, and with gradient checkpointing.

    Args:
        network: Stays as it is.
        options: The options to add.
        lora: Low-rank updates of the network.

    Raises:
        ValueError: an option would change the numbers of pretrained weights, is on already, or
            does not fit the network.
    """
    options.check_pretrained()
    config = replace(network.config, options=network.config.options.merged(options))
    before = network.state_dict(keep_vars=True)
    trained = {name: value.requires_grad for name, value in network.named_parameters()}
    with torch.device("meta"):
        extended = type(network)(config)
        if lora is not None:
            add_lora(extended, lora)

    # initial values for the new parameters, and the network's own for all others
    initialize_extensions(extended, network.action_out_proj.weight.device)
    extended.load_state_dict(before, strict=False, assign=True)
    for name, parameter in extended.named_parameters():
        parameter.requires_grad_(trained.get(name, True))
    _compute_alike(extended, network)
    return extended


def _compute_alike(extended: Pi0, network: Pi0) -> None:
    """Give a network the settings of another's computations, which are not in its config."""
    extended.compute_dtype = network.compute_dtype
    extended.compilation = network.compilation
    extended.train(network.training)
    given = dict(network.named_modules())
    for name, module in extended.named_modules():
        tower = given.get(name)
        if isinstance(module, Gemma | Siglip) and isinstance(tower, Gemma | Siglip):
            module.gradient_checkpointing = tower.gradient_checkpointing
