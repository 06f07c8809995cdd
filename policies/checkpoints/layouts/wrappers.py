"""Names of weights without those of the modules that wrapped the network.

`torch.compile`, data parallelism, FSDP and PEFT put names of their own anywhere into a key, and a
policy class puts its attribute before it. A key begins at its first part that belongs to the
network, so that the prefix need not be known. Two weights of one name under two prefixes are an
error: one of them is an average, an older copy or a critic.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_NETWORK = ("paligemma_with_expert",)
_HEADS = (
    "action_in_proj",
    "action_out_proj",
    "state_proj",
    "action_time_mlp_in",
    "action_time_mlp_out",
    "time_mlp_in",
    "time_mlp_out",
    # transformers' own class
    "vlm",
    "dit",
    "embed_action_time",
    # statistics of lerobot 0.3
    "normalize_inputs",
    "normalize_targets",
    "unnormalize_outputs",
)
_PLAIN_PREFIX = {"model", "policy", "network", "net", "actor", "base_model", "pi0", "pi05"}
"""Parts of a prefix that name the policy. Another prefix is accepted with a warning."""
_UNUSED = re.compile(
    r".*\.rotary_emb\.(original_)?inv_freq"
    r"|.*\.(position_ids|position_bias_ids)"
    r"|.*gemma_expert\.model\.embed_tokens\.weight"
    r"|.*vision_model\.head\..*"
)
"""Weights that other writers store and the network computes without: angles of rotary positions,
counters of positions, the expert's unused embedding, and SigLIP's pooling head."""


def unwrapped(weights: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Return the weights under the network's names, without those that it does not use.

    Raises:
        ValueError: two prefixes hold the same weight, or FSDP has flattened the weights.
    """
    named: dict[str, Tensor] = {}
    prefixes: dict[str, str] = {}
    for key, value in weights.items():
        prefix, name = _split(key)
        if name.endswith(("_flat_param", "flat_param")):
            raise ValueError(
                f"{source} holds {key!r}, which FSDP has flattened; save a full state dict "
                "(StateDictType.FULL_STATE_DICT) with the program that wrote it"
            )
        if name in named:
            raise ValueError(
                f"{source} holds {name!r} under the prefixes {prefixes[name]!r} and {prefix!r}: two"
                " weights are called alike, as in a checkpoint with averaged weights or a critic; "
                "keep the keys of one prefix"
            )
        prefixes[name] = prefix
        if not _UNUSED.fullmatch(name):
            named[name] = value
    _report({prefixes[name] for name in named}, source)
    return named


def _split(key: str) -> tuple[str, str]:
    """Return the prefix of a key and its name in the network. An unknown key is its own name."""
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    for roots in (_NETWORK, _HEADS):
        for i, part in enumerate(parts):
            if part in roots:
                return ".".join(parts[:i]), ".".join(parts[i:])
    return "", ".".join(parts)


def _report(prefixes: set[str], source: Path) -> None:
    unknown = [prefix for prefix in prefixes if not set(prefix.split(".")) <= _PLAIN_PREFIX | {""}]
    if unknown:
        warnings.warn(
            f"the weights of {source} stand under the prefix {sorted(unknown)}, and are taken as "
            "the policy's because there are no others",
            stacklevel=2,
        )
