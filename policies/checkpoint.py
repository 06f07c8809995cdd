"""Checkpoint folders: `policy.safetensors` (weights) and `policy.json` (how to build the policy).

A folder is written beside its place and renamed, so a reader never finds half of one. Loading is
strict and never unpickles.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from policies.gemma import GemmaConfig
from policies.pi0 import Pi0Config
from policies.policy import FlowPolicy, SamplerConfig
from policies.preprocessor import PreprocessorConfig
from policies.steering import SteeredPolicy, SteeringConfig

FORMAT, VERSION = "pitune", 1
WEIGHTS, DESCRIPTION = "policy.safetensors", "policy.json"


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


def save(policy: FlowPolicy, path: Path | str) -> None:
    """Write a checkpoint folder.

    Raises:
        FileExistsError: `path` exists already.
    """
    with atomic_folder(Path(path)) as folder:
        write_policy(policy, folder)


def write_policy(policy: FlowPolicy, folder: Path) -> None:
    """Write the two files of a policy into an existing folder."""
    weights = {key: value.contiguous() for key, value in policy.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    description = {
        "format": FORMAT,
        "version": VERSION,
        "network": asdict(policy.network.config),
        "preprocessor": asdict(policy.preprocessor.config),
        "sampler": asdict(policy.sampler),
    }
    if isinstance(policy, SteeredPolicy):
        description["steering"] = asdict(policy.steering)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def load(path: Path | str) -> FlowPolicy:
    """Read a checkpoint folder.

    Raises:
        FileNotFoundError: there is no such folder, or one of its files is missing.
        ValueError: a file is damaged, or is not what this version of pitune wrote.
    """
    folder = Path(path)
    description = _read_description(folder)
    try:
        network = description["network"]
        policy = FlowPolicy(
            Pi0Config(**{**network, "expert": GemmaConfig(**network["expert"])}),
            PreprocessorConfig.from_dict(description["preprocessor"]),
            SamplerConfig(**description["sampler"]),
        )
        if "steering" in description:
            policy = SteeredPolicy(policy, SteeringConfig.from_dict(description["steering"]))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / DESCRIPTION} does not describe a policy ({error!r}); it was damaged or "
            "written by another version, take a complete checkpoint"
        ) from error
    _load_weights(policy, folder / WEIGHTS)
    return policy


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
    if written_by != (FORMAT, VERSION):
        raise ValueError(
            f"{folder / DESCRIPTION} has format, version {written_by}; this pitune reads "
            f"{(FORMAT, VERSION)}"
        )
    return dict(description)


def _load_weights(policy: FlowPolicy, file: Path) -> None:
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is damaged or cut short ({error}); take a complete checkpoint"
        ) from error
    expected = {key: tuple(value.shape) for key, value in policy.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    if expected != found:
        missing, surplus = sorted(expected.keys() - found), sorted(found.keys() - expected)
        wrong = {
            k: (found[k], expected[k]) for k in expected.keys() & found if found[k] != expected[k]
        }
        raise ValueError(
            f"{file} does not fit its {DESCRIPTION}: missing keys {missing}, surplus keys "
            f"{surplus}, wrong shapes (found, expected) {wrong}"
        )
    policy.load_state_dict(weights)
