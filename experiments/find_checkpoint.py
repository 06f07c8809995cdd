"""`--checkpoint`: the checkpoint in the folder of a run, and the environment of a policy."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from pitune import envs, policies
from pitune.experiments.runs.config_file import plain
from pitune.experiments.runs.folder.checkpoints import CHECKSUMS, checksum_fault, own_checkpoints
from pitune.experiments.runs.folder.state import best_of
from pitune.experiments.runs.progress import screen

PRETRAINED = "pretrained"
"""Folder of a clone, beside the runs that start from it."""
WEIGHTS = ("policy.json", "policy.safetensors")


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint in a folder, and print which if it is another folder.

    A run has its best checkpoint, or its last where no success was measured, or the checkpoint that
    it starts from. The folder of a clone has `pretrained`.

    Args:
        path: A checkpoint's folder of any format, a run's, or that of a clone.

    Raises:
        ValueError: the folder holds several runs, or a clone and runs.
    """
    if not path.is_dir() or (path / WEIGHTS[0]).is_file():
        return path
    found = _of_run(path)
    if found is not None:
        checkpoint, reason = found
        screen.note(f"{path} is a run; --checkpoint is {reason}: {checkpoint}")
        return checkpoint

    # a folder of the quickstart or of `pretrain`; one of another package holds neither
    inside = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    candidates = [folder for folder in inside if _is_clone(folder) or _of_run(folder) is not None]
    if len(candidates) > 1:
        raise ValueError(
            f"checkpoint={path} holds several checkpoints and runs; pass one of "
            f"{', '.join(map(str, candidates))}"
        )
    if candidates and _is_clone(candidates[0]):
        screen.note(f"{path} holds a clone; --checkpoint is {candidates[0]}")
        return candidates[0]
    return path


def _is_clone(folder: Path) -> bool:
    return folder.name == PRETRAINED and any((folder / name).is_file() for name in WEIGHTS)


def _of_run(run: Path) -> tuple[Path, str] | None:
    """Return the checkpoint of a run with the reason for it, or None if this is no run."""
    rates = {}
    for folder in own_checkpoints(run):
        fault, rate = _success_rate(folder)
        if fault:
            screen.note(f"warning: {folder} is damaged ({fault}) and not used")
        else:
            rates[folder] = rate
    measured = {folder: rate for folder, rate in rates.items() if not math.isnan(rate)}
    if measured:
        best = best_of(list(measured))
        return best, f"its best, with success {measured[best]:.1%} when it was saved"
    if rates:
        return list(rates)[-1], "its last, because no success was measured"
    start = _start_of(run)
    return None if start is None else (start, "the one that it starts from, as it has none yet")


def _success_rate(checkpoint: Path) -> tuple[str | None, float]:
    """Return the fault of a checkpoint, if it has one, and its success rate or nan."""
    missing = [name for name in WEIGHTS if not (checkpoint / name).is_file()]
    if missing:
        return f"it lacks {', '.join(missing)}", math.nan
    try:
        progress = json.loads((checkpoint / "progress.json").read_text())
        stored = progress["success_rate"]
        # none where a signal ended the run between evaluations
        rate = math.nan if stored is None else float(stored)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"progress.json: {error!r}", math.nan
    # nan where all episodes were broken
    if not (math.isnan(rate) or 0 <= rate <= 1):
        return f"progress.json: success_rate={rate}", rate
    # absent from checkpoints of pitune 0.2 and before
    has_sums = (checkpoint / CHECKSUMS).is_file()
    return checksum_fault(checkpoint, deep=True) if has_sums else None, rate


def _start_of(run: Path) -> Path | None:
    """Return the checkpoint that a run starts from, or None if it is not known."""
    try:
        start = Path(json.loads((run / "config.json").read_text())["config"]["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return start if start.is_dir() else None


def with_environment(policy: policies.FlowPolicy, env: envs.EnvConfig) -> policies.FlowPolicy:
    """Return the policy with the environment that it learns in, which its checkpoints store."""
    return policy.replace(info=replace(policy.info, environment=_identity(env)))


def environment_note(policy: policies.FlowPolicy, env: envs.EnvConfig) -> str | None:
    """Return a sentence if a policy comes from another environment, or from one of other options.

    Example:
        >>> from types import SimpleNamespace
        >>> policy = SimpleNamespace(info=SimpleNamespace(environment={"id": "mujoco/PickCube"}))
        >>> environment_note(policy, envs.EnvConfig(id="mock/Reach"))
        'the checkpoint was trained in mujoco/PickCube, and this is mock/Reach'
    """
    before, now = dict(policy.info.environment), _identity(env)
    if not before:
        return None  # of another package, or of an older version
    if before.get("id") != now["id"]:
        return f"the checkpoint was trained in {before.get('id')}, and this is {now['id']}"
    shared = sorted(before.keys() & now.keys())
    different = [
        f"{key} {before[key]!r} -> {now[key]!r}" for key in shared if before[key] != now[key]
    ]
    if different:
        return (
            f"the checkpoint was trained in {now['id']} with other settings: {', '.join(different)}"
        )
    return None


def _identity(env: envs.EnvConfig) -> dict[str, Any]:
    """Return the settings of an environment that change the task, as JSON values."""
    options = env.typed_options(envs.prefixes()[env.prefix])
    values = {"reward": env.reward, "max_episode_steps": env.max_episode_steps}
    return {"id": env.id, **values, "cameras": list(env.cameras), "options": plain(options)}
