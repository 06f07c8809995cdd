"""The run as ranks other than 0 have it: the same rows and checkpoints, of which they write none.

A checkpoint has a folder for each of them, with the state that only they have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pitune.experiments.distributed.start import on_first
from pitune.experiments.runs.folder.metrics_file import Row
from pitune.experiments.runs.folder.rank_state import restore, write_rank_state
from pitune.experiments.runs.folder.segments import Segments
from pitune.experiments.runs.folder.sharded import write_sharded
from pitune.experiments.runs.folder.state import read_checkpoint
from pitune.experiments.runs.run import Run
from pitune.policies.finetuning.shard import unsharded
from pitune.rl import Algorithm, ranks


class OtherRank(Run):
    """A run whose folder belongs to rank 0.

    Args:
        folder: Of the run, on a disk that all ranks see.
        config: Settings that identify the run, as JSON values.

    Example:
        >>> run = OtherRank(Path("runs/pick"), {"seed": 0})
        >>> run.log(1, {"loss": 0.5})
        >>> run.recent, Path("runs/pick").exists()
        ([{'iteration': 1, 'loss': 0.5}], False)
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config, "off")
        self.segments = Segments(folder, prefix=f"rank_{ranks.rank()}_")
        self._recent: deque[Row] = deque(maxlen=self.metrics.recent.maxlen)

    @property
    def recent(self) -> list[Row]:
        return list(self._recent)

    def connect(self) -> None:
        """Report nothing."""

    def abandon(self) -> None:
        """Leave the folder to rank 0."""

    def log(self, iteration: int, metrics: dict[str, float]) -> None:
        self._recent.append({"iteration": iteration, **metrics})

    def amend(self, metrics: dict[str, float]) -> None:
        self._recent[-1] |= metrics

    def save(
        self,
        iteration: int,
        algorithm: Algorithm[Any],
        progress: dict[str, Any],
        episodes: dict[str, Any] | None = None,
    ) -> None:
        """Write this rank's part of rank 0's checkpoint."""
        # in the same order as on rank 0, because each call waits for all ranks
        unsharded(algorithm.deployed_policy())
        write_sharded(None, algorithm.training_state(with_memories=False))
        write_rank_state(None, algorithm, self.segments, episodes)

    def load_latest(self, algorithm: Algorithm[Any], needed: Sequence[str] = ()) -> dict[str, Any]:
        """Restore the checkpoint that rank 0 has chosen, with this rank's own state."""
        folder: Path = ranks.of_first(self.folder)
        parts = read_checkpoint(folder, needed)
        self.episodes = restore(algorithm, folder, parts, self.segments)
        self._recent.extend(ranks.of_first(self.recent))
        return parts[2]

    def finish(self, summary: dict[str, Any]) -> None:
        """Write nothing."""


def open_run(make: Callable[[], Run], folder: Path, config: dict[str, Any]) -> Run:
    """Return the run that `make` opens on rank 0, as this rank has it."""
    return on_first(make) or OtherRank(folder, config)
