"""The part of a run's summary that its folder and its settings hold."""

from __future__ import annotations

from typing import Any

from pitune import rl
from pitune.envs import EnvSpec
from pitune.experiments.health.outcome import reasons
from pitune.experiments.runs.run import Run
from pitune.experiments.runs.train_config import TrainConfig


def outcome_of(config: TrainConfig, run: Run, spec: EnvSpec) -> dict[str, Any]:
    """Return the entries of summary.json about the settings, the policy and its checkpoints."""
    return {
        "algorithm": rl.name_of(config.algorithm),
        "env": config.env.id,
        "seed": config.seed,
        "seeded_starts": spec.deterministic_reset,
        "learned_nothing": reasons(run.rows, config.identity(), run.has_changed()),
        "checkpoint": str(run.checkpoints()[-1]),
        "best_checkpoint": str(run.best_checkpoint()),
    }
