"""Health of the policy gradients: `ppo`, `grpo`, `epo`, `fpo`.

Sources: ppo.md, grpo.md, epo.md and fpo.md in docs/algorithms/.
"""

from __future__ import annotations

from pitune.experiments.health.metric import Metric

RATIO = ("ppo", "grpo", "epo", "fpo")
CRITIC = ("ppo", "epo", "fpo")

POLICY_GRADIENT = (
    Metric(
        name="ratio_deviation",
        algorithms=RATIO,
        meaning="greatest distance of a ratio from 1 before the first gradient step [-]",
        healthy="below 1e-4 in float32, below 1e-3 always",
        advice="Sampler and scorer disagree, so the gradient is wrong. Set `rescore`, or compute "
        "in float32.",
        high=1e-3,
        optional=True,
    ),
    Metric(
        name="approx_kl",
        algorithms=RATIO,
        meaning="mean of r - 1 - log r over the update [nats per ratio]",
        healthy="below `target_kl`, which stops an update",
        advice="The first gradient steps are too large. Lower the policy's learning rate.",
        high_setting="target_kl",
        optional=True,
    ),
    Metric(
        name="clip_fraction",
        algorithms=RATIO,
        meaning="share of ratios outside the clip [-]",
        healthy="0.1 to 0.3; a problem above 0.5",
        advice="Most decisions have no gradient. Lower the policy's learning rate or `num_epochs`.",
        high=0.5,
        window=3,
        optional=True,
    ),
    Metric(
        name="gradient_steps",
        algorithms=RATIO,
        meaning="gradient steps of the update, before `target_kl` stopped it",
        healthy="epochs times minibatches; 0 while `grpo` gathers groups",
        advice="If it is 1 or 2, lower the policy's learning rate.",
    ),
    Metric(
        name="grad_norm",
        algorithms=(*RATIO, "wsrl", "dgn"),
        meaning="norm of the policy's gradient before clipping [-]",
        healthy="steady",
        advice="If it grows from update to update, lower the policy's learning rate.",
        optional=True,
    ),
    Metric(
        name="policy_loss",
        algorithms=RATIO,
        meaning="minus the surrogate [-]",
        healthy="near 0; it does not measure progress",
        advice="Nothing to do.",
        optional=True,
    ),
    Metric(
        name="terminal_std",
        algorithms=CRITIC,
        meaning="standard deviation of an executed entry in the last random flow step "
        "[normalized action]",
        healthy="0.05 to 0.3; noise_level / √(K(K - 1)) for Flow-SDE, `action_noise` for `fpo`",
        advice="If exploring episodes fail, lower `likelihood.noise_level`.",
    ),
    Metric(
        name="value",
        algorithms=CRITIC,
        meaning="mean value of the visited states [reward]",
        healthy="between 0 and 1 with a sparse reward",
        advice='The critic drifts. Keep `time_limit="terminal"`, or lower `critic_learning_rate`.',
        low=-0.1,
        high=1.0,
        window=3,
        sparse_only=True,
    ),
    Metric(
        name="value_loss",
        algorithms=CRITIC,
        meaning="squared error of the critic [scaled reward squared], or the cross-entropy of a "
        "categorical one [nats]",
        healthy="falls, then steady",
        advice="If it rises, lower `critic_learning_rate`.",
    ),
    Metric(
        name="value_clamped",
        algorithms=(*CRITIC, "dsrl", "wsrl", "dgn"),
        meaning="with `critic_distribution`: share of the value targets outside of its bins [-]",
        healthy="0",
        advice="These targets count as the lowest or the highest bin. Lower "
        "`critic_distribution.low` or raise `critic_distribution.high`.",
        high=0.01,
        optional=True,
    ),
    Metric(
        name="explained_variance",
        algorithms=CRITIC,
        meaning="share of the returns' variance that the critic explains, before the update [-]",
        healthy="rises to 0.5 and more; below 0 the critic harms",
        advice="Raise `critic_warmup` or `num_chunks`; after a jump lower `critic_learning_rate`.",
        low=0.0,
        start_setting="critic_warmup",
        window=3,
    ),
    Metric(
        name="advantage_std",
        algorithms=CRITIC,
        meaning="standard deviation of the advantages before they are standardized [reward]",
        healthy="steady, and clearly above 0",
        advice="If it is near 0, all episodes end alike: take a better clone or an easier task.",
    ),
    Metric(
        name="log_prob_gap*",
        algorithms=RATIO,
        meaning="with `rescore`, the default below float32: distance of the sampler's "
        "log-probabilities from the training forward's, mean and greatest [nats]",
        healthy="1e-5 in float32, more in bfloat16",
        advice="Keep `rescore`, or compute in float32.",
        optional=True,
    ),
    Metric(
        name="informative",
        algorithms=(*CRITIC, "dsrl", "wsrl", "dgn"),
        meaning="1 if rewards, or a critic that learned from some, can tell actions apart, else 0",
        healthy="1",
        advice="All rewards are equal, so the policy is not trained. Check the reward of the "
        "environment, or take a better clone.",
        low=0.5,
        window=3,
    ),
    Metric(
        name="reference_kl",
        algorithms=("ppo", "grpo", "epo"),
        meaning="with `kl_coefficient`: divergence from the pretrained policy, per scored flow "
        "step, before the coefficient",
        healthy="rises slowly, then steady",
        advice="If success drops while it rises, raise `kl_coefficient`.",
        optional=True,
    ),
    Metric(
        name="reference_bc",
        algorithms=("ppo", "epo"),
        meaning="with `bc_coefficient`: cloning loss on the pretrained policy's chunks, before "
        "the coefficient",
        healthy="steady",
        advice="If success drops while it rises, raise `bc_coefficient`.",
        optional=True,
    ),
    Metric(
        name="text_loss",
        algorithms=("ppo", "grpo", "fpo", "epo", "bc"),
        meaning="with `language.text_weight`: loss of the language model's answers [nats]",
        healthy="steady or falling",
        advice="If it rises, raise `language.text_weight`, or insulate the language model.",
        optional=True,
    ),
    Metric(
        name="fast_loss",
        algorithms=("ppo", "grpo", "fpo", "epo", "bc"),
        meaning="with `language.fast_weight`: loss of the demonstrations' FAST tokens [nats]",
        healthy="steady or falling",
        advice="If it rises, raise `language.fast_weight`, or insulate the language model.",
        optional=True,
    ),
    Metric(
        name="entropy",
        algorithms=("ppo", "epo"),
        meaning="with `entropy_coefficient`: entropy of the learned noise [nats]",
        healthy="falls slowly",
        advice="If it falls at once, raise `entropy_coefficient`.",
        optional=True,
    ),
    Metric(
        name="return_std",
        algorithms=("ppo", "epo"),
        meaning="with `normalize_returns`: scale of the returns [reward]",
        healthy="steady",
        advice="Nothing to do.",
        optional=True,
    ),
    Metric(
        name="flow_loss",
        algorithms=("fpo",),
        meaning="mean flow-matching loss on the policy's own chunks [-]",
        healthy="of the order of its first value",
        advice="A steady rise is a policy that spreads out. Lower `actor_learning_rate`.",
    ),
)

