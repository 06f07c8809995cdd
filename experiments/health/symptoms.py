"""What goes wrong, and the metrics that show the cause."""

from __future__ import annotations

from typing import NamedTuple

from pitune.experiments.health.metric import Metric
from pitune.experiments.health.table import METRICS


class Symptom(NamedTuple):
    """A symptom of a run, and the metrics to look at, the likeliest cause first.

    Example:
        >>> symptom = Symptom("The run is slow", ("env_steps_per_second",))
        >>> [metric.name for metric in symptom.entries()]
        ['env_steps_per_second']
    """

    title: str
    metrics: tuple[str, ...]

    def entries(self) -> list[Metric]:
        """Return the entries of the metrics, in this order, and several if algorithms differ."""
        return [metric for name in self.metrics for metric in METRICS if metric.name == name]


SYMPTOMS = {
    "success_dropped": Symptom(
        "Success dropped",
        (
            "ratio_deviation",
            "approx_kl",
            "clip_fraction",
            "explained_variance",
            "q",
            "policy_value",
            "anchor_distance",
            "saturation",
            "train/success_rate",
            "train/invalid",
        ),
    ),
    "no_progress": Symptom(
        "Success does not move",
        (
            "train/episodes",
            "gradient_steps",
            "explained_variance",
            "advantage_std",
            "kept_groups",
            "cloned_chunks",
            "rounds",
            "steered",
            "difference",
        ),
    ),
    "values_drift": Symptom(
        "The critic's values drift",
        ("value", "value_loss", "q", "td_target", "q_loss", "q_disagreement", "steered_value"),
    ),
    "exploration": Symptom(
        "Exploring episodes are far worse than deployed ones",
        ("train/success_rate", "terminal_std", "action_clip_fraction", "noise_std", "noise_scale"),
    ),
    "population": Symptom(
        "The population of `epo` has become one",
        ("action_spread", "gene_spread", "fitness/*", "aggregated", "replaced"),
    ),
    "slow": Symptom(
        "The run is slow",
        ("seconds/*", "env_steps_per_second", "rounds", "pending_groups"),
    ),
}
"""By the name in the markers of docs/troubleshooting.md."""
