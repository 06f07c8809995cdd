"""Our checkpoint folders: `policy.safetensors` (weights) and `policy.json` (how to build it).

A policy that reads a prompt has its tokenizer in `tokenizer/`. A folder is written beside its
place and renamed, so a reader never finds half of one. Loading is strict, lean and never
unpickles: the network is built without memory and takes over the mapped weights as they are.
Other formats are in `pitune.policies.checkpoints.formats`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pitune.policies.checkpoints.weights import check_keys, read_safetensors
from pitune.policies.network.config import Pi0Config
from pitune.policies.network.lora import LoRAConfig, add_lora
from pitune.policies.network.pi0 import Pi0
from pitune.policies.noise_source import NoiseSource, SteeringConfig
from pitune.policies.policy import FlowPolicy, PolicyInfo, SamplerConfig
from pitune.policies.preprocessing.preprocessor import PreprocessorConfig
from pitune.policies.preprocessing.tokenizer import Tokenizer

FORMAT, VERSION = "pitune", 3
READABLE = (1, 2, 3)
"""Versions that are read: 1 had no pictures, prompts or fingerprint; 2 named the noise source's
weights otherwise."""
RENAMED = {"noise_actor.": "noise_source.actor.", "steered": "noise_source.steered"}
"""Beginnings of weight names in version 2, and those of today."""
WEIGHTS, DESCRIPTION, TOKENIZER = "policy.safetensors", "policy.json", "tokenizer"


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, and rename it to `path` when all went well.

    Raises:
        FileExistsError: `path` exists already.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already; pass another path or remove it")
    temporary = path.with_name(f"tmp_{path.name}_{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had the same number
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_policy(policy: FlowPolicy, folder: Path) -> None:
    """Write a policy into an existing folder."""
    weights = {key: value.contiguous() for key, value in policy.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    description = {
        "format": FORMAT,
        "version": VERSION,
        "network": asdict(policy.network.config),
        "preprocessor": asdict(policy.preprocessor.config),
        "sampler": asdict(policy.sampler),
        "fingerprint": policy.preprocessor.config.fingerprint(),
        "compute_dtype": str(policy.network.compute_dtype).removeprefix("torch."),
        "origin": dict(policy.info.origin),
        "lora": None if policy.info.lora is None else asdict(policy.info.lora),
    }
    if isinstance(policy.info.tokenizer, Tokenizer):
        policy.info.tokenizer.copy_to(folder / TOKENIZER)
    if policy.noise_source is not None:
        description["steering"] = asdict(policy.noise_source.config)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def load_policy(folder: Path) -> FlowPolicy:
    """Read one of our checkpoint folders.

    Raises:
        FileNotFoundError: one of its files is missing.
        ValueError: a file is damaged, or is not what this version of pitune wrote.
    """
    description = _read_description(folder)
    weights = read_safetensors(folder / WEIGHTS)
    try:
        preprocessor = PreprocessorConfig.from_dict(description["preprocessor"])
        with torch.device("meta"):
            network = Pi0(Pi0Config.from_dict(description["network"]))
            lora = description.get("lora")
            if lora is not None:
                lora = LoRAConfig(**{**lora, "targets": tuple(lora["targets"])})
                add_lora(network, lora)
        info = PolicyInfo(origin=dict(description.get("origin", {})), lora=lora)
        sampler = SamplerConfig(**description["sampler"])
        policy = FlowPolicy(network, preprocessor, sampler, info=info)
        network.compute_dtype = getattr(torch, description.get("compute_dtype", "float32"))
        if "steering" in description:
            policy = _with_noise_source(policy, description)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / DESCRIPTION} does not describe a policy ({error!r}); it was damaged or "
            "written by another version, take a complete checkpoint"
        ) from error
    if description.get("fingerprint", preprocessor.fingerprint()) != preprocessor.fingerprint():
        raise ValueError(
            f"the norm stats or pipeline in {folder / DESCRIPTION} were edited: their fingerprint "
            f"is {preprocessor.fingerprint()}, {description['fingerprint']} was written; a policy "
            "runs with the statistics that it was trained with"
        )
    weights = {_renamed(key): value for key, value in weights.items()}
    check_keys(policy.state_dict(), weights, folder / WEIGHTS)
    policy.load_state_dict(weights, assign=True)
    if (folder / TOKENIZER).is_dir():
        info = replace(policy.info, tokenizer=Tokenizer.load(folder / TOKENIZER))
        policy = policy.replace(info=info)
    return policy


def _with_noise_source(policy: FlowPolicy, description: dict[str, Any]) -> FlowPolicy:
    """Return the policy with the noise source that a checkpoint describes."""
    config = SteeringConfig.from_dict(description["steering"])
    width = policy.preprocessor.model_state_dim + policy.network.config.feature_dim
    horizon = policy.sampler.execution_horizon
    source = NoiseSource(config, policy.chunk_shape, horizon, width)
    policy.requires_grad_(False)
    return policy.replace(noise_source=source)


def _renamed(key: str) -> str:
    """Return today's name of a weight of an older version."""
    for old, new in RENAMED.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _read_description(folder: Path) -> dict[str, Any]:
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"no {name} in {folder}; a checkpoint is a folder with {DESCRIPTION} and "
                f"{WEIGHTS}, experiments.pretrain makes one"
            )
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        written_by = (description.get("format"), description.get("version"))
    except (ValueError, AttributeError) as error:  # no text, no JSON, or no JSON object
        raise ValueError(
            f"{folder / DESCRIPTION} is not a valid JSON object ({error}); the checkpoint is "
            "damaged"
        ) from error
    if written_by[0] != FORMAT or written_by[1] not in READABLE:
        raise ValueError(
            f"{folder / DESCRIPTION} has format, version {written_by}; this pitune reads "
            f"{FORMAT!r}, {READABLE}"
        )
    return dict(description)
