"""Our checkpoint folders: `policy.safetensors` (weights) and `policy.json` (how to build it).

The tokenizer of a policy that reads a prompt is in `tokenizer/`, and its FAST tokenizer, if it has
one, in `fast/`. Loading is strict and never
unpickles. The network is built without memory and shares the mapped weights without a copy.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pitune.policies.checkpoints.config import (
    LoadConfig,
    with_configs,
    with_settings,
)
from pitune.policies.checkpoints.external import TOKENIZER, write_tokenizer
from pitune.policies.checkpoints.files import read_safetensors, write_json
from pitune.policies.checkpoints.keys import check_keys
from pitune.policies.checkpoints.pipelines import Pipeline
from pitune.policies.fast.tokenizer import FastTokenizer
from pitune.policies.network.config import Pi0Config
from pitune.policies.network.lora import LoRAConfig, add_lora
from pitune.policies.network.pi0 import Pi0
from pitune.policies.noise_source import SteeringConfig
from pitune.policies.policy import FlowPolicy
from pitune.policies.policy_config import PolicyInfo, SamplerConfig
from pitune.policies.preprocessing.norm_stats_file import read_norm_stats
from pitune.policies.preprocessing.preprocessor import PreprocessorConfig
from pitune.policies.preprocessing.tokenizer import Tokenizer

FORMAT, VERSION = "pitune", 3
READABLE = (1, 2, 3)
"""Versions that can be read. Version 1 had no pictures, prompts or fingerprint. Version 2 had other
names for the weights of the noise source."""
RENAMED = {"noise_actor.": "noise_source.actor.", "steered": "noise_source.steered"}
"""Prefixes of weight names in version 2, and the present ones."""
WEIGHTS, DESCRIPTION, FAST = "policy.safetensors", "policy.json", "fast"


def is_native(folder: Path) -> bool:
    """Return whether a folder is one of our checkpoints, or a damaged one."""
    return (folder / DESCRIPTION).is_file() or (folder / WEIGHTS).is_file()


def read(folder: Path, config: LoadConfig, pipeline: Pipeline | None = None) -> FlowPolicy:
    """Read one of our checkpoint folders, and change its norm stats and settings as requested.

    Raises:
        FileNotFoundError: one of its files is missing.
        ValueError: a file is damaged, or the policy cannot have these settings.
    """
    return with_settings(_with_norm_stats(load_policy(folder), config), config)


def write_policy(policy: FlowPolicy, folder: Path) -> list[str]:
    """Write a policy into an existing folder, and return no differences: it holds everything."""
    # weights
    weights = {key: value.contiguous() for key, value in policy.state_dict().items()}
    save_file(weights, folder / WEIGHTS)

    # description
    info = policy.info
    description = {
        "format": FORMAT,
        "version": VERSION,
        "network": asdict(policy.network.config),
        "preprocessor": asdict(policy.preprocessor.config),
        "sampler": asdict(policy.sampler),
        "fingerprint": policy.preprocessor.config.fingerprint(),
        "compute_dtype": str(policy.network.compute_dtype).removeprefix("torch."),
        "origin": dict(info.origin),
        "lora": None if info.lora is None else asdict(info.lora),
        "environment": dict(info.environment),
        "real_time_delay": info.real_time_delay,
    }
    write_tokenizer(policy, folder)
    if info.fast is not None:
        info.fast.save(folder / FAST)
    if policy.noise_source is not None:
        description["steering"] = asdict(policy.noise_source.config)
    write_json(folder / DESCRIPTION, description)
    return []


def load_policy(folder: Path) -> FlowPolicy:
    """Read one of our checkpoint folders as it was saved.

    Raises:
        FileNotFoundError: one of its files is missing.
        ValueError: a file is damaged, or was written by an incompatible version of pitune.
    """
    # files
    description = _read_description(folder)
    weights = read_safetensors(folder / WEIGHTS)

    # policy of the described sizes, with the network on the meta device
    try:
        preprocessor = PreprocessorConfig.from_dict(description["preprocessor"])
        network, lora = _network_without_memory(description)
        fast = FastTokenizer.load(folder / FAST) if (folder / FAST).is_dir() else None
        info = PolicyInfo(
            fast=fast,
            origin=dict(description.get("origin", {})),
            lora=lora,
            environment=dict(description.get("environment", {})),  # absent before pitune 0.3
            real_time_delay=description.get("real_time_delay", _old_delay(description)),
        )
        sampler = SamplerConfig.from_dict(description["sampler"])
        policy = FlowPolicy(network, preprocessor, sampler, info=info)
        if "steering" in description:
            config = SteeringConfig.from_dict(description["steering"])
            policy = policy.with_noise_source(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / DESCRIPTION} does not describe a policy ({error!r}); it was damaged or "
            "written by another version, take a complete checkpoint"
        ) from error

    # fingerprint of norm stats and pipeline
    if description.get("fingerprint", preprocessor.fingerprint()) != preprocessor.fingerprint():
        raise ValueError(
            f"the norm stats or pipeline in {folder / DESCRIPTION} were edited: their fingerprint "
            f"is {preprocessor.fingerprint()}, but {description['fingerprint']} was written; a "
            "policy needs the statistics that it was trained with, restore the file"
        )

    # weights in place of the meta tensors
    weights = {_renamed(key): value for key, value in weights.items()}
    check_keys(policy.state_dict(), weights, folder / WEIGHTS)
    policy.load_state_dict(weights, assign=True)

    # tokenizer
    if (folder / TOKENIZER).is_dir():
        tokenizer = Tokenizer.load(folder / TOKENIZER)
        policy = policy.replace(info=replace(policy.info, tokenizer=tokenizer))
    return policy


def _renamed(key: str) -> str:
    """Return the present name of a weight that an older version wrote."""
    for old, new in RENAMED.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _network_without_memory(description: dict[str, Any]) -> tuple[Pi0, LoRAConfig | None]:
    """Return the network on the meta device with its low-rank updates, and their config."""
    lora = None
    with torch.device("meta"):
        network = Pi0(Pi0Config.from_dict(description["network"]))
        if description.get("lora") is not None:
            values = description["lora"]
            lora = LoRAConfig(**{**values, "targets": tuple(values["targets"])})
            add_lora(network, lora)
    network.compute_dtype = getattr(torch, description.get("compute_dtype", "float32"))
    return network, lora


def _with_norm_stats(policy: FlowPolicy, config: LoadConfig) -> FlowPolicy:
    """Return the policy with the caller's norm stats, if there are any.

    Raises:
        ValueError: the policy does not normalize, or is steered.
    """
    if config.norm_stats is None:
        return policy
    state, action = read_norm_stats(config.norm_stats)
    before = policy.preprocessor.config
    if before.normalization == "none":
        raise ValueError(
            "this policy was saved unnormalized, so norm stats would not be used; load the "
            "original checkpoint with norm_stats (--load.norm-stats)"
        )
    preprocessor = replace(
        before, state=state.first(before.state.dim), action=action.first(before.action.dim)
    )
    return with_configs(policy, preprocessor, policy.sampler)


def _read_description(folder: Path) -> dict[str, Any]:
    """Return `policy.json`.

    Raises:
        FileNotFoundError: one of the checkpoint's files is missing.
        ValueError: it is no JSON object, or of a version that cannot be read.
    """
    # a complete folder
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"no {name} in {folder}; a checkpoint is a folder with {DESCRIPTION} and "
                f"{WEIGHTS}, experiments.pretrain writes one"
            )

    # a JSON object
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        written_by = (description.get("format"), description.get("version"))
    except (ValueError, AttributeError) as error:  # not text, not JSON, or not a JSON object
        raise ValueError(
            f"{folder / DESCRIPTION} is not a valid JSON object ({error}); the checkpoint is "
            "damaged, take a complete one"
        ) from error

    # a known format and version
    if written_by[0] != FORMAT or written_by[1] not in READABLE:
        raise ValueError(
            f"{folder / DESCRIPTION} has format, version {written_by}; this pitune reads "
            f"{FORMAT!r}, {READABLE}, so install the version that wrote it"
        )
    return dict(description)


def _old_delay(description: dict[str, Any]) -> int:
    """Return the delay of the cloning where pitune 0.3 stored it."""
    real_time = description["sampler"].get("real_time") or {}
    return int(real_time.get("max_delay", 0))
