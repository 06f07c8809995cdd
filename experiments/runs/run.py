"""A run is a folder: its config, metrics, checkpoints and report.

    config.json              all settings, with versions, commit and machine
    metrics.csv              one row per iteration
    checkpoint_000040/       policy.safetensors, policy.json, training.pt, progress.json
    summary.json, learning_curve.png, before.mp4, after.mp4, before_after.gif

A checkpoint is written under a temporary name and renamed. A run can be killed at any moment and
resumes from its latest checkpoint. The rows of metrics after it are removed and written again.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from pitune.experiments.runs.config_file import check_same, read_config, write_config, write_whole
from pitune.experiments.runs.config_file import plain as plain
from pitune.experiments.runs.config_file import provenance as provenance
from pitune.policies.checkpoints.files import atomic_folder
from pitune.policies.checkpoints.native import load_policy, write_policy
from pitune.rl import Algorithm

WandbMode = Literal["online", "offline", "off"]
OLD_NAMES = {"ode": "deployed", "stochastic": "exploring"}
"""Names of the two evaluations in summaries of pitune 0.1, and their names now."""


def with_current_names(evaluations: dict[str, Any]) -> dict[str, Any]:
    """Return the evaluations of a summary, of any version, as `deployed` and `exploring`."""
    return {OLD_NAMES.get(name, name): evaluation for name, evaluation in evaluations.items()}


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

    def __init__(self, folder: Path, config: dict[str, Any], wandb_mode: WandbMode) -> None:
        self.folder, self.config = folder, config
        self._rows: list[dict[str, Any]] = []
        self._columns: list[str] = ["iteration"]
        self._wandb: Any = None
        if wandb_mode != "off":
            self._wandb = self._start_wandb(wandb_mode)

    @classmethod
    def create(
        cls,
        folder: Path,
        config: dict[str, Any],
        wandb_mode: WandbMode,
        limits: dict[str, Any] | None = None,
    ) -> Run:
        """Begin a new run.

        Args:
            folder: New folder for the run.
            config: Settings that identify the run, as JSON values.
            wandb_mode: Where Weights & Biases metrics go.
            limits: Settings that only end the run, for `pitune inspect`.

        Raises:
            FileExistsError: the folder holds a run already.
        """
        if (folder / "config.json").exists():
            raise FileExistsError(
                f"{folder} already holds a run; pass another --out, or --resume to go on with it"
            )
        write_config(folder / "config.json", config, limits or {})
        return cls(folder, config, wandb_mode)

    @classmethod
    def resume(
        cls,
        folder: Path,
        config: dict[str, Any],
        wandb_mode: WandbMode,
        limits: dict[str, Any] | None = None,
    ) -> Run:
        """Continue a run, with the arguments of `create`.

        Raises:
            FileNotFoundError: the folder holds no run.
            ValueError: its config is damaged, or differs from `config`.
        """
        check_same(folder, config)
        if limits is not None:
            record = {**read_config(folder / "config.json"), "limits": limits}
            write_whole(folder / "config.json", json.dumps(record, indent=2) + "\n")
        run = cls(folder, config, wandb_mode)
        run._read_rows()
        return run

    def log(self, iteration: int, metrics: dict[str, float]) -> None:
        """Add a row to metrics.csv and to wandb."""
        row = {"iteration": iteration, **metrics}
        # a new column changes the header, so the whole file is written
        new = [key for key in row if key not in self._columns]
        self._columns += new
        self._rows.append(row)
        if new or not (self.folder / "metrics.csv").exists():
            self._write_rows()
        else:
            with (self.folder / "metrics.csv").open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        if self._wandb is not None:
            self._wandb.log(metrics, step=iteration)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows so far."""
        return self._rows

    def save(self, iteration: int, algorithm: Algorithm[Any], progress: dict[str, Any]) -> None:
        """Write a checkpoint, and keep only the latest and the best by `rank`.

        Args:
            iteration: Iterations so far, which name the folder.
            algorithm: Its policy and training state are saved.
            progress: Numbers that the loop needs to go on (JSON), `rank` among them.
        """
        name = f"checkpoint_{iteration:06d}"
        if (self.folder / name).exists():
            shutil.rmtree(self.folder / name)
        with atomic_folder(self.folder / name) as folder:
            write_policy(algorithm.deployed_policy(), folder)
            # state besides the weights, which are saved apart
            state = {"training": algorithm.training_state(), "random": torch.get_rng_state()}
            if torch.cuda.is_available():
                state["random_cuda"] = torch.cuda.get_rng_state_all()
            torch.save(state, folder / "training.pt")
            (folder / "progress.json").write_text(json.dumps({"iteration": iteration, **progress}))
        self._prune()

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints of the run, oldest first."""
        return sorted(self.folder.glob("checkpoint_*"))

    def best_checkpoint(self) -> Path:
        """Return the checkpoint with the highest rank in its own evaluation."""

        def rank(folder: Path) -> float:
            progress = json.loads((folder / "progress.json").read_text())
            # older versions stored the success rate alone, nan if all episodes were invalid
            value = float(progress.get("rank", progress["success_rate"]))
            return -1.0 if math.isnan(value) else value

        return max(self.checkpoints(), key=rank)

    def load_latest(self, algorithm: Algorithm[Any]) -> dict[str, Any]:
        """Restore policy, training state and random numbers from the latest checkpoint.

        Returns:
            The progress that `save` was given, and `iteration`.

        Raises:
            FileNotFoundError: the run has no checkpoint yet.
        """
        checkpoints = self.checkpoints()
        if not checkpoints:
            raise FileNotFoundError(
                f"{self.folder} has no checkpoint to resume from; remove it and start again"
            )

        # policy, training state and random numbers
        folder = checkpoints[-1]
        algorithm.actor.policy.load_state_dict(load_policy(folder).state_dict())
        state = torch.load(folder / "training.pt", map_location="cpu", weights_only=True)
        algorithm.load_training_state(state["training"])
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available() and "random_cuda" in state:
            torch.cuda.set_rng_state_all(state["random_cuda"])

        # progress
        progress: dict[str, Any] = json.loads((folder / "progress.json").read_text())
        if "before" in progress:
            progress["before"] = with_current_names(progress["before"])
        # Rows after the checkpoint are written again.
        self._rows = [row for row in self._rows if row["iteration"] <= progress["iteration"]]
        self._write_rows()
        return progress

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json and close wandb."""
        write_whole(self.folder / "summary.json", json.dumps(plain(summary), indent=2) + "\n")
        if self._wandb is not None:
            self._wandb.finish()

    def _prune(self) -> None:
        keep = {self.checkpoints()[-1], self.best_checkpoint()}
        for folder in set(self.checkpoints()) - keep:
            shutil.rmtree(folder)

    def _read_rows(self) -> None:
        if (self.folder / "metrics.csv").exists():
            self._columns, self._rows = read_rows(self.folder / "metrics.csv")

    def _write_rows(self) -> None:
        temporary = self.folder / "tmp_metrics.csv"
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)
        temporary.rename(self.folder / "metrics.csv")

    def _start_wandb(self, mode: WandbMode) -> Any:
        import wandb

        return wandb.init(
            project="pitune",
            name=self.folder.name,
            dir=self.folder,
            id=self.folder.name,
            resume="allow" if mode == "online" else None,
            mode="online" if mode == "online" else "offline",
            config=self.config,
            settings=wandb.Settings(silent=True),
        )


