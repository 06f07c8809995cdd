"""Steps that the formats of other packages share: read a network, and write its weights.

`arch.json`, in the folder or beside it, holds the numbers of heads, the horizon and the precision,
which neither the weights nor the other packages' files determine. Those packages ignore it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pitune.policies.checkpoints.config import LoadConfig
from pitune.policies.checkpoints.files import write_json
from pitune.policies.checkpoints.keys import VLM, Shapes, check_written_keys
from pitune.policies.checkpoints.layouts.adapter_files import base_folder
from pitune.policies.checkpoints.weights import Heads, build, sizes_of
from pitune.policies.network.lora import merged_state
from pitune.policies.network.pi0 import Pi0
from pitune.policies.policy import FlowPolicy
from pitune.policies.preprocessing.preprocessor import PreprocessorConfig
from pitune.policies.preprocessing.scales import differing
from pitune.policies.preprocessing.tokenizer import Tokenizer

TOKENIZER = "tokenizer"
"""Folder of the tokenizer in a checkpoint."""


def read_arch(folder: Path) -> dict[str, Any]:
    """Return `arch.json` in or beside a folder or an adapter's base, empty if there is none."""
    places = [folder, folder.resolve().parent]
    if not any(folder.glob("model*.safetensors")) and (base := base_folder(folder)) is not None:
        places += [base, base.resolve().parent]
    for place in places:
        file = place / "arch.json"
        try:
            if file.is_file():
                return dict(json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{file} is not a valid JSON object ({error}); remove it if the sizes are the "
                "published ones"
            ) from error
    return {}


def heads_of(arch: dict[str, Any]) -> Heads:
    """Return the numbers of heads in `arch.json`, by default the published ones."""
    vlm, vision = arch.get("vlm", {}), arch.get("vision", {})
    return Heads(
        num_heads=vlm.get("num_heads", 8),
        num_kv_heads=vlm.get("num_kv_heads", 1),
        vision_heads=vision.get("num_attention_heads"),
    )


def build_network(
    weights: dict[str, Tensor], heads: Heads, action_horizon: int, folder: Path
) -> Pi0:
    """Return the network of renamed weights.

    It computes in bfloat16 if the language model's weights are stored so, or `arch.json` says so.

    Args:
        weights: Weights under our names.
        heads: Numbers of attention heads.
        action_horizon: H.
        folder: The checkpoint, for messages and `arch.json`.
    """
    weights = {key: _computable(key, value, folder) for key, value in weights.items()}
    network = build(sizes_of(weights, heads, action_horizon), weights, folder)
    arch = read_arch(folder)
    stored = weights[VLM + "language_model.layers.0.self_attn.q_proj.weight"].dtype
    precision = arch.get("precision", arch.get("dtype"))
    network.compute_dtype = torch.bfloat16 if precision == "bfloat16" else stored
    return network


def _computable(key: str, value: Tensor, folder: Path) -> Tensor:
    """Return a weight in float32 or bfloat16. float16 and float64 become float32, as in lerobot.

    Raises:
        ValueError: it is quantized, or not finite.
    """
    if not value.is_floating_point() or value.dtype.itemsize < 2:
        raise ValueError(
            f"{folder}: the weight {key!r} is {value.dtype}, which is quantized; take the "
            "checkpoint's float32 or bfloat16 weights"
        )
    # one pass without a copy: a sum is finite only if its terms are
    if not bool(value.sum(dtype=torch.float32).isfinite()):
        raise ValueError(
            f"{folder}: the weight {key!r} is not finite, so every action would be NaN; take an "
            "earlier checkpoint of that training"
        )
    return value if value.dtype in (torch.float32, torch.bfloat16) else value.float()


def check_normalized(folder: Path, has_stats: bool, config: LoadConfig) -> None:
    """Fail if a checkpoint has no norm stats and the caller did not accept that.

    Raises:
        ValueError: there are none.
    """
    if not has_stats and not config.unnormalized:
        raise ValueError(
            f"{folder} has no norm stats; without them the policy's actions are meaningless. Pass "
            "the norm_stats.json it was trained with (--load.norm-stats), or set "
            "unnormalized=True (--load.unnormalized)"
        )


