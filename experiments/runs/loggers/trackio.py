"""The metrics of a run in Trackio, which keeps them on this machine and shows them by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pitune.extras import install_command


class TrackioRun:
    """A run of the project `pitune` in Trackio. `trackio show --project pitune` shows it.

    Example:
        >>> report = TrackioRun(Path("runs/pick/ppo"), "4f1c", {"seed": 0})  # doctest: +SKIP
        >>> report.log({"loss": 0.5}, step=1)  # doctest: +SKIP
        >>> report.finish()  # doctest: +SKIP

    Args:
        folder: Of the run.
        run_id: Of the run, which makes its name unique.
        config: Settings of the run.

    Raises:
        ImportError: Trackio is not installed.
    """

    def __init__(self, folder: Path, run_id: str, config: dict[str, Any]) -> None:
        try:
            import trackio
        except ImportError as error:
            raise ImportError(
                "--logger trackio needs the package trackio; run "
                f"`{install_command('trackio')}`, or pass another --logger"
            ) from error
        self._run = trackio.init(
            project="pitune",
            name=f"{folder.absolute().name}-{run_id[:8]}",
            config=config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add the metrics of an iteration."""
        self._run.log(dict(metrics), step=step)

    def finish(self, exit_code: int = 0) -> None:
        """Write everything out and close."""
        self._run.finish()
