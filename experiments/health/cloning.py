"""Health of cloning: the controls `bc` and `filtered_bc`, and `recap`."""

from __future__ import annotations

from pitune.experiments.health.metric import Metric

CLONING = (
    Metric(
        name="flow_loss",
        algorithms=("bc", "filtered_bc", "recap"),
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
    Metric(
        name="decisions",
        algorithms=("recap",),
        meaning="decisions that are cloned, recorded and own ones",
        healthy="rises to the recorded ones plus `capacity`",
        advice="Nothing to do.",
    ),
    Metric(
        name="positive_share",
        algorithms=("recap",),
        meaning="share of the decisions with a positive indicator [-]",
        healthy="near the setting `positive_share`; more with human corrections or many equal "
        "advantages",
        advice="If all are positive, the advantages are equal: raise `value_steps`, or record "
        "failures too.",
        high=0.99,
    ),
    Metric(
        name="positive_solved",
        algorithms=("recap",),
        meaning="share of the positive decisions that belong to solved episodes [-]",
        healthy="above `solved_share`",
        advice="If it is below, the value is wrong: raise `value_steps`.",
    ),
    Metric(
        name="solved_share",
        algorithms=("recap",),
        meaning="share of all decisions that belong to solved episodes [-]",
        healthy="rises with the own episodes",
        advice="If it falls, the policy gets worse: record more good episodes, or lower "
        "`cloning.learning_rate`.",
    ),
    Metric(
        name="value_loss",
        algorithms=("recap",),
        meaning="cross-entropy of the value's bins [nats]",
        healthy="falls, then steady",
        advice="If it rises, lower `value_learning_rate`.",
        optional=True,
    ),
    Metric(
        name="explained_variance",
        algorithms=("recap",),
        meaning="share of the returns' variance that the value explains, after its steps [-]",
        healthy="0.2 to 0.9; below 0 the value harms, and near 1 it knows the episodes by heart",
        advice="Below 0, raise `value_steps`. Near 1, lower it.",
        low=0.0,
        window=3,
    ),
    Metric(
        name="advantage_std",
        algorithms=("recap",),
        meaning="standard deviation of the advantages [longest episodes]",
        healthy="steady, and clearly above 0",
        advice="If it is near 0, all data are alike: record failures too.",
    ),
)
