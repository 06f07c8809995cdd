"""The state of a cloning that is not finished, from which the same command continues."""

from __future__ import annotations

from pathlib import Path

import torch

from pitune.experiments.runs.progress import screen
from pitune.rl.algorithms.bc import CloningStep, clone
from pitune.rl.datasets.demonstrations import ChunkSource

SAVE_EVERY = 250
"""Gradient steps between two writes of the state."""


def clone_and_save(step: CloningStep, chunks: ChunkSource, num_steps: int, file: Path) -> float:
    """Take the remaining gradient steps of `num_steps`, and return their mean loss.

    The state is written every `SAVE_EVERY` steps.
    """
    first = step.num_steps
    with screen.task("cloning", num_steps, done=first) as task:

        def on_step(number: int) -> None:
            task.update(first + number)
            if (first + number) % SAVE_EVERY == 0:
                save_cloning(step, chunks, file)

        return clone(step, chunks, num_steps - first, on_step)


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
