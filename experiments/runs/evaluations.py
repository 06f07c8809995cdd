"""The evaluations of a run: short ones while it trains, and those before and after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pitune import envs, rl
from pitune.experiments.reports.task_table import names_of
from pitune.experiments.runs.progress import count_episodes, screen
from pitune.policies import Actor
from pitune.rl.experience.task_success import task_success


def validate(env: envs.CheckedEnv, actor: Actor, num_episodes: int, seed: int) -> dict[str, float]:
    """Evaluate the deployed policy on the validation starts and return its metrics.

    Without an episode that counts, or without success in the environment, there is no success rate.
    """
    with count_episodes("evaluation", num_episodes, env.spec.num_envs) as on_step:
        evaluation = rl.evaluate(
            env, actor, num_episodes, seed=seed, split="validation", on_step=on_step
        )
    warn_of_broken(evaluation)
    low, high = evaluation.interval or (None, None)
    metrics = {
        "success_rate": evaluation.success_rate,
        "success_rate_low": low,
        "success_rate_high": high,
        "success_rate_low_all": evaluation.lower_bound_all,
        "eval/success_once": evaluation.rate("once"),
        "eval/success_at_end": evaluation.rate("at_end"),
        "eval/return": evaluation.mean_return,
        "eval/invalid": float(evaluation.num_invalid),
    }
    task_id = evaluation.task_id if evaluation.success_rule is not None else []
    tasks = task_success("eval", task_id, evaluation.success)
    return {key: value for key, value in metrics.items() if value is not None} | tasks


def rank_of(evaluation: Mapping[str, Any]) -> float:
    """Return the number by which checkpoints are ranked, from metrics or from a summary.

    It is the lower bound of success over all episodes, with broken ones as failures. In an
    environment that reports no success it is the mean return.
    """
    names = ("success_rate_low_all", "lower_bound_all", "eval/return", "mean_return")
    values = [evaluation[name] for name in names if evaluation.get(name) is not None]
    return float(values[0]) if values else -math.inf


def warn_of_broken(evaluation: rl.Evaluation) -> None:
    """Print a warning if many episodes broke down."""
    warning = evaluation.warning()
    if warning is not None:
        screen.note(f"warning: {warning}")


def evaluate_both(
    env: envs.CheckedEnv, actor: Actor, num_episodes: int, seed: int
) -> dict[str, Any]:
    """Evaluate on the test starts, as deployed and exploring, and return both summaries by name."""
    summaries = {}
    for name in ("deployed", "exploring"):
        with count_episodes(f"evaluation, {name}", num_episodes, env.spec.num_envs) as on_step:
            evaluation = rl.evaluate(
                env,
                actor,
                num_episodes,
                seed=seed,
                stochastic=name == "exploring",
                on_step=on_step,
            )
        warn_of_broken(evaluation)
        summaries[name] = {**evaluation.summary(), "task_names": list(names_of(env.spec))}
    return summaries


def cut_notes(algorithm: rl.Algorithm[Any], num_chunks: int, limit: int) -> list[str]:
    """Return a note if every episode is cut short by an evaluation before it can end.

    Args:
        algorithm: It may learn from rollouts.
        num_chunks: Decisions between two evaluations, at which new episodes begin.
        limit: Longest episode [environment steps].
    """
    steps = num_chunks * algorithm.actor.policy.sampler.execution_horizon
    if steps >= limit or not algorithm.needs.rollouts:
        return []
    return [
        f"episodes begin anew at each evaluation, after {steps} steps, but may last {limit}: "
        "their ends are never learned from. Raise eval_every or num_chunks"
    ]
