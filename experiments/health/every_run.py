"""Health of the metrics that every run logs."""

from __future__ import annotations

from pitune.experiments.health.metric import Metric

EVERY_RUN = (
    Metric(
        name="success_rate",
        meaning="success rate of the deployed policy on the validation starts [-]",
        healthy="rises; never below the start by more than the interval",
        advice="If it dropped, see docs/troubleshooting.md.",
        optional=True,
    ),
    Metric(
        name="success_rate_low",
        meaning="lower end of its 95 % Wilson interval [-]",
        healthy="equal to `success_rate_low_all`",
        advice="Raise `eval_episodes` for a narrower interval.",
        optional=True,
    ),
    Metric(
        name="success_rate_high",
        meaning="upper end of its 95 % Wilson interval [-]",
        healthy="not below the lower end before training",
        advice="If it dropped, see docs/troubleshooting.md.",
        optional=True,
    ),
    Metric(
        name="success_rate_low_all",
        meaning="lower end of the interval over all episodes, broken ones as failures [-]",
        healthy="training ends when it reaches `stop_at`",
        advice="It ranks the checkpoints. Below `success_rate_low` the simulator breaks down.",
        optional=True,
    ),
    Metric(
        name="eval/success_once",
        meaning="share of validation episodes solved at any step [-]",
        healthy="rises",
        advice="If it is far above `eval/success_at_end`, the policy does not hold its success.",
        optional=True,
    ),
    Metric(
        name="eval/success_at_end",
        meaning="share of validation episodes solved at their last step [-]",
        healthy="equal to `eval/success_once` where success ends an episode",
        advice="Choose the definition that counts with `--env.success`.",
        optional=True,
    ),
    Metric(
        name="eval/return",
        meaning="mean return of the validation episodes [reward]",
        healthy="rises",
        advice="Without success in `info` the best checkpoint is chosen by it.",
        optional=True,
    ),
    Metric(
        name="eval/invalid",
        meaning="validation episodes lost to a simulator that broke down",
        healthy="0",
        advice="They are in no rate. Look at the simulator's own log.",
        high=0.0,
        optional=True,
    ),
    Metric(
        name="train/success_rate",
        meaning="success rate of the exploring episodes that ended in the rollout [-]",
        healthy="below `success_rate`, but not by much",
        advice="If it is far below, lower the exploration noise.",
    ),
    Metric(
        name="train/task_success/*",
        meaning="`train/success_rate` of each task of a suite, by `task_id`, or of the worst and "
        "best task where there are more than ten [-]",
        healthy="rises in every task",
        advice="If one task falls while others rise, give the clone more demonstrations of it, or "
        "lower the learning rate.",
        optional=True,
    ),
    Metric(
        name="eval/task_success/*",
        meaning="`success_rate` of each task of a suite, likewise [-]",
        healthy="rises in every task",
        advice="With few episodes of each task the rates swing; raise `eval_episodes`.",
        optional=True,
    ),
    Metric(
        name="train/episodes",
        meaning="episodes that ended in the rollout",
        healthy="above 0 in most iterations",
        advice="Raise `num_chunks` or `eval_every`: the ends of episodes carry the reward.",
    ),
    Metric(
        name="train/invalid",
        meaning="decisions lost to a simulator that broke down",
        healthy="0",
        advice="A few do no harm, because they are left out. If there are many, look at the "
        "simulator's own log and lower `--env.num-envs`.",
        high=0.0,
    ),
    Metric(
        name="train/reward_per_step",
        meaning="mean reward per environment step",
        healthy="rises",
        advice="With a shaped reward it can rise without success; trust `success_rate`.",
    ),
    Metric(
        name="env_steps",
        meaning="environment steps so far",
        healthy="rises; 0 for `bc`",
        advice="Nothing to do.",
    ),
    Metric(
        name="env_steps_per_second",
        meaning="speed of collecting, simulator and policy together [1/s]",
        healthy="steady",
        advice="If it falls, other work shares the machine; compare `seconds/*`.",
    ),
    Metric(
        name="seconds/*",
        meaning="time of the iteration in simulator, policy, update and evaluation, and of the "
        "checkpoint before it (`save`) [s]",
        healthy="steady",
        advice="The largest share is the part to speed up first.",
    ),
    Metric(
        name="memory/*",
        meaning="memory of the process, and peak memory of the GPU in the iteration [MiB]",
        healthy="flat, once a replay memory is full",
        advice="If `memory/process_mib` rises without end, report it.",
    ),
    Metric(
        name="action_clip_fraction",
        meaning="share of action entries outside the robot's bounds, since the start [-]",
        healthy="steady",
        advice="If it rises, the policy pushes against the bounds; lower the exploration noise.",
    ),
)
