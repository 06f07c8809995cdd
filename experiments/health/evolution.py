"""Health of evolution strategies, `es`."""

from __future__ import annotations

from pitune.experiments.health.metric import Metric

EVOLUTION = (
    Metric(
        name="fitness",
        algorithms=("es",),
        meaning="mean fitness of the perturbed members: discounted return, or share of successes",
        healthy="rises; it is below that of the deployed policy, which is not perturbed",
        advice="If it falls at once, lower `noise_std` or `learning_rate`.",
    ),
    Metric(
        name="fitness_std",
        algorithms=("es",),
        meaning="standard deviation of the fitness over the members",
        healthy="above 0; with equal policies it is that of the episodes",
        advice="If it is 0, all members are alike and nothing is learned: raise `noise_std`, or "
        "take a better clone.",
        low=1e-6,
        window=3,
    ),
    Metric(
        name="grad_norm",
        algorithms=("es",),
        meaning="norm of the estimated gradient before clipping [-]",
        healthy="steady; it grows with the number of perturbed weights and falls with `num_pairs`",
        advice="Nothing to do: Adam takes its direction alone.",
    ),
)
