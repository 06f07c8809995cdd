"""Continue a run where it stopped: from nothing, from its latest checkpoint, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pitune.experiments.runs.config_file import check_same
from pitune.experiments.runs.progress import screen
from pitune.experiments.runs.results_table import read_run
from pitune.experiments.runs.train_config import TrainConfig


def finished_summary(config: TrainConfig) -> dict[str, Any] | None:
    """Return the summary of a run, or None if it is not finished.

    Raises:
        ValueError: the folder has a finished run with other settings.
    """
    if not (config.out / "summary.json").is_file():
        return None
    check_same(config.out, config.identity())
    summary, _ = read_run(config.out)
    for name in ("checkpoint", "best_checkpoint"):  # the folder may have been moved
        summary[name] = str(config.out / Path(summary[name]).name)
    return summary


def train_or_resume(
    config: TrainConfig, train: Callable[[TrainConfig], dict[str, Any]]
) -> dict[str, Any]:
    """Start a run, or continue it from its latest checkpoint, and return its summary.

    A run that was killed before its first checkpoint starts again.

    Args:
        config: Of the run.
        train: Runs a training.

    Raises:
        ValueError: the folder has a run with other settings.
    """
    begun = any(config.out.glob("checkpoint_*"))
    if begun:
        screen.note(f"{config.out} is continued from its latest checkpoint")
    elif (config.out / "config.json").is_file():
        shutil.rmtree(config.out)
    return train(replace(config, resume=begun))
