"""Demonstrations of an environment's expert, with the rewards of the environment.

Letters: E envs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from pitune.envs import CheckedEnv, EpisodeSeeds, Starts
from pitune.envs.success import EpisodeSuccess
from pitune.rl.experience.demonstrations import Demonstrations
from pitune.rl.experience.sub_dict import Entry

RECORDED = ("action", "reward", "terminated")
"""Entries of a recorded step besides its observation."""


def collect_demonstrations(
    env: CheckedEnv,
    num_episodes: int,
    seed: int,
    on_step: Callable[[int], None] | None = None,
) -> Demonstrations:
    """Collect the first `num_episodes` successes of the environment's expert, with the rewards.

    Success is that of the environment (`EnvConfig.success`).
    The order is by round and environment and not by time, because the first episodes to finish are
    the short ones.

    Args:
        env: A simulator with an expert.
        num_episodes: Number of successful episodes.
        seed: Seed of the starts.
        on_step: Called after each step with the number of successes so far, to show progress.

    Raises:
        ValueError: the environment reports no success.
        RuntimeError: the expert fails too often.

    Example:
        >>> env = envs.make(envs.EnvConfig(id="mock/Reach"))  # doctest: +SKIP
        >>> collect_demonstrations(env, num_episodes=10, seed=0).num_episodes  # doctest: +SKIP
        10
    """
    if not env.spec.success_signal:
        raise ValueError(
            f"{env.spec.id} reports no success, which selects the episodes to demonstrate; report "
            "info['success'], one boolean at each step"
        )

    # successful episodes
    seeds = EpisodeSeeds(env.spec.num_envs, seed, "demonstrations", starts=Starts.of(env.spec))
    kept: list[TensorDict] = []
    played = 0
    while len(kept) < num_episodes:
        kept += _expert_round(env, seeds, len(kept), on_step)
        played += env.spec.num_envs
        if played >= 20 * max(num_episodes, env.spec.num_envs) and len(kept) < num_episodes:
            raise RuntimeError(
                f"the expert of {env.spec.id} succeeded in {len(kept)} of {played} episodes; "
                f"{num_episodes} are needed"
            )

    # one table
    kept = kept[:num_episodes]
    steps: TensorDict = TensorDict.cat(kept)
    lengths = torch.tensor([len(episode) for episode in kept])
    return Demonstrations(
        obs={str(key): steps[key] for key in steps.keys() if key not in RECORDED},
        action=steps["action"],
        reward=steps["reward"],
        terminated=steps["terminated"],
        reward_definition=env.spec.reward,
        episode=torch.arange(num_episodes).repeat_interleave(lengths),
        tasks=env.spec.tasks,
    )


def _expert_round(
    env: CheckedEnv, seeds: EpisodeSeeds, num_before: int, on_step: Callable[[int], None] | None
) -> list[TensorDict]:
    """Play one episode in every environment and return the successful ones, in order."""
    # new episodes
    num_envs = env.spec.num_envs
    env_idx = torch.arange(num_envs, device=env.spec.device)
    obs = env.reset(seeds.next(env_idx).to(env_idx.device))
    expert = env.expert()
    active = torch.ones(num_envs, dtype=torch.bool, device=env.spec.device)
    success = EpisodeSuccess(num_envs, env.spec.device)
    broken = torch.zeros_like(active)

    # steps of all environments until the last episode has ended
    steps: list[TensorDict] = []
    live: list[Tensor] = []
    while active.any():
        action = torch.maximum(torch.minimum(expert.act(), env.high), env.low)
        result = env.step(action, active)
        entries: dict[str, Entry] = {**obs, "action": action}
        entries |= {"reward": result.reward, "terminated": result.terminated}
        steps.append(TensorDict(entries, batch_size=[num_envs]).cpu())
        live.append(active.cpu())
        obs = result.obs
        success.add(result.info["success"], active)
        broken = broken | (result.info["invalid"] & active)
        active = active & ~(result.terminated | result.truncated)
        solved = success.flags(env.spec.success_rule)["success"] & ~broken & ~active
        if on_step is not None:
            on_step(num_before + int(solved.sum()))

    # steps of each successful environment
    table, mask = TensorDict.stack(steps), torch.stack(live)  # (steps, E)
    return [table[mask[:, i], i] for i in range(num_envs) if solved[i]]
