"""Health of the cloning controls: `bc` and `filtered_bc`."""

from __future__ import annotations

from pitune.experiments.health.metric import Metric

CLONING = (
    Metric(
        name="flow_loss",
        algorithms=("bc", "filtered_bc"),
        meaning="mean flow-matching loss on the cloned chunks [-]",
        healthy="falls, then steady",
        advice="If it rises, lower `learning_rate`.",
        optional=True,
    ),
    Metric(
        name="learning_rate",
        algorithms=("bc",),
        meaning="step size of the last gradient step [-]",
        healthy="follows the schedule",
        advice="Nothing to do.",
    ),
    Metric(
        name="cloned_chunks",
        algorithms=("filtered_bc",),
        meaning="decisions of successful episodes in the rollout",
        healthy="above 0",
        advice="No episode succeeded inside a rollout. Raise `num_chunks`, or take a better clone.",
        low=1.0,
        window=3,
    ),
)
