"""A run is a folder: its config, metrics, checkpoints and report.

    config.json              all settings, with versions, commit and machine
    metrics.csv              one row per iteration
    initial_policy/          the policy as it was loaded
    checkpoint_000040/       policy.safetensors, policy.json, training.pt, progress.json,
                             metrics.csv up to here, replay.json, checksums.json
    replay/                  rows of the replay memory, in files that checkpoints list
    nonfinite_000041/        a state that is no number any more, to look at
    summary.json, learning_curve.png, before.mp4, after.mp4, before_after.gif
    run.lock                 the process that writes into the folder

A checkpoint is written under a temporary name and renamed. A run can be killed at any moment and
resumes from its latest checkpoint. The rows of metrics after it are removed and written again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pitune.experiments.runs.config_file import plain, read_config, write_config, write_whole
from pitune.experiments.runs.config_file import provenance as provenance
from pitune.experiments.runs.folder import checkpoints as folders
from pitune.experiments.runs.folder import state, wandb_run
from pitune.experiments.runs.folder.lock import lock, unlock
from pitune.experiments.runs.folder.metrics_file import METRICS, Row
from pitune.experiments.runs.folder.metrics_log import MetricsLog
from pitune.experiments.runs.folder.rank_state import restore, write_rank_state
from pitune.experiments.runs.folder.same_config import check_same
from pitune.experiments.runs.folder.segments import Segments
from pitune.experiments.runs.folder.start import abandon, claim
from pitune.experiments.runs.folder.state import best_of, latest_whole, prune
from pitune.experiments.runs.folder.wandb_run import WandbMode as WandbMode
from pitune.experiments.runs.loggers.logger import Logger, LoggerName
from pitune.policies.checkpoints.native import write_policy
from pitune.policies.finetuning.shard import unsharded
from pitune.rl import Algorithm, ranks


class Run:
    """Writes the folder of a run. Make one with `create` or `resume`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> run = Run.create(folder, {"seed": 0}, "off")
        >>> run.log(1, {"loss": 0.5})
        >>> (folder / "metrics.csv").read_text().split()
        ['iteration,loss', '1,0.5']

    Args:
        folder: Of the run, with config.json.
        config: Settings that identify the run, as JSON values.
        wandb_mode: Where Weights & Biases metrics go.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        wandb_mode: WandbMode,
        logger: LoggerName = "wandb",
    ) -> None:
        self.folder, self.config = folder, config
        self.metrics = MetricsLog(folder / METRICS)
        self.segments = Segments(folder)
        self.episodes: dict[str, Any] | None = None
        """State of the rollouts in the checkpoint that was loaded, None between episodes."""
        self._new, self._made = True, False
        self.logger = Logger(folder, config, logger, wandb_mode)
        self._first_weights: int | None = None

    @classmethod
    def create(
        cls,
        folder: Path,
        config: dict[str, Any],
        wandb_mode: WandbMode,
        limits: dict[str, Any] | None = None,
        *,
        logger: LoggerName = "wandb",
    ) -> Run:
        """Begin a new run.

        Args:
            folder: New folder for the run. One with a start that never reached its first
                checkpoint is taken over.
            config: Settings that identify the run, as JSON values.
            wandb_mode: Where Weights & Biases metrics go.
            limits: Settings that only end the run, for `pitune inspect`.
            logger: The program that shows metrics.

        Raises:
            FileExistsError: the folder holds a run already, or another process uses it.
            PermissionError: the folder cannot be written.
        """
        made = claim(folder)
        run = cls(folder, config, wandb_mode, logger)
        run._made = made
        try:
            write_config(folder / "config.json", config, limits or {}, wandb_run.new_id())
        except BaseException:
            run.abandon()
            raise
        return run

    @classmethod
    def resume(
        cls,
        folder: Path,
        config: dict[str, Any],
        wandb_mode: WandbMode,
        limits: dict[str, Any] | None = None,
        defaults: dict[str, Any] | None = None,
        *,
        logger: LoggerName = "wandb",
    ) -> Run:
        """Continue a run, with the arguments of `create`.

        Args:
            folder: Of the run.
            config: As for `create`. Settings that change no number may differ from the run's.
            wandb_mode: As for `create`.
            limits: As for `create`.
            defaults: Default values of `config`, for settings that a run of an older version lacks.
            logger: As for `create`.

        Raises:
            FileNotFoundError: the folder holds no run.
            FileExistsError: another process uses the folder.
            ValueError: its config is damaged, or differs from `config`.
        """
        check_same(folder, config, defaults=defaults)
        lock(folder)
        folders.clean(folder)
        run = cls(folder, config, wandb_mode, logger)
        run.segments.remove_unlisted()
        record = {**read_config(folder / "config.json"), "config": config}
        if limits is not None:
            record["limits"] = limits
        write_whole(folder / "config.json", json.dumps(record, indent=2) + "\n")
        run._new = False
        checkpoints = run.checkpoints()
        run.metrics.read(has_copy=bool(checkpoints) and (checkpoints[-1] / METRICS).is_file())
        return run

    def connect(self) -> None:
        """Start the logger, which `log` does otherwise. See `Logger.connect`."""
        self.logger.connect()

    def abandon(self) -> None:
        """Release the folder. Nothing stays in it of a new run without a checkpoint."""
        with suppress(OSError):  # on a full disk its last lines are lost
            self.logger.close(exit_code=1)
        if self._new:
            abandon(self.folder, self._made)
        else:  # its checkpoints may be elsewhere for a while
            unlock(self.folder)

    def log(self, iteration: int, metrics: dict[str, float]) -> None:
        """Add a row to metrics.csv, and report it to the logger."""
        self.metrics.add({"iteration": iteration, **metrics})
        self.logger.log(metrics, step=iteration)

    def amend(self, metrics: dict[str, float]) -> None:
        """Add metrics to the last row, for an evaluation that a signal has postponed."""
        self.metrics.amend(metrics)
        self.logger.log(metrics, step=self.recent[-1]["iteration"])

    @property
    def recent(self) -> list[Row]:
        """The latest rows."""
        return list(self.metrics.recent)

    @property
    def rows(self) -> list[Row]:
        """All rows so far, read from metrics.csv."""
        return self.metrics.rows

    def save(
        self,
        iteration: int,
        algorithm: Algorithm[Any],
        progress: dict[str, Any],
        episodes: dict[str, Any] | None = None,
    ) -> None:
        """Write a checkpoint, and keep only the latest and the best by `rank`.

        Args:
            iteration: Iterations so far, which name the folder.
            algorithm: Its policy and training state are saved.
            progress: Numbers that the loop needs to go on (JSON), `rank` among them.
            episodes: State of the rollouts, to go on in the midst of episodes.
        """
        target = self.folder / folders.checkpoint_name(iteration)
        with folders.new_folder(target) as folder:
            write_policy(unsharded(algorithm.deployed_policy()), folder)
            weights = folders.checksum(folder / "policy.safetensors")
            if self._first_weights is None:
                self._first_weights = weights
            record = {
                **progress,
                "first_weights": self._first_weights,
                "changed": weights != self._first_weights,
            }
            self.write_state(folder, iteration, algorithm, record, episodes)
            write_rank_state(folder, algorithm, self.segments, episodes)
        self._prune()

    def _prune(self) -> None:
        prune(self.folder)
        self.segments.remove_unlisted()

    def write_state(
        self,
        folder: Path,
        iteration: int,
        algorithm: Algorithm[Any],
        progress: dict[str, Any],
        episodes: dict[str, Any] | None = None,
    ) -> None:
        """Write the state besides the policy, and the rows of metrics.csv, into a folder."""
        state.write_state(folder, algorithm, self.segments, episodes)
        (folder / folders.PROGRESS).write_text(json.dumps({"iteration": iteration, **progress}))
        self.metrics.copy(folder / METRICS)

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints of the run, oldest first."""
        return folders.own_checkpoints(self.folder)

    def has_changed(self) -> bool:
        """Return whether the weights of the latest checkpoint differ from those before training."""
        # absent from checkpoints of pitune 0.2 and before
        return bool(folders.read_progress(self.checkpoints()[-1]).get("changed", True))

    def saved_iteration(self) -> int:
        """Return the iteration of the latest checkpoint."""
        return int(self.checkpoints()[-1].name.rpartition("_")[2])

    def best_checkpoint(self) -> Path:
        """Return the checkpoint with the highest `rank` in its own evaluation."""
        return best_of(self.checkpoints())

    def load_latest(self, algorithm: Algorithm[Any], needed: Sequence[str] = ()) -> dict[str, Any]:
        """Restore policy, training state and random numbers from the latest whole checkpoint.

        A damaged one is named in a warning, and kept under another name.

        Args:
            algorithm: Into which the state is loaded.
            needed: Entries that the progress must have.

        Returns:
            The progress that `save` was given, and `iteration`. `episodes` is an attribute.

        Raises:
            FileNotFoundError: the run has no checkpoint yet.
            ValueError: all its checkpoints are damaged, or they are of another algorithm.
        """
        checkpoints = self.checkpoints()
        if not checkpoints:
            raise FileNotFoundError(
                f"{self.folder} has no checkpoint to resume from; pass another --out, or remove "
                "the folder and start without --resume"
            )
        folder, parts, faults = latest_whole(checkpoints, needed)
        progress = parts[2]

        # policy, training state and random numbers
        self.episodes = restore(algorithm, ranks.of_first(folder), parts, self.segments)

        # progress, and the rows up to here: those after the checkpoint are written again
        for damaged, fault in faults.items():
            folders.set_aside(damaged, "damaged", f"{fault}, so {folder.name} is used instead")
        self._first_weights = progress.pop("first_weights", None)
        progress.pop("changed", None)
        self.metrics.restore(progress["iteration"], folder / METRICS)
        ranks.of_first(self.recent)
        return progress

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, close the logger and release the folder."""
        write_whole(self.folder / "summary.json", json.dumps(plain(summary), indent=2) + "\n")
        self.logger.close()
        unlock(self.folder)
