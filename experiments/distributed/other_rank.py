"""The run as ranks other than 0 have it: the same rows and checkpoints, of which they write none.

A checkpoint has a file for each of them, with the state that only they have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pitune.experiments.distributed.start import on_first
from pitune.experiments.runs.folder.rank_state import restore, write_rank_file
from pitune.experiments.runs.folder.state import read_checkpoint
from pitune.experiments.runs.run import Run
from pitune.rl import Algorithm, ranks


class OtherRank(Run):
    """A run whose folder belongs to rank 0.

    Example:
        >>> run = OtherRank(Path("runs/pick"), {"seed": 0}, "off")
        >>> run.log(1, {"loss": 0.5})
        >>> run.rows, Path("runs/pick").exists()
        ([{'iteration': 1, 'loss': 0.5}], False)
    """

    def connect(self) -> None:
        """Report nothing."""

    def abandon(self) -> None:
        """Leave the folder to rank 0."""

    def log(self, iteration: int, metrics: dict[str, float]) -> None:
        self.metrics.rows.append({"iteration": iteration, **metrics})

    def amend(self, metrics: dict[str, float]) -> None:
        self.rows[-1] |= metrics

    def save(self, iteration: int, algorithm: Algorithm[Any], progress: dict[str, Any]) -> None:
        """Write this rank's part of rank 0's checkpoint."""
        write_rank_file(None, algorithm)

    def load_latest(self, algorithm: Algorithm[Any], needed: Sequence[str] = ()) -> dict[str, Any]:
        """Restore the checkpoint that rank 0 has chosen, with this rank's own state."""
        folder: Path = ranks.of_first(self.folder)
        policy, state, progress = read_checkpoint(folder, needed)
        restore(algorithm, folder, policy, state, progress)
        self.metrics.rows = ranks.of_first(self.metrics.rows)
        for name in ("first_weights", "changed"):
            progress.pop(name, None)
        return progress

    def finish(self, summary: dict[str, Any]) -> None:
        """Write nothing."""


def open_run(make: Callable[[], Run], folder: Path, config: dict[str, Any]) -> Run:
    """Return the run that `make` opens on rank 0, as this rank has it."""
    return on_first(make) or OtherRank(folder, config, "off")
