"""A run is a folder: its config, metrics, checkpoints and report.

    config.json              everything that was asked for, with versions, commit and machine
    metrics.csv              one row per iteration
    checkpoint_000040/       policy.safetensors, policy.json, training.pt, progress.json
    summary.json, learning_curve.png, before.mp4, after.mp4

Checkpoints are written beside their place and renamed. A run can be killed at any moment and goes
on from its last checkpoint; rows of metrics after it are dropped and written again.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from pitune.policies.checkpoints.files import atomic_folder
from pitune.policies.checkpoints.native import load_policy, write_policy
from pitune.rl import Algorithm

WandbMode = Literal["online", "offline", "off"]
PACKAGES = (
    "torch",
    "torchrl",
    "tensordict",
    "gymnasium",
    "mujoco",
    "mani-skill",
    "metaworld",
    "numpy",
)


def plain(value: Any) -> Any:
    """Return a config as JSON values; paths become strings, infinities and nan become strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def provenance() -> dict[str, Any]:
    """Return what produced a result: commit, package versions, machine."""
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    root = Path(__file__).parent
    command = [git, "describe", "--always", "--dirty", "--abbrev=10"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Run:
    """Writes the folder of a run. Make one with `create` or `resume`."""

    def __init__(self, folder: Path, config: dict[str, Any], wandb_mode: WandbMode) -> None:
        self.folder, self.config = folder, config
        self._rows: list[dict[str, Any]] = []
        self._columns: list[str] = ["iteration"]
        self._wandb: Any = None
        if wandb_mode != "off":
            self._wandb = self._start_wandb(wandb_mode)

    @classmethod
    def create(cls, folder: Path, config: dict[str, Any], wandb_mode: WandbMode) -> Run:
        """Begin a new run.

        Raises:
            FileExistsError: the folder holds a run already.
        """
        if (folder / "config.json").exists():
            raise FileExistsError(
                f"{folder} already holds a run; pass another --out, or --resume to go on with it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"config": config, "provenance": provenance()}, indent=2)
        (folder / "config.json").write_text(text + "\n")
        return cls(folder, config, wandb_mode)

    @classmethod
    def resume(cls, folder: Path, config: dict[str, Any], wandb_mode: WandbMode) -> Run:
        """Go on with a run.

        Raises:
            FileNotFoundError: the folder holds no run.
            ValueError: its config is broken, or is not the one that is asked for now.
        """
        check_same(folder, config)
        run = cls(folder, config, wandb_mode)
        run._read_rows()
        return run

    def log(self, iteration: int, metrics: dict[str, float]) -> None:
        """Add a row to metrics.csv and to wandb."""
        row = {"iteration": iteration, **metrics}
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
        """Write a checkpoint; of the older ones keep the last, and the best by `success_rate`.

        Args:
            iteration: Names the checkpoint.
            algorithm: Policy and training state are saved.
            progress: Numbers that the loop needs to go on (JSON), `success_rate` among them.
        """
        name = f"checkpoint_{iteration:06d}"
        if (self.folder / name).exists():
            shutil.rmtree(self.folder / name)
        with atomic_folder(self.folder / name) as folder:
            write_policy(algorithm.deployed_policy(), folder)
            state = {"training": algorithm.training_state(), "random": torch.get_rng_state()}
            if torch.cuda.is_available():
                state["random_cuda"] = torch.cuda.get_rng_state_all()
            torch.save(state, folder / "training.pt")
            (folder / "progress.json").write_text(json.dumps({"iteration": iteration, **progress}))
        self._prune()

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints that are there, oldest first."""
        return sorted(self.folder.glob("checkpoint_*"))

    def best_checkpoint(self) -> Path:
        """Return the checkpoint with the highest success rate in its own evaluation."""

        def rate(folder: Path) -> float:
            found = float(json.loads((folder / "progress.json").read_text())["success_rate"])
            return -1.0 if math.isnan(found) else found  # every episode was invalid

        return max(self.checkpoints(), key=rate)

    def load_latest(self, algorithm: Algorithm[Any]) -> dict[str, Any]:
        """Restore policy, training state and random numbers from the last checkpoint.

        Returns:
            Its progress, `iteration` among it.

        Raises:
            FileNotFoundError: the run has no checkpoint yet.
        """
        checkpoints = self.checkpoints()
        if not checkpoints:
            raise FileNotFoundError(
                f"{self.folder} has no checkpoint to resume from; remove it and start again"
            )
        folder = checkpoints[-1]
        algorithm.actor.policy.load_state_dict(load_policy(folder).state_dict())
        state = torch.load(folder / "training.pt", weights_only=True)
        algorithm.load_training_state(state["training"])
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available() and "random_cuda" in state:
            torch.cuda.set_rng_state_all(state["random_cuda"])
        progress: dict[str, Any] = json.loads((folder / "progress.json").read_text())
        self._rows = [row for row in self._rows if row["iteration"] <= progress["iteration"]]
        self._write_rows()
        return progress

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json and close wandb."""
        text = json.dumps(plain(summary), indent=2) + "\n"
        temporary = self.folder / "tmp_summary.json"
        temporary.write_text(text)
        temporary.rename(self.folder / "summary.json")
        if self._wandb is not None:
            self._wandb.finish()

    def _prune(self) -> None:
        keep = {self.checkpoints()[-1], self.best_checkpoint()}
        for folder in set(self.checkpoints()) - keep:
            shutil.rmtree(folder)

    def _read_rows(self) -> None:
        file = self.folder / "metrics.csv"
        if file.exists():
            with file.open(newline="") as lines:
                reader = csv.DictReader(lines)
                self._columns = list(reader.fieldnames or ["iteration"])
                self._rows = [
                    {key: float(value) for key, value in row.items() if value} for row in reader
                ]
            for row in self._rows:
                row["iteration"] = int(row["iteration"])

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


def check_same(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a run that was made with another config.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its config is broken, or is not the one that is asked for now.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"no run in {folder} to resume; start it without --resume")
    try:
        saved = json.loads(file.read_text())["config"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is broken ({error!r}); the run cannot be resumed") from error
    different = sorted(_differences(saved, json.loads(json.dumps(config))))
    if different:
        raise ValueError(
            f"{folder} was started with another config; different: {'; '.join(different)}. "
            "Resume with the same options, or pass another --out"
        )


def _differences(saved: Any, asked: Any, path: str = "") -> list[str]:
    """Return where two configs differ, as `path: saved -> asked`."""
    if isinstance(saved, dict) and isinstance(asked, dict):
        found: list[str] = []
        for key in saved.keys() | asked.keys():
            found += _differences(saved.get(key), asked.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if saved == asked else [f"{path}: {saved!r} -> {asked!r}"]
