"""The state in a run's checkpoints: the latest whole one, the best one, and the ones to remove."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pitune.experiments.runs.folder.checkpoints import (
    PROGRESS,
    TRAINING,
    DamagedCheckpointError,
    damage_of,
    own_checkpoints,
    read_progress,
    remove,
    set_aside,
)
from pitune.experiments.runs.folder.segments import Segments, write_index
from pitune.experiments.runs.folder.sharded import write_sharded
from pitune.policies import FlowPolicy
from pitune.policies.checkpoints.native import load_policy
from pitune.rl import Algorithm, ranks


def write_state(
    folder: Path,
    algorithm: Algorithm[Any],
    segments: Segments,
    episodes: dict[str, Any] | None,
) -> None:
    """Write the training state, the random numbers and the state of the episodes into a folder.

    The memories' new rows become files of their own.
    """
    if algorithm.memories:
        write_index(folder, segments.write(algorithm.memories))
    training = write_sharded(folder, algorithm.training_state(with_memories=False))
    torch.save({"training": training, **random_state(), "episodes": episodes}, folder / TRAINING)


def random_state() -> dict[str, Any]:
    """Return the state of PyTorch's random numbers on the devices of this process."""
    state: dict[str, Any] = {"random": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["random_cuda"] = [torch.cuda.get_rng_state(device) for device in ranks.devices()]
    return state


def restore_random(state: dict[str, Any]) -> None:
    """Restore the result of `random_state`, on the devices that this process has."""
    torch.set_rng_state(state["random"])
    if torch.cuda.is_available():
        for device, value in zip(ranks.devices(), state.get("random_cuda", ()), strict=False):
            torch.cuda.set_rng_state(value, device)


def best_of(checkpoints: Sequence[Path]) -> Path:
    """Return the checkpoint with the highest rank in its own evaluation."""

    def rank(folder: Path) -> float:
        try:
            progress = read_progress(folder)
            # older versions stored the success rate alone, nan if all episodes were invalid
            value = float(progress.get("rank", progress["success_rate"]))
        except (DamagedCheckpointError, KeyError, TypeError):  # damaged, or never evaluated
            return -math.inf
        return -math.inf if math.isnan(value) else value

    return max(checkpoints, key=rank)


def prune(folder: Path) -> None:
    """Remove all checkpoints of a run but the latest and the best. A damaged one is set aside.

    It counts as neither, or it would take the place of the one that has just been written.
    """
    whole = []
    for checkpoint in own_checkpoints(folder):
        if fault := damage_of(checkpoint):
            set_aside(checkpoint, "damaged", fault)
        else:
            whole.append(checkpoint)
    for checkpoint in set(whole) - {whole[-1], best_of(whole)}:
        remove(checkpoint)


def latest_whole(
    checkpoints: Sequence[Path], needed: Sequence[str]
) -> tuple[Path, tuple[FlowPolicy, dict[str, Any], dict[str, Any]], dict[Path, str]]:
    """Return the newest whole checkpoint, its parts, and the faults of newer ones.

    Args:
        checkpoints: Oldest first.
        needed: Entries that the progress must have.

    Raises:
        ValueError: none is whole.
    """
    faults: dict[Path, str] = {}
    for folder in reversed(checkpoints):
        try:
            return folder, read_checkpoint(folder, needed), faults
        except DamagedCheckpointError as error:
            faults[folder] = str(error)
    listed = "; ".join(f"{path}: {fault}" for path, fault in faults.items())
    raise ValueError(
        f"no checkpoint of the run is whole: {listed}. Restore one, or start again with another "
        "--out"
    )


def read_checkpoint(
    folder: Path, needed: Sequence[str]
) -> tuple[FlowPolicy, dict[str, Any], dict[str, Any]]:
    """Return the policy, the training state and the progress of a checkpoint.

    Raises:
        DamagedCheckpointError: a part is missing, cut, changed or not readable.
    """
    fault = damage_of(folder, deep=True)
    if fault is not None:
        raise DamagedCheckpointError(fault)
    progress = read_progress(folder)
    lacks = [name for name in needed if name not in progress]
    if lacks:
        raise DamagedCheckpointError(f"{PROGRESS} lacks {', '.join(lacks)}")
    try:
        policy = load_policy(folder)
    except (ValueError, OSError) as error:
        raise DamagedCheckpointError(str(error)) from error
    try:
        state = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        if not {"training", "random"} <= state.keys():
            raise ValueError("training or random is missing")
    except Exception as error:  # a damaged zip raises errors of many classes
        raise DamagedCheckpointError(f"{TRAINING} is damaged ({error})") from error
    return policy, state, progress
