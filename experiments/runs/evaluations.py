"""The evaluations of a run: short ones while it trains, and those before and after it."""

from __future__ import annotations

from typing import Any

from pitune import envs, rl
from pitune.experiments.runs.progress import count_episodes
from pitune.policies import Actor


def validate(env: envs.CheckedEnv, actor: Actor, num_episodes: int, seed: int) -> dict[str, float]:
    """Evaluate the deployed policy on the validation starts and return its metrics."""
    with count_episodes("evaluation", num_episodes, env.spec.num_envs) as on_step:
        evaluation = rl.evaluate(
            env, actor, num_episodes, seed=seed, split="validation", on_step=on_step
        )
    low, high = evaluation.interval
    return {
        "success_rate": evaluation.success_rate,
        "success_rate_low": low,
        "success_rate_high": high,
    }


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
        summaries[name] = evaluation.summary()
    return summaries


def cut_note(steps: int, limit: int) -> str | None:
    """Return a note if every episode is cut short by an evaluation before it can end.

    Args:
        steps: Environment steps between two evaluations, at which new episodes begin.
        limit: Longest episode [environment steps].
    """
    if steps >= limit:
        return None
    return (
        f"episodes begin anew at each evaluation, after {steps} steps, but may last {limit}: "
        "their ends are never learned from. Raise eval_every or num_chunks"
    )
