"""Health of the off-policy learners: `dsrl`, `wsrl`, `dgn`.

Sources: dsrl.md, wsrl.md and dgn.md in docs/algorithms/.
"""

from __future__ import annotations

from pitune.experiments.health.metric import Metric

OFF_POLICY = ("dsrl", "wsrl", "dgn")
ACTOR_CRITIC = ("wsrl", "dgn")

LEARNING_FROM_MEMORY = (
    Metric(
        name="replay_size",
        algorithms=OFF_POLICY,
        meaning="decisions in memory",
        healthy="rises to `capacity`",
        advice="Nothing to do.",
    ),
    Metric(
        name="rounds",
        algorithms=OFF_POLICY,
        meaning="rounds of gradient steps in the iteration",
        healthy="0 in the warm-up, `warmup_rounds` at its end, then `updates_per_decision` times "
        "the decisions",
        advice="If it stays 0, the run is shorter than `warmup_decisions`.",
    ),
    Metric(
        name="q",
        algorithms=OFF_POLICY,
        meaning="mean value of the critics [reward]",
        healthy="near `td_target`; between 0 and 1 with a sparse reward",
        advice="The critics drift. Lower `updates_per_decision` or `critic_learning_rate`, or "
        "raise `num_critics`.",
        low=-0.1,
        high=1.0,
        window=3,
        sparse_only=True,
        optional=True,
    ),
    Metric(
        name="td_target",
        algorithms=OFF_POLICY,
        meaning="mean of the critics' targets [reward]",
        healthy="near `q`; between 0 and 1 with a sparse reward",
        advice="As for `q`.",
        low=-0.1,
        high=1.0,
        window=3,
        sparse_only=True,
        optional=True,
    ),
    Metric(
        name="q_loss",
        algorithms=OFF_POLICY,
        meaning="squared error, summed over critics [reward squared]; of categorical critics the "
        "cross-entropy [nats]",
        healthy="falls, then steady",
        advice="If it rises, lower `critic_learning_rate`.",
        optional=True,
    ),
    Metric(
        name="explained_variance",
        algorithms=OFF_POLICY,
        meaning="share of the variance of the critics' targets that the critics explain [-]",
        healthy="rises to 0.5 and more; the targets hold values of the critics themselves, so it "
        "is above the share of the returns' variance",
        advice="If it stays near 0, raise `updates_per_decision` or `critic_learning_rate`.",
        optional=True,
    ),
    Metric(
        name="q_disagreement",
        algorithms=OFF_POLICY,
        meaning="standard deviation between the critics [reward]",
        healthy="falls, and stays well below `q`",
        advice="If it grows, the critics are asked about unknown actions: raise "
        "`anchor_coefficient`, or lower `steering.magnitude`.",
        optional=True,
    ),
    Metric(
        name="policy_value",
        algorithms=ACTOR_CRITIC,
        meaning="value of the policy's present actions [reward]",
        healthy="rises slowly",
        advice="A jump that `success_rate` does not share exploits the critics' errors: raise "
        "`anchor_coefficient`.",
        optional=True,
    ),
    Metric(
        name="anchor_distance",
        algorithms=ACTOR_CRITIC,
        meaning="with `anchor_coefficient`: root mean square distance from the pretrained "
        "policy's chunk of the same noise [normalized action]",
        healthy="rises slowly",
        advice="If success drops while it rises, raise `anchor_coefficient`.",
        optional=True,
    ),
    Metric(
        name="cloning_loss",
        algorithms=ACTOR_CRITIC,
        meaning="with `cloning_coefficient`: flow-matching loss on the demonstrations [-]",
        healthy="steady",
        advice="If it rises, raise `cloning_coefficient`.",
        optional=True,
    ),
)

STEERING = (
    Metric(
        name="steered",
        algorithms=("dsrl",),
        meaning="0 while the policy acts from standard normal noise, 1 afterwards",
        healthy="1 after the warm-up",
        advice="If it stays 0, the run is shorter than `warmup_decisions`.",
    ),
    Metric(
        name="distillation_loss",
        algorithms=("dsrl",),
        meaning="error of the noise critic against the action critic [reward squared]",
        healthy="soon below `q_loss`",
        advice="If not, raise `critic_learning_rate`.",
        optional=True,
    ),
    Metric(
        name="steered_value",
        algorithms=("dsrl",),
        meaning="value of the noise actor's present choice [reward]",
        healthy="rises above `q`, which is of past behavior",
        advice="If it is far above and success does not rise, the critics are exploited: lower "
        "`steering.magnitude`.",
        optional=True,
    ),
    Metric(
        name="entropy",
        algorithms=("dsrl",),
        meaning="entropy per entry of the latent [nats]",
        healthy="falls to `target_entropy` and stays",
        advice="If it stays high, lower `initial_temperature`.",
        optional=True,
    ),
    Metric(
        name="temperature",
        algorithms=("dsrl",),
        meaning="weight of the entropy [reward per nat]",
        healthy="falls while the entropy is above its target",
        advice="If it rises without end, lower `target_entropy`.",
        optional=True,
    ),
    Metric(
        name="saturation",
        algorithms=("dsrl",),
        meaning="share of latents within 5 % of the bound [-]",
        healthy="below 0.5",
        advice="The bound decides instead of the noise actor. Raise `steering.magnitude`.",
        high=0.5,
        window=3,
        optional=True,
    ),
)

GUIDANCE = (
    Metric(
        name="difference",
        algorithms=("dgn",),
        meaning="root mean square of demonstrated minus own action [normalized action]",
        healthy="above 0.1; it falls if the policy approaches the demonstrations, and need not",
        advice="If it is near 0, the policy was cloned from these demonstrations: pass others.",
        optional=True,
    ),
    Metric(
        name="noise_std",
        algorithms=("dgn",),
        meaning="root mean square of the fitted noise [normalized action]",
        healthy="near `difference`",
        advice="If it is far above, raise `initial_fit_steps`.",
        optional=True,
    ),
    Metric(
        name="noise_loss",
        algorithms=("dgn",),
        meaning="negative log-likelihood of the differences [nats]",
        healthy="falls; higher with `shuffle_differences`",
        advice="If it rises, lower `noise_learning_rate`.",
        optional=True,
    ),
    Metric(
        name="noise_scale",
        algorithms=("dgn",),
        meaning="factor of the schedule; 0 switches to white noise [-]",
        healthy="1 at first, then falls",
        advice="If exploring episodes fail, lower `decay_decisions`.",
    ),
)