def merged_weights(policy: FlowPolicy, format: str) -> dict[str, Tensor]:
    """Return the weights to export under our names, with low-rank updates folded in.

    Raises:
        ValueError: the policy has no vision-language model.
    """
    network = policy.network.config
    if network.vlm is None or network.vision is None:
        raise ValueError(
            f"format={format!r} needs a vision-language model, which this policy lacks; save it "
            "with format='pitune'"
        )
    return {key: value.detach() for key, value in merged_state(policy.network).items()}


def check_exportable(policy: FlowPolicy, format: str) -> None:
    """Reject parts of a policy that no other package has.

    Raises:
        ValueError: its starting noise is chosen by a noise actor, its solver is not Euler's, or its
            network has options.
    """
    names = policy.network.config.options.names
    if names:
        raise ValueError(
            f"{format} cannot hold the network options {names} of this policy; save with "
            "format='pitune'"
        )
    if policy.noise_source is not None:
        raise ValueError(
            f"this policy is steered: a noise actor chooses its starting noise, and {format} has "
            "none; save with format='pitune'"
        )
    if policy.sampler.solver != "euler":
        raise ValueError(
            f"solver={policy.sampler.solver!r}, but {format} integrates by Euler's method; save "
            "with format='pitune', or replace the policy's sampler"
        )


def check_read_back(
    format: str,
    config: PreprocessorConfig,
    again: PreprocessorConfig,
    tolerated: Mapping[str, str],
) -> list[str]:
    """Compare a policy's preprocessing with that of its written files.

    Args:
        format: Name of the format, for the message.
        config: Settings of the policy.
        again: Settings that the other package reads from the files.
        tolerated: Text of each difference that is only warned of, by its setting.

    Returns:
        The tolerated differences.

    Raises:
        ValueError: another setting differs, so the other package would act differently.
    """
    differences = differing(config, again)
    refused = {name: pair for name, pair in differences.items() if name not in tolerated}
    if refused:
        listed = "; ".join(f"{name} is {a}, there {b}" for name, (a, b) in refused.items())
        raise ValueError(
            f"{format} cannot express this policy: {listed}; save with format='pitune'"
        )
    return [tolerated[name] for name in differences]


def write_weights(
    format: str,
    weights: dict[str, Tensor],
    reference: Shapes,
    folder: Path,
    metadata: dict[str, str],
) -> None:
    """Write `model.safetensors` if its keys and shapes are those that the reference reads.

    Raises:
        ValueError: they differ. Nothing is written.
    """
    check_written_keys(format, reference, weights)
    tensors = {key: value.contiguous() for key, value in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata=metadata)


def write_companions(policy: FlowPolicy, folder: Path) -> None:
    """Write `arch.json` and the tokenizer beside exported weights."""
    network = policy.network.config
    # the expert has the heads of the language model, so it stands in for an absent one
    vlm, vision = network.vlm or network.expert, network.vision
    # facts that the shapes of the weights do not determine
    arch = {
        "vlm": {"num_heads": vlm.num_heads, "num_kv_heads": vlm.num_kv_heads},
        "vision": {} if vision is None else {"num_attention_heads": vision.num_heads},
        "action_horizon": network.action_horizon,
        "precision": str(policy.network.compute_dtype).removeprefix("torch."),
    }
    write_json(folder / "arch.json", arch)
    write_tokenizer(policy, folder)


def write_tokenizer(policy: FlowPolicy, folder: Path) -> None:
    """Write the policy's tokenizer into a checkpoint folder, if it has one that can be saved."""
    tokenizer = policy.info.tokenizer
    if isinstance(tokenizer, Tokenizer):
        tokenizer.copy_to(folder / TOKENIZER)
