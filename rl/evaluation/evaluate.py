"""Unbiased success rates, from the same number of episodes in every environment.

The first finished episodes are short ones, and successes are short, so they would be a biased
sample. Here each environment plays a fixed number. The starts never occur in training and are the
same in every evaluation, for a paired comparison of policies. The random numbers of training are
not used.
Letters: E envs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import ExplorationType, set_exploration_type

from pitune.envs import CheckedEnv, ChunkEnv, EpisodeSeeds, Split
from pitune.policies import Actor
from pitune.rl.evaluation.statistics import wilson_interval
from pitune.rl.experience.rollouts import check_fit
from pitune.rl.experience.sub_dict import sub_dict


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Outcomes of episodes.

    Example:
        >>> outcome = Evaluation(
        ...     success=[True, False],
        ...     task_id=[0, 0],
        ...     length=[12, 50],
        ...     episode_return=[1.0, 0.0],
        ...     num_invalid=0,
        ... )
        >>> print(outcome)
        50.0 % [9.5, 90.5] (1/2)
    """

    success: list[bool]
    """Success of each episode, by environment and then by episode. The order of the starts is the
    same for every policy."""
    task_id: list[int]
    """Task of each episode."""
    length: list[int]
    """Environment steps of each episode."""
    episode_return: list[float]
    """Undiscounted return of each episode."""
    num_invalid: int
    """Episodes in a broken simulator, which are not in the lists."""

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.success)

    @property
    def success_rate(self) -> float:
        """Share of episodes with success at any step. A success ends the episode."""
        return sum(self.success) / len(self.success) if self.success else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the success rate."""
        return wilson_interval(sum(self.success), len(self.success))

    def by_task(self) -> dict[int, tuple[int, int]]:
        """Return (successes, episodes) of each task."""
        counts = {}
        for task in sorted(set(self.task_id)):
            of_task = [s for s, t in zip(self.success, self.task_id, strict=True) if t == task]
            counts[task] = (sum(of_task), len(of_task))
        return counts

    def summary(self) -> dict[str, Any]:
        """Return the numbers for a report, raw counts first."""
        low, high = self.interval
        return {
            "successes": sum(self.success),
            "episodes": self.num_episodes,
            "success_rate": self.success_rate,
            "wilson_low": low,
            "wilson_high": high,
            "mean_length": sum(self.length) / max(1, len(self.length)),
            "mean_return": sum(self.episode_return) / max(1, len(self.episode_return)),
            "invalid": self.num_invalid,
            "by_task": {str(task): counts for task, counts in self.by_task().items()},
        }

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{100 * self.success_rate:.1f} % [{100 * low:.1f}, {100 * high:.1f}] "
            f"({sum(self.success)}/{self.num_episodes})"
        )


@torch.no_grad()
def evaluate(
    env: CheckedEnv,
    actor: Actor,
    num_episodes: int,
    *,
    seed: int = 0,
    split: Split = "test",
    stochastic: bool = False,
    on_step: Callable[[Tensor], None] | None = None,
) -> Evaluation:
    """Play `num_episodes` episodes, equally many in every environment, and count successes.

    Args:
        env: The checked simulator. New episodes begin in all its environments, so `Rollouts` in the
            same environment must `restart` before they go on.
        actor: Acts as deployed (by the ODE), or as in training if `stochastic`.
        num_episodes: A multiple of the number of environments.
        seed: Seed of the starts and of the policy's noise.
        split: Set of starts: "validation" during training, "test" for reports.
        stochastic: Whether the actor explores.
        on_step: Called after each decision with the finished environments (E,), for progress or
            videos.

    Raises:
        ValueError: `num_episodes` is not a multiple of the number of environments, or the policy
            does not fit the environment.

    Example:
        >>> outcome = evaluate(env, algorithm.actor, num_episodes=100)  # doctest: +SKIP
        >>> outcome.success_rate  # doctest: +SKIP
        0.93
    """
    num_envs = env.spec.num_envs
    check_fit(actor.policy, env.spec)
    if num_episodes < 1 or num_episodes % num_envs:
        raise ValueError(f"num_episodes={num_episodes} must be a multiple of {num_envs} envs")

    actor = actor.evaluated()

    # environment with starts of its own
    chunk_env = ChunkEnv(
        env,
        actor.policy.sampler.execution_horizon,
        EpisodeSeeds(num_envs, seed, split),
        preprocess=actor.policy.observation_preprocessor(env.spec.tasks),
    )

    # episodes, with random numbers of their own
    mode = ExplorationType.RANDOM if stochastic else ExplorationType.DETERMINISTIC
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices), set_exploration_type(mode):
        torch.manual_seed(seed)
        episodes = _play(chunk_env, actor, num_episodes // num_envs, on_step)

    # outcomes, without broken simulators
    counted = [episode for of_env in episodes for episode in of_env if not episode["invalid"]]
    return Evaluation(
        success=[episode["success"] for episode in counted],
        task_id=[episode["task_id"] for episode in counted],
        length=[episode["length"] for episode in counted],
        episode_return=[episode["return"] for episode in counted],
        num_invalid=num_episodes - len(counted),
    )


def _play(
    chunk_env: ChunkEnv,
    actor: Actor,
    quota: int,
    on_step: Callable[[Tensor], None] | None,
) -> list[list[dict[str, Any]]]:
    """Return the first `quota` episodes of every environment."""
    num_envs = chunk_env.batch_size[0]
    episodes: list[list[dict[str, Any]]] = [[] for _ in range(num_envs)]
    length, total = [0] * num_envs, [0.0] * num_envs
    td: TensorDictBase = chunk_env.reset()
    while any(len(of_env) < quota for of_env in episodes):
        task_id = td["task_id"].tolist()
        td, next_td = chunk_env.step_and_maybe_reset(actor(td))

        # outcomes of the decisions
        outcome = sub_dict(td, "next")
        keys = ("duration", "reward", "done", "success", "invalid")
        columns = (outcome[key].flatten().tolist() for key in keys)
        for i, (duration, reward, done, success, invalid) in enumerate(zip(*columns, strict=True)):
            length[i] += duration
            total[i] += reward
            if done and len(episodes[i]) < quota:
                episode = {"success": success, "invalid": invalid, "task_id": task_id[i]}
                episodes[i].append({**episode, "length": length[i], "return": total[i]})
            if done:
                length[i], total[i] = 0, 0.0
        if on_step is not None:
            on_step(outcome["done"].flatten())
        td = next_td
    return episodes
