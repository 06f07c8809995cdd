"""The state of a cloning that is not finished, from which the same command continues."""

from __future__ import annotations

from pathlib import Path

import torch

from pitune.rl.algorithms.bc import CloningStep
from pitune.rl.datasets.demonstrations import ChunkSource


def save_cloning(step: CloningStep, chunks: ChunkSource, file: Path) -> None:
    """Write the state of a cloning, whole or not at all."""
    state = {
        "policy": step.policy.state_dict(),
        "optimizer": step.optimizer.state_dict(),
        "num_steps": step.num_steps,
        "random": torch.get_rng_state(),
        "chunks": chunks.state(),
    }
    temporary = file.with_name(f"tmp_{file.name}")
    torch.save(state, temporary)
    temporary.rename(file)


def restore_cloning(step: CloningStep, chunks: ChunkSource, file: Path) -> None:
    """Load the state that `save_cloning` wrote, random numbers included."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    step.policy.load_state_dict(state["policy"])
    step.optimizer.load_state_dict(state["optimizer"])
    step.num_steps = state["num_steps"]
    chunks.load_state(state.get("chunks", {}))
    torch.set_rng_state(state["random"])
