"""The state of each rank in a checkpoint, and its way to another number of ranks.

Ranks have the same weights and optimizers, which rank 0 writes. Their random numbers, and rows of
their environments such as a replay memory, are their own. Rank 0's are in training.pt, and those of
rank r in rank_00r.pt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pitune.experiments.runs.folder.dealing import dealt
from pitune.experiments.runs.progress import screen
from pitune.policies import FlowPolicy
from pitune.rl import Algorithm, ranks


def rank_file(folder: Path, rank: int) -> Path:
    """Return the file of a rank's own state in a checkpoint."""
    return folder / f"rank_{rank:03d}.pt"


def random_state() -> dict[str, Any]:
    """Return the state of PyTorch's random numbers, of several ranks on this one's device."""
    state: dict[str, Any] = {"random": torch.get_rng_state()}
    if torch.cuda.is_available():
        several = ranks.world() > 1
        state["random_cuda"] = (
            [torch.cuda.get_rng_state()] if several else torch.cuda.get_rng_state_all()
        )
    return state


def write_rank_file(folder: Path | None, algorithm: Algorithm[Any]) -> None:
    """Let each rank but the first write its own state into rank 0's new checkpoint.

    Args:
        folder: Of the checkpoint, on rank 0.
        algorithm: Its own state is saved.
    """
    if ranks.world() == 1:
        return
    target = ranks.of_first(folder)
    if target is not None and ranks.rank():
        state = {**random_state(), "extra": algorithm.extra_state()}
        torch.save(state, rank_file(target, ranks.rank()))
    ranks.wait()


def restore(
    algorithm: Algorithm[Any],
    folder: Path,
    policy: FlowPolicy,
    state: dict[str, Any],
    progress: Mapping[str, Any],
) -> None:
    """Load a checkpoint into an algorithm, with the state of this rank.

    If another number of ranks saved it, their rows are dealt out, and random numbers are new.

    Args:
        algorithm: Changed in place.
        folder: Of the checkpoint.
        policy: Its policy.
        state: Its training state, in which rank 0's is replaced by this rank's.
        progress: Its progress, with the number of ranks if there were several.
    """
    saved, world = int(progress.get("ranks", 1)), ranks.world()
    if saved == world:
        own = _read(folder, ranks.rank()) if ranks.rank() else state
    else:
        others = [_read(folder, rank) for rank in range(1, saved)]
        extras = [state["training"]["extra"], *(other["extra"] for other in others)]
        own = {"extra": dealt(extras, ranks.rank(), world)}
        screen.note(
            f"the checkpoint is of {saved} ranks, and {world} continue it: their memories are "
            "dealt out anew, and environments and random numbers are others, so that later "
            "numbers are not those of an uninterrupted run"
        )
    training = {**state["training"], "extra": own.get("extra", state["training"]["extra"])}

    # policy, training state and random numbers
    algorithm.actor.policy.load_state_dict(policy.state_dict())
    algorithm.load_training_state(training)
    if "random" in own:
        _set_random_state(own)


def _read(folder: Path, rank: int) -> dict[str, Any]:
    """Return the own state of a rank, whose file the checkpoint's checksums include."""
    state: dict[str, Any] = torch.load(
        rank_file(folder, rank), map_location="cpu", weights_only=True
    )
    return state


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["random"])
    if not torch.cuda.is_available() or "random_cuda" not in state:
        return
    if ranks.world() > 1:
        torch.cuda.set_rng_state(state["random_cuda"][0])
    else:
        torch.cuda.set_rng_state_all(state["random_cuda"][: torch.cuda.device_count()])
