"""What tests of training share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import small_run

from pitune import experiments
from pitune.experiments.train import TrainConfig
from pitune.rl import AlgorithmConfig


@pytest.fixture
def run_of(
    small_preset: Callable, half_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TrainConfig]:
    """Return the config of a small run of an algorithm, which draws no curve."""
    monkeypatch.setattr(experiments.train, "learning_curve", lambda *_: None)

    def make(algorithm: str | AlgorithmConfig, **changes: Any) -> TrainConfig:
        config = small_preset(algorithm) if isinstance(algorithm, str) else algorithm
        return small_run(config, half_trained, tmp_path / "run", **changes)

    return make
