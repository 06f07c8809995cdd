"""The files of a run as they are, whole or damaged, finished or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pitune.experiments.runs.config_file import read_config
from pitune.experiments.runs.folder.checkpoints import (
    DamagedCheckpointError,
    damage_of,
    own_checkpoints,
    read_progress,
    with_current_names,
)
from pitune.experiments.runs.folder.metrics_file import METRICS, Row, parse
from pitune.experiments.runs.results_table import read_run


class RunRecord(NamedTuple):
    """The readable part of a run's folder.

    Example:
        >>> record = RunRecord(
        ...     folder=Path("runs/a"),
        ...     config={},
        ...     limits={},
        ...     provenance={},
        ...     rows=[],
        ...     summary=None,
        ...     checkpoints={},
        ...     problems=["config.json is missing"],
        ... )
        >>> record.before
        {}
    """

    folder: Path
    config: dict[str, Any]
    """Settings, none if config.json is missing or damaged."""
    limits: dict[str, Any]
    """Settings that only end the run."""
    provenance: dict[str, Any]
    """Commit, versions and machine."""
    rows: list[Row]
    """Of metrics.csv."""
    summary: dict[str, Any] | None
    """Of a finished run."""
    checkpoints: dict[str, dict[str, Any]]
    """Progress of each checkpoint by its name, none if it is damaged."""
    problems: list[str]
    """Damaged or missing files, each with a remedy."""

    @property
    def before(self) -> dict[str, Any]:
        """Evaluation of the deployed policy before training, none if it is not known."""
        sources = [self.summary or {}, *self.checkpoints.values()]
        found = [source["before"] for source in sources if "before" in source]
        return dict(with_current_names(found[0]).get("deployed", {})) if found else {}


def read_record(folder: Path) -> RunRecord:
    """Read all that can be read of a run.

    Raises:
        FileNotFoundError: the folder holds nothing of a run.
    """
    # the folder of a run, perhaps incomplete
    checkpoints = own_checkpoints(folder)
    files = [folder / name for name in ("config.json", "metrics.csv")]
    if not checkpoints and not any(file.is_file() for file in files):
        inside = sorted(file.parent for file in folder.glob("**/config.json"))
        hint = f"; there are runs in {', '.join(map(str, inside[:8]))}" if inside else ""
        raise FileNotFoundError(
            f"no run in {folder}{hint}. Pass the folder that holds config.json and metrics.csv"
        )

    # parts of the run, and their problems
    problems: list[str] = []
    saved = _config(folder, problems)
    return RunRecord(
        folder,
        saved["config"],
        saved["limits"],
        saved["provenance"],
        _rows(folder, problems),
        _summary(folder, problems),
        {path.name: _progress(path, problems) for path in checkpoints},
        problems,
    )


def _config(folder: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return read_config(folder / "config.json")
    except FileNotFoundError:
        problems.append("config.json is missing; the run cannot be resumed")
    except ValueError as error:
        problems.append(str(error))
    return {"config": {}, "limits": {}, "provenance": {}}


def _rows(folder: Path, problems: list[str]) -> list[Row]:
    file = folder / METRICS
    if not file.is_file():
        problems.append("metrics.csv is missing; no iteration has ended yet")
        return []
    found = parse(file)
    problems += [f"metrics.csv: {repair}" for repair in found.repairs]
    problems += [
        f"metrics.csv is damaged in {fault}; it is left out here" for fault in found.damage
    ]
    return found.rows


def _summary(folder: Path, problems: list[str]) -> dict[str, Any] | None:
    if not (folder / "summary.json").is_file():
        return None
    try:
        return read_run(folder)[0]
    except (ValueError, FileNotFoundError) as error:
        problems.append(str(error))
        return None


def _progress(checkpoint: Path, problems: list[str]) -> dict[str, Any]:
    fault = damage_of(checkpoint)
    if fault is not None:
        problems.append(f"{checkpoint.name}: {fault}; --resume uses the checkpoint before it")
    try:
        return read_progress(checkpoint)
    except DamagedCheckpointError:
        return {}
