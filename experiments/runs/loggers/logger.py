"""The program that shows a run's metrics while it trains, chosen by a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from pitune.experiments.runs.config_file import read_config
from pitune.experiments.runs.folder import wandb_run
from pitune.experiments.runs.folder.wandb_run import WandbMode
from pitune.experiments.runs.loggers.tensorboard import TensorBoardRun
from pitune.experiments.runs.loggers.trackio import TrackioRun

LoggerName = Literal["wandb", "tensorboard", "trackio"]


class Reporting(Protocol):
    """A run inside a program that shows metrics.

    Example:
        >>> class Printed:
        ...     def log(self, metrics, step):
        ...         print(step, dict(metrics))
        ...
        ...     def finish(self, exit_code=0):
        ...         print("exit code", exit_code)
        >>> reporting: Reporting = Printed()
        >>> reporting.log({"loss": 0.5}, step=1)
        1 {'loss': 0.5}
    """

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add the metrics of an iteration."""

    def finish(self, exit_code: int = 0) -> None:
        """Write everything out and close."""


class Logger:
    """The logger of a run, which starts with the first metrics.

    Example:
        >>> logger = Logger(Path("runs/a"), {"seed": 0}, "wandb", "off")
        >>> logger.log({"loss": 0.5}, step=1)  # nothing, because it is off
        >>> logger.close()

    Args:
        folder: Of the run, with config.json.
        config: Settings of the run.
        name: The program.
        wandb_mode: Destination of the metrics of Weights & Biases.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], name: LoggerName, wandb_mode: WandbMode
    ) -> None:
        self.folder, self.config = folder, config
        self._name, self._wandb_mode = name, wandb_mode
        self._reporting: Reporting | None = None

    def connect(self) -> None:
        """Start the program, which `log` does otherwise.

        Raises:
            ImportError: it is not installed.
            ValueError: it cannot start.
        """
        is_off = self._name == "wandb" and self._wandb_mode == "off"
        if is_off or self._reporting is not None:
            return
        # Runs of pitune 0.2 and before had the id of their folder.
        run_id = read_config(self.folder / "config.json").get("wandb_id") or self.folder.name
        if self._name == "wandb":
            mode = self._wandb_mode
            self._reporting = wandb_run.start(self.folder, run_id, self.config, mode)
        elif self._name == "tensorboard":
            self._reporting = TensorBoardRun(self.folder)
        else:
            self._reporting = TrackioRun(self.folder, run_id, self.config)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Report the metrics of an iteration."""
        self.connect()
        if self._reporting is not None:
            self._reporting.log(metrics, step=step)

    def close(self, exit_code: int = 0) -> None:
        """Write everything out and close. Closing twice is the same as closing once."""
        reporting, self._reporting = self._reporting, None
        if reporting is not None:
            reporting.finish(exit_code=exit_code)