GROUPS = (
    Metric(
        name="groups",
        algorithms=("grpo",),
        meaning="groups of equal starts in the rollout",
        healthy="environments times whole episodes, divided by `group_size`",
        advice="If there are few, raise `num_chunks` or `--env.num-envs`.",
    ),
    Metric(
        name="kept_groups",
        algorithms=("grpo",),
        meaning="share of groups with unequal outcomes [-]",
        healthy="high in the middle of learning, low at both ends",
        advice="No group has both successes and failures, so nothing is learned. Raise "
        "`group_size`, or take a better clone.",
        low=0.01,
        window=5,
    ),
    Metric(
        name="solved_groups",
        algorithms=("grpo",),
        meaning="share of groups in which all episodes succeeded [-]",
        healthy="rises to 1",
        advice="If it falls, see docs/troubleshooting.md.",
    ),
    Metric(
        name="group_start_spread",
        algorithms=("grpo",),
        meaning="greatest distance between starts of one group [robot units]",
        healthy="0, or the noise of a simulator that does not reset exactly",
        advice="If it is large, the environment ignores its seed; use `ppo`.",
    ),
    Metric(
        name="pending_groups",
        algorithms=("grpo",),
        meaning="groups that wait for the update, those of this rollout included",
        healthy="grows only while `gradient_steps` is 0",
        advice="If updates wait for long, lower `min_kept`.",
    ),
)

POPULATION = (
    Metric(
        name="fitness/*",
        algorithms=("epo",),
        meaning="success rate of a member's exploring episodes; absent until ten of them [-]",
        healthy="rises for every member",
        advice="If one stays behind, wait for the selection every `evolve_every` updates.",
        optional=True,
    ),
    Metric(
        name="best_member",
        algorithms=("epo",),
        meaning="number of the member that is deployed",
        healthy="changes rarely",
        advice="Nothing to do.",
    ),
    Metric(
        name="replaced",
        algorithms=("epo",),
        meaning="members replaced so far",
        healthy="0 while no member is worse than the best beyond chance",
        advice="If it grows fast, raise `selection_deviations`.",
    ),
    Metric(
        name="gene_spread",
        algorithms=("epo",),
        meaning="mean distance between genes [-]",
        healthy="about √(2 · `gene_dim`) at first; above 0",
        advice="If it is near 0, raise `mutation_std`.",
    ),
    Metric(
        name="action_spread",
        algorithms=("epo",),
        meaning="standard deviation over members of the deployed actions at the same places "
        "[robot units]",
        healthy="0 at first, then above 0",
        advice="If it returns to 0, all members act alike: raise `mutation_std`, or use `ppo`.",
    ),
    Metric(
        name="aggregated",
        algorithms=("epo",),
        meaning="decisions of other members that the master learned from",
        healthy="most of theirs",
        advice="If it is near 0, members are far apart: raise `log_ratio_cap`.",
    ),
)
