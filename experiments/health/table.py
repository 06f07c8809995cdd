"""The health table: the entries of every metric that an algorithm logs.

Of two entries for one column the algorithm's own counts, for example `entropy` of `ppo` and `dsrl`.
"""

from __future__ import annotations

from pitune.experiments.health.cloning import CLONING
from pitune.experiments.health.every_run import EVERY_RUN
from pitune.experiments.health.evolution import EVOLUTION
from pitune.experiments.health.metric import Metric
from pitune.experiments.health.off_policy import GUIDANCE, LEARNING_FROM_MEMORY, STEERING
from pitune.experiments.health.policy_gradient import GROUPS, POLICY_GRADIENT, POPULATION

METRICS: tuple[Metric, ...] = (
    *POLICY_GRADIENT,
    *GROUPS,
    *POPULATION,
    *LEARNING_FROM_MEMORY,
    *STEERING,
    *GUIDANCE,
    *CLONING,
    *EVOLUTION,
    *EVERY_RUN,
)
"""By subject. The metrics that every run logs come last."""


def metrics_of(algorithm: str) -> tuple[Metric, ...]:
    """Return the entries of one algorithm, its own before those of every run."""
    return tuple(m for m in METRICS if not m.algorithms or algorithm in m.algorithms)
