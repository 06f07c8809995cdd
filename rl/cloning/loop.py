"""The loop of cloning: gradient steps on random chunks.

Letters: N rows, B minibatch rows, H action horizon, d robot action dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tensordict import TensorDictBase

from pitune.rl import ranks
from pitune.rl.config import MinibatchConfig
from pitune.rl.datasets.demonstrations import ChunkSource, RandomChunks


class ChunkStep(Protocol):
    """A gradient step on chunks, such as `CloningStep`.

    Example:
        >>> step: ChunkStep = CloningStep(policy, BCConfig())  # doctest: +SKIP
    """

    @property
    def config(self) -> MinibatchConfig:
        """Has the size of a minibatch."""

    def __call__(self, chunks: TensorDictBase) -> float:
        """Take a gradient step on chunks (B) and return the loss."""


def clone(
    step: ChunkStep,
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
        total += step(source.draw(ranks.share(step.config.minibatch_size)))
        if on_step is not None:
            on_step(number)
    return total / num_steps