def read_rows(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns and the rows of a metrics.csv, without empty cells.

    A last line that a kill cut short is left out too.

    Raises:
        ValueError: another line is damaged.
    """
    columns, rows, damaged = parse_rows(file)
    if damaged and damaged != [len(rows) + 2]:
        raise ValueError(
            f"{file} is damaged in line {damaged[0]}; remove that line, or pass another --out"
        )
    return columns, rows


def parse_rows(file: Path) -> tuple[list[str], list[dict[str, Any]], list[int]]:
    """Return the columns and the good rows of a metrics.csv, and the numbers of damaged lines."""
    rows: list[dict[str, Any]] = []
    damaged: list[int] = []
    with file.open(newline="", errors="replace") as lines:
        reader = csv.DictReader(lines)
        columns = list(reader.fieldnames or ["iteration"])
        for number, cells in enumerate(reader, 2):  # the header is line 1
            try:
                row: dict[str, Any] = {key: float(cell) for key, cell in cells.items() if cell}
                row["iteration"] = int(row["iteration"])
            except (ValueError, TypeError, KeyError):
                damaged.append(number)
                continue
            if rows and row["iteration"] <= rows[-1]["iteration"]:
                damaged.append(number)
            else:
                rows.append(row)
    return columns, rows, damaged
