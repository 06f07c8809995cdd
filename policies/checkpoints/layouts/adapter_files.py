"""The files of PEFT's adapters, and their settings, each merged or rejected by name.

Source: PEFT `tuners/lora/config.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt")
_MERGED = {
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "bias",
}
_IRRELEVANT = {
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "peft_type",
    "peft_version",
    "task_type",
    "megatron_core",
    "qalora_group_size",
    "init_lora_weights",
    "loftq_config",
    "eva_config",
    "runtime_config",
    "ensure_weight_tying",
    # for layers that store their weight transposed; none of the network's does
    "fan_in_fan_out",
}
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations that also change the base's weights, which the adapter does not hold."""


def adapter_files(folder: Path) -> list[str]:
    """Return the names of the files of an adapter in a folder."""
    names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *PICKLES)
    return [name for name in names if (folder / name).is_file()]


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return `adapter_config.json`, empty if there is none.

    Raises:
        ValueError: it is no JSON object.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file} is not a valid JSON object ({error}); take a complete adapter"
        ) from error


def named_base(folder: Path) -> Path | None:
    """Return the folder of the base that an adapter's config names, None if it is not here."""
    named = read_adapter_config(folder).get("base_model_name_or_path")
    for place in () if not named else (Path(str(named)), folder / str(named)):
        if place.is_dir() and place.resolve() != folder.resolve():
            return place
    return None


def base_folder(folder: Path) -> Path | None:
    """Return the folder of an adapter's base, None without an adapter.

    Raises:
        FileNotFoundError: the base is not on this machine.
    """
    if not adapter_files(folder):
        return None
    if (base := named_base(folder)) is not None:
        return base
    named = read_adapter_config(folder).get("base_model_name_or_path")
    raise FileNotFoundError(
        f"{folder} holds an adapter, {adapter_files(folder)}, and its base_model_name_or_path="
        f"{named!r} is no folder on this machine; put the base's model.safetensors beside the "
        "adapter, or write the base's folder into adapter_config.json"
    )


def reject_adapter(folder: Path, format: str) -> None:
    """Fail if an adapter lies beside weights of a format into which none is merged.

    Raises:
        ValueError: names the adapter's file.
    """
    if present := adapter_files(folder):
        raise ValueError(
            f"{folder / present[0]} belongs to an adapter, and none is merged into a {format} "
            "checkpoint; remove the adapter's files, or merge it into the openpi or lerobot "
            "checkpoint that it was trained on"
        )


def check_adapter_config(config: dict[str, Any], file: Path) -> None:
    """Fail if an adapter has a setting that a plain low-rank update does not express.

    Raises:
        ValueError: names the setting.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(
            f"{file} has peft_type={kind!r}; only 'LORA' is merged here, so merge it with PEFT's "
            "merge_and_unload and load the result"
        )
    start = str(config.get("init_lora_weights")).lower()
    unknown = {
        key: value
        for key, value in config.items()
        if value and key not in _MERGED | _IRRELEVANT and value not in ("none", [], {})
    }
    if start.startswith(_BASE_CHANGING):
        unknown["init_lora_weights"] = config["init_lora_weights"]
    if unknown:
        name, value = sorted(unknown.items())[0]
        raise ValueError(
            f"{file} has {name}={value!r}, with which the adapter is no plain low-rank update; "
            "merge it with PEFT's merge_and_unload and load the result"
        )
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), int | float) or config[name] <= 0:
            raise ValueError(
                f"{file} has {name}={config.get(name)!r}, which must be a positive number; take a "
                "complete adapter"
            )
