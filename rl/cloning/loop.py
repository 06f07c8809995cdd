"""The loop of cloning: gradient steps on random chunks.

Letters: N rows, H action horizon, d robot action dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tensordict import TensorDictBase

from pitune.rl.datasets.demonstrations import ChunkSource, RandomChunks

if TYPE_CHECKING:
    from pitune.rl.algorithms.bc import CloningStep


def clone(
    step: CloningStep,
    chunks: TensorDictBase | ChunkSource,
    num_steps: int,
    on_step: Callable[[int], None] | None = None,
) -> float:
    """Take steps on random chunks (N) with `action` (N, H, d), and return the mean loss.

    Args:
        step: The policy and its optimizer.
        chunks: Training examples (N), or their source.
        num_steps: Gradient steps to take.
        on_step: Called after each with the number of steps so far, to show progress.
    """
    total = 0.0
    source = RandomChunks(chunks) if isinstance(chunks, TensorDictBase) else chunks
    for number in range(1, num_steps + 1):
        total += step(source.draw(step.config.minibatch_size))
        if on_step is not None:
            on_step(number)
    return total / num_steps
