"""The state of each rank in a checkpoint, and its way to another number of ranks.

Ranks have the same weights and optimizers, which rank 0 writes. Their random numbers, and rows of
their environments such as a replay memory, are their own. Those of rank 0 are where a run of one
process has them, and those of rank r in the folder rank_00r of the checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from pitune.experiments.runs.folder.segments import Segments, write_index
from pitune.experiments.runs.folder.sharded import read_sharded
from pitune.experiments.runs.folder.state import random_state, restore_random
from pitune.experiments.runs.progress import screen
from pitune.policies import FlowPolicy
from pitune.policies.finetuning.shard import load_weights
from pitune.rl import Algorithm, ranks

STATE = "state.pt"


def rank_folder(checkpoint: Path, rank: int) -> Path:
    """Return the folder of a rank's memories in a checkpoint."""
    return checkpoint / f"rank_{rank:03d}" if rank else checkpoint


def write_rank_state(
    folder: Path | None,
    algorithm: Algorithm[Any],
    segments: Segments,
    episodes: dict[str, Any] | None,
) -> None:
    """Let each rank but the first write its own state into rank 0's new checkpoint.

    Args:
        folder: Of the checkpoint, on rank 0.
        algorithm: Its own state is saved.
        segments: Files of this rank's memories.
        episodes: State of this rank's rollouts.
    """
    # rank 0 names the folder, in which it has written its own state already
    target = ranks.of_first(folder)
    if target is not None and ranks.rank():
        own = rank_folder(target, ranks.rank())
        own.mkdir()
        if algorithm.memories:
            write_index(own, segments.write(algorithm.memories))
        state = {**random_state(), "extra": algorithm.extra_state(), "episodes": episodes}
        torch.save(state, own / STATE)
    ranks.wait()


def restore(
    algorithm: Algorithm[Any],
    folder: Path,
    parts: tuple[FlowPolicy, dict[str, Any], dict[str, Any]],
    segments: Segments,
) -> dict[str, Any] | None:
    """Load a checkpoint into an algorithm, with the own state of this rank.

    If another number of ranks saved it, their rows are dealt out, and random numbers are left as
    they are.

    Args:
        algorithm: Changed in place.
        folder: Of the checkpoint.
        parts: Its policy, training state and progress.
        segments: Files of this rank's memories.

    Returns:
        The state of this rank's rollouts, None between episodes.
    """
    # own states of all ranks that saved, of which the first is the checkpoint's
    policy, state, progress = parts
    saved, world, rank = int(progress.get("ranks", 1)), ranks.world(), ranks.rank()
    owns = [state, *(_read(folder, other) for other in range(1, saved))]
    extras = [state["training"]["extra"], *(own["extra"] for own in owns[1:])]
    extra = extras[rank] if saved == world else dealt(extras, rank, world)
    # weights and optimizers, which are the same on all ranks
    load_weights(algorithm.actor.policy, policy.state_dict())
    training = read_sharded(folder, state["training"], algorithm)
    algorithm.load_training_state({**training, "extra": extra})
    if saved == world:
        segments.load(rank_folder(folder, rank), algorithm.memories)
        restore_random(owns[rank])
        episodes: dict[str, Any] | None = owns[rank].get("episodes")
        return episodes

    # rows of all ranks
    segments.prefix += f"dealt_{progress['iteration']}_"  # not the names of the files that are read
    for name, memory in algorithm.memories.items():
        for other in range(saved):
            for rows in segments.rows(rank_folder(folder, other), name):
                # every `world`-th row, so that each rank gets old and new ones
                own_rows = {key: value[rank::world] for key, value in rows.items()}
                num = len(next(iter(own_rows.values())))
                memory.push(TensorDict(own_rows, batch_size=[num]).unflatten_keys("."))
    screen.note(
        f"the checkpoint is of {saved} ranks, and {world} continue it: their memories are dealt "
        "out anew, and environments and random numbers are others, so that later numbers are not "
        "those of an uninterrupted run"
    )
    return None


def _read(folder: Path, rank: int) -> dict[str, Any]:
    """Return the own state of a rank, whose file the checkpoint's checksums include."""
    file = rank_folder(folder, rank) / STATE
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def dealt(states: list[dict[str, Any]], rank: int, world: int) -> dict[str, Any]:
    """Return the `extra_state` of a rank among `world`, from those of all ranks that saved.

    An entry named `pending` holds decisions that wait for an update. Their episodes are dealt out.
    All other entries are the same on every rank.

    Args:
        states: Of the ranks that saved, in their order.
        rank: This rank.
        world: Number of ranks now.

    Example:
        >>> states = [{"pending": [{"episode": torch.tensor([0, 0, 1])}], "num": 3}]
        >>> dealt(states, rank=1, world=2)
        {'pending': [{'episode': tensor([1])}], 'num': 3}
    """
    state = dict(states[0])
    if "pending" in state:
        parts = [rows for other in states for rows in other["pending"]]
        state["pending"] = [
            {key: value[rows["episode"] % world == rank] for key, value in rows.items()}
            for rows in parts
        ]
    return state
