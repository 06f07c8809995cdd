"""The metrics of a run as event files of TensorBoard, in the folder `tensorboard` of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pitune.extras import install_command

FOLDER = "tensorboard"


class TensorBoardRun:
    """Event files of a run. A resumed run writes a further one.

    Example:
        >>> report = TensorBoardRun(Path("runs/pick/ppo"))  # doctest: +SKIP
        >>> report.log({"loss": 0.5}, step=1)  # doctest: +SKIP
        >>> report.finish()  # doctest: +SKIP

    Args:
        folder: Of the run.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "--logger tensorboard needs the package tensorboard; run "
                f"`{install_command('tensorboard')}`, or pass another --logger"
            ) from error
        self._folder = str(folder / FOLDER)
        self._make = SummaryWriter
        self._writer: SummaryWriter | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add the metrics of an iteration. Those of a killed run from here on are replaced."""
        if self._writer is None:
            self._writer = self._make(self._folder, purge_step=step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, exit_code: int = 0) -> None:
        """Write everything out and close."""
        if self._writer is not None:
            self._writer.close()
