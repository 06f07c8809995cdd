"""Which parts of a π0 are trained, in which precision: full, by groups of parameters, or LoRA.

What is trained has float32 master weights, whatever computes with them; what is frozen may be kept
in bfloat16. Groups are known by name, and a group that this network lacks is an error, so nobody
trains less than they think. `pitune.policies.finetuning.memory` says what a choice costs.
Source: openpi `models_pytorch/gemma_pytorch.py: to_bfloat16_for_selected_params` for what stays in
float32; here the vision tower's layer norms do too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import nn

from pitune.policies.network.gemma import Gemma
from pitune.policies.network.lora import LoRAConfig, add_lora, merge_lora
from pitune.policies.network.pi0 import Pi0
from pitune.policies.network.siglip import Siglip
from pitune.policies.policy import FlowPolicy

Group = Literal["action_expert", "vlm", "vision", "projections"]
Trainable = Literal["action_expert", "vlm", "vision", "projections", "all"]
GROUPS: tuple[Group, ...] = get_args(Group)
"""Parts of the network: the expert, the language model, the vision tower with its projector, and
the linear layers between the robot's numbers and the expert."""
PREFIXES: dict[str, Group] = {
    "paligemma_with_expert.gemma_expert.": "action_expert",
    "paligemma_with_expert.paligemma.model.language_model.": "vlm",
    "paligemma_with_expert.paligemma.model.vision_tower.": "vision",
    "paligemma_with_expert.paligemma.model.multi_modal_projector.": "vision",
}
FLOAT32_PARTS = ("norm", "patch_embedding", "position_embedding")
"""Parameters with one of these in their name stay in float32; so do the projections."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What is trained, and how memory is saved."""

    trainable: tuple[Trainable, ...] = ("all",)
    """Groups of parameters that are trained; empty to train nothing but low-rank updates."""
    lora: LoRAConfig | None = None
    """Low-rank updates. The layers that have one are frozen themselves, whatever their group."""
    gradient_checkpointing: bool = False
    """Whether a layer's activations are computed again for the gradient instead of being kept."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Precision in which the towers compute and in which frozen weights are kept; that of the
    checkpoint by default."""

    def __post_init__(self) -> None:
        valid = get_args(Trainable)
        unknown = [name for name in self.trainable if name not in valid]
        if unknown:
            raise ValueError(f"trainable names unknown groups {unknown}; valid are {list(valid)}")
        if not self.trainable and self.lora is None:
            raise ValueError(
                f"trainable is empty and there is no lora, so nothing would be trained; name some "
                f"of {list(valid)}"
            )


def apply_finetuning(policy: FlowPolicy, config: FinetuneConfig) -> None:
    """Make a policy ready to be trained: adapters, what is trained, precisions, checkpointing.

    Adapters that the policy came with are folded into its weights first.

    Raises:
        ValueError: a group or a LoRA target is not in this network, or the network has adapters
            already.
    """
    network = policy.network
    if policy.info.lora is not None:
        merge_lora(network)
    policy.info = replace(policy.info, lora=config.lora)
    trained = _trained_groups(network, config.trainable)
    adapted = set() if config.lora is None else set(add_lora(network, config.lora))
    frozen = network.compute_dtype if config.dtype is None else getattr(torch, config.dtype)
    for name, parameter in network.named_parameters():
        layer, _, last = name.rpartition(".")
        adapter = last in ("lora_a", "lora_b")
        train = adapter or (group_of(name) in trained and layer not in adapted)
        parameter.requires_grad_(train)
        dtype = torch.float32 if train or stays_float32(name) else frozen
        parameter.data = parameter.data.to(dtype)
    network.compute_dtype = frozen
    for module in network.modules():
        if isinstance(module, Gemma | Siglip):
            module.gradient_checkpointing = config.gradient_checkpointing


def group_of(name: str) -> Group:
    """Return the group of one of the network's parameters, by its name."""
    found = (group for prefix, group in PREFIXES.items() if name.startswith(prefix))
    return next(found, "projections")


def stays_float32(name: str) -> bool:
    """Return whether a parameter is kept in float32 even where it is frozen."""
    return group_of(name) == "projections" or any(part in name for part in FLOAT32_PARTS)


def trained_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that are trained, by name."""
    return ((name, value) for name, value in module.named_parameters() if value.requires_grad)


def _trained_groups(network: Pi0, names: tuple[Trainable, ...]) -> set[str]:
    """Return the groups that are trained, all of them there."""
    present = {group_of(name) for name, _ in network.named_parameters()}
    missing = [name for name in names if name != "all" and name not in present]
    if missing:
        raise ValueError(
            f"trainable names groups {missing} that this network lacks; it has "
            f"{[group for group in GROUPS if group in present]}"
        )
    return set(present) if "all" in names else set(names)
