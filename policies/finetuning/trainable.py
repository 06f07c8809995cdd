"""The trained parts of a π0 and their precision: all, groups of parameters, or low-rank updates.

Trained parameters have float32 master weights, whatever the precision of the computation. Frozen
ones may be kept in bfloat16. A group that the network lacks is an error, so a misspelled name
cannot silently train less. `pitune.policies.finetuning.memory` estimates the cost of a choice.
Source: openpi `models_pytorch/gemma_pytorch.py: to_bfloat16_for_selected_params` for the parameters
that stay in float32. Here the vision tower's layer norms do too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from pitune.policies.network.extensions import (
    PRETRAINED_GROUPS,
    extension_names,
    new_parameters,
)
from pitune.policies.network.gemma import Gemma
from pitune.policies.network.lora import LoRAConfig, add_lora, merge_lora
from pitune.policies.network.options.config import option_groups
from pitune.policies.network.pi0 import Pi0
from pitune.policies.network.siglip import Siglip
from pitune.policies.policy import FlowPolicy
from pitune.ranges import Settings

PREFIXES = {
    "paligemma_with_expert.gemma_expert.": "action_expert",
    "paligemma_with_expert.paligemma.model.language_model.": "vlm",
    "paligemma_with_expert.paligemma.model.vision_tower.": "vision",
    "paligemma_with_expert.paligemma.model.multi_modal_projector.": "vision",
}
"""Group of a published parameter by the start of its name. All others are projections."""
FLOAT32_PARTS = ("norm", "patch_embedding", "position_embedding")
"""Parameters with one of these in their name stay in float32. So do projections and extensions."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Settings):
    """The trained parts of a policy, and the options that save memory.

    Raises:
        ValueError: a group is unknown, or nothing would be trained.

    Example:
        >>> config = FinetuneConfig(trainable=("action_expert", "projections"), dtype="bfloat16")
        >>> config.gradient_checkpointing
        False
    """

    trainable: tuple[str, ...] = ("all",)
    """Groups of parameters to train: action_expert, vlm, vision, projections, the name of a network
    option or an extension, or all. Empty to train low-rank updates alone."""
    lora: LoRAConfig | None = None
    """Low-rank updates. A layer with one is frozen itself, whatever its group."""
    gradient_checkpointing: bool = False
    """Whether to recompute a layer's activations for the gradient instead of keeping them."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Precision of the towers' computation and of frozen weights. The checkpoint's by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        valid = [*PRETRAINED_GROUPS, "all", *option_groups(), *extension_names()]
        unknown = [name for name in self.trainable if name not in valid]
        if unknown:
            raise ValueError(
                f"trainable names unknown groups {unknown}; valid are {valid}, name some of them"
            )
        if not self.trainable and self.lora is None:
            raise ValueError(
                f"trainable is empty and there is no lora, so nothing would be trained; name some "
                f"of {valid}"
            )


def apply_finetuning(policy: FlowPolicy, config: FinetuneConfig) -> FlowPolicy:
    """Return the policy ready for training: adapters, trained groups, precisions, checkpointing.

    It changes the policy's network in place. Adapters that the policy came with are merged into
    its weights first. Use the returned policy from then on.

    Raises:
        ValueError: a group or a LoRA target is not in this network, or the network has adapters
            already.
    """
    # adapters, after those of an earlier fine-tuning are merged
    network = policy.network
    if policy.info.lora is not None:
        merge_lora(network)
    policy.info = replace(policy.info, lora=config.lora)
    trained = _trained_groups(network, config.trainable)
    adapted = set() if config.lora is None else set(add_lora(network, config.lora))

    # gradient and precision of each parameter
    frozen = network.compute_dtype if config.dtype is None else getattr(torch, config.dtype)
    new, groups = new_parameters(network), parameter_groups(network)
    for name, parameter in network.named_parameters():
        layer, _, last = name.rpartition(".")
        is_adapter = last in ("lora_a", "lora_b")
        train = is_adapter or (groups[name] in trained and layer not in adapted)
        parameter.requires_grad_(train)
        keep_float32 = train or name in new or stays_float32(name)
        parameter.data = parameter.data.to(torch.float32 if keep_float32 else frozen)
    network.compute_dtype = frozen

    # gradient checkpointing
    for module in network.modules():
        if isinstance(module, Gemma | Siglip):
            module.gradient_checkpointing = config.gradient_checkpointing
    return policy


def group_of(name: str) -> str:
    """Return the group of a published parameter, by its name."""
    groups = (group for prefix, group in PREFIXES.items() if name.startswith(prefix))
    return next(groups, "projections")


def parameter_groups(network: nn.Module) -> dict[str, str]:
    """Return the group of each of a network's parameters, extensions included, by name."""
    new = new_parameters(network)
    return {name: new.get(name, group_of(name)) for name, _ in network.named_parameters()}


def stays_float32(name: str) -> bool:
    """Return whether a published parameter stays in float32 even if it is frozen."""
    return group_of(name) == "projections" or any(part in name for part in FLOAT32_PARTS)


def trained_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the trained parameters with their names."""
    return ((name, value) for name, value in module.named_parameters() if value.requires_grad)


def _trained_groups(network: Pi0, names: tuple[str, ...]) -> set[str]:
    """Return the groups to train.

    Raises:
        ValueError: the network lacks one of them.
    """
    present = list(dict.fromkeys(parameter_groups(network).values()))
    missing = [name for name in names if name != "all" and name not in present]
    if missing:
        raise ValueError(
            f"trainable names groups {missing} that this network lacks; it has {sorted(present)}, "
            "name some of them"
        )
    return set(present) if "all" in names else set(names)
