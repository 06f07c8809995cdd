"""Demonstrations of an environment's expert, with the rewards of the environment.

Letters: E envs, N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from pitune.envs import CheckedEnv, EnvSpec, EpisodeSeeds, Starts, start_split
from pitune.envs.success import EpisodeSuccess
from pitune.envs.vector_env import Expert
from pitune.rl.experience.demonstrations import Demonstrations
from pitune.rl.experience.sub_dict import Entry

RECORDED = ("action", "reward", "terminated", "success")
"""Entries of a recorded step besides its observation."""
MAX_TRIES = 20
"""Episodes that an expert may play for each one that is needed."""


def collect_demonstrations(
    env: CheckedEnv,
    num_episodes: int,
    seed: int,
    on_step: Callable[[int], None] | None = None,
    *,
    skip_tasks_without_expert: bool = False,
) -> Demonstrations:
    """Collect the first `num_episodes` successes of the environment's expert, with the rewards.

    Of a suite these are successes of each task, in the order of the tasks. Success is that of the
    environment (`EnvConfig.success`), and failures are left out.
    `Demonstrations.expert_success` counts both.
    The order is by round and environment and not by time, because the first episodes to finish are
    the short ones.

    Args:
        env: A simulator with an expert.
        num_episodes: Number of successful episodes, of each task in a suite.
        seed: Seed of the starts.
        on_step: Called after each step with the number of successes so far, to show progress.
        skip_tasks_without_expert: Whether to leave out tasks of a suite that have no expert.

    Raises:
        ValueError: the environment reports no success, or a task has no expert.
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
    if env.spec.seeded_tasks:
        tasks = _tasks_with_expert(env, skip=skip_tasks_without_expert)
        kept, counts = _collect_tasks(env, tasks, num_episodes, seed, on_step)
    else:
        kept, counts = _collect_one(env, num_episodes, seed, on_step)

    return table_of(kept, env.spec, counts)


Counts = tuple[tuple[int, int], ...]
"""Successes and episodes of the expert, of each task."""


def table_of(episodes: Sequence[TensorDict], spec: EnvSpec, counts: Counts = ()) -> Demonstrations:
    """Return recorded episodes as one table.

    Args:
        episodes: Steps of each, with or without their `success`.
        spec: Names the tasks and the reward.
        counts: Successes and episodes of the expert, of each task.
    """
    steps: TensorDict = TensorDict.cat(list(episodes))
    lengths = torch.tensor([len(episode) for episode in episodes])
    return Demonstrations(
        obs={str(key): steps[key] for key in steps.keys() if key not in RECORDED},
        action=steps["action"],
        reward=steps["reward"],
        terminated=steps["terminated"],
        success=steps.get("success", None),
        reward_definition=spec.reward,
        episode=torch.arange(len(episodes)).repeat_interleave(lengths),
        tasks=spec.tasks,
        expert_success=counts,
    )


def _collect_one(
    env: CheckedEnv, num_episodes: int, seed: int, on_step: Callable[[int], None] | None
) -> tuple[list[TensorDict], Counts]:
    """Return the first successes of all environments together, round by round."""
    num_envs = env.spec.num_envs
    rows = torch.arange(num_envs, device=env.spec.device)
    seeds = EpisodeSeeds(num_envs, seed, "demonstrations", starts=Starts.of(env.spec))
    kept: list[TensorDict] = []
    played = 0
    while len(kept) < num_episodes:
        episodes = _expert_round(env, rows, seeds.next(rows), len(kept), on_step)
        kept += [episode for episode in episodes if episode is not None]
        played += num_envs
        if played >= MAX_TRIES * max(num_episodes, num_envs) and len(kept) < num_episodes:
            raise RuntimeError(
                f"the expert of {env.spec.id} succeeded in {len(kept)} of {played} episodes; "
                f"{num_episodes} are needed"
            )
    return kept[:num_episodes], ((len(kept), played),)


def _collect_tasks(
    env: CheckedEnv,
    tasks: Sequence[int],
    num_episodes: int,
    seed: int,
    on_step: Callable[[int], None] | None,
) -> tuple[list[TensorDict], Counts]:
    """Return the first successes of each task, task by task.

    Number n of a task has a start that depends on n alone. So the result does not depend on the
    number of environments.
    """
    starts, spec = Starts.of(env.spec), env.spec
    kept: dict[int, list[TensorDict]] = {task: [] for task in tasks}
    played = dict.fromkeys(range(len(spec.tasks)), 0)
    while any(len(episodes) < num_episodes for episodes in kept.values()):
        missing = {task: num_episodes - len(episodes) for task, episodes in kept.items()}
        chosen = _deal(spec.num_envs, {task: num for task, num in missing.items() if num})
        numbers = {row: played[task] + n for row, (task, n) in chosen.items()}
        for task, _ in chosen.values():
            played[task] += 1
        rows = torch.tensor(sorted(chosen), device=spec.device)
        seeds = [
            starts.seed_of(seed, "demonstrations", chosen[row][0], numbers[row])
            for row in sorted(chosen)
        ]
        num_before = sum(len(episodes) for episodes in kept.values())
        episodes = _expert_round(env, rows, torch.tensor(seeds), num_before, on_step)

        # successes of each task, by their number
        order = sorted(range(len(rows)), key=lambda i: numbers[int(rows[i])])
        for place in order:
            episode = episodes[place]
            if episode is not None:
                kept[chosen[int(rows[place])][0]].append(episode)
        for task in tasks:
            _check_expert(env, starts, task, (len(kept[task]), played[task]), num_episodes)
    counts = tuple((len(kept.get(task, ())), played[task]) for task in played)
    return [episode for task in tasks for episode in kept[task]], counts


def _deal(num_envs: int, missing: dict[int, int]) -> dict[int, tuple[int, int]]:
    """Return the task of each environment in a round, and its place among those of the task.

    No task is played more often than it has episodes missing.

    Args:
        num_envs: E.
        missing: Missing episodes of each unfinished task.
    """
    order = [task for n in range(max(missing.values())) for task, num in missing.items() if n < num]
    counts = dict.fromkeys(missing, 0)
    chosen: dict[int, tuple[int, int]] = {}
    for row, task in enumerate(order[:num_envs]):
        chosen[row] = (task, counts[task])
        counts[task] += 1
    return chosen


def _tasks_with_expert(env: CheckedEnv, *, skip: bool) -> list[int]:
    """Return the tasks of a suite to demonstrate.

    Raises:
        ValueError: a task has no expert and is not skipped, or none has one.
    """
    spec = env.spec
    names = spec.task_names or spec.tasks
    without = [names[task] for task in spec.tasks_without_expert]
    tasks = [task for task in range(len(spec.tasks)) if task not in spec.tasks_without_expert]
    if without and not (skip and tasks):
        raise ValueError(
            f"{without} of {spec.id} have no expert to demonstrate them; leave them out of the "
            "suite, or skip them (--skip-tasks-without-expert) where others have one"
        )
    return tasks


def _check_expert(
    env: CheckedEnv, starts: Starts, task: int, count: tuple[int, int], num_episodes: int
) -> None:
    """Raise RuntimeError if an expert fails too often, or has played every fixed start."""
    num_successes, played = count
    most = MAX_TRIES * num_episodes
    if starts.num_starts is not None:
        split = start_split(starts.num_starts, shared=starts.shared_starts)
        most = min(most, len(split["demonstrations"]))
    if num_successes < num_episodes and played >= most:
        name = (env.spec.task_names or env.spec.tasks)[task]
        raise RuntimeError(
            f"the expert of {name} succeeded in {num_successes} of {played} episodes; "
            f"{num_episodes} are needed, and at most {most} may be played"
        )


def _expert_round(
    env: CheckedEnv,
    rows: Tensor,
    seeds: Tensor,
    num_before: int,
    on_step: Callable[[int], None] | None,
) -> list[TensorDict | None]:
    """Play one episode in each of some environments (N,) and return the successful ones, in order.

    An episode without success is None.
    """
    show = None if on_step is None else lambda num_solved: on_step(num_before + num_solved)
    played = play_round(env, rows, seeds, env.expert, show)
    return [played.episode(i) if played.solved[i] else None for i in rows.tolist()]


class Round(NamedTuple):
    """An episode in each of some environments.

    Example:
        >>> played = play_round(env, rows, seeds, env.expert)  # doctest: +SKIP
        >>> [len(played.episode(i)) for i in rows.tolist()]  # doctest: +SKIP
        [12, 9]
    """

    steps: TensorDict
    """(steps, E)."""
    live: Tensor
    """Whether an environment executed a step (steps, E) bool."""
    solved: Tensor
    """Whether its episode succeeded (E,) bool, by the environment's rule."""
    broken: Tensor
    """Whether its simulator broke down (E,) bool. Such an episode has not succeeded."""

    def episode(self, env: int) -> TensorDict:
        """Return the steps of an environment."""
        steps: TensorDict = self.steps[self.live[:, env], env]  # type: ignore[assignment]
        return steps


def play_round(
    env: CheckedEnv,
    rows: Tensor,
    seeds: Tensor,
    new_expert: Callable[[], Expert],
    on_step: Callable[[int], None] | None = None,
) -> Round:
    """Play one episode of an expert in each of some environments.

    Args:
        env: The simulator.
        rows: Indices of the environments (N,).
        seeds: Seed of each start (N,).
        new_expert: Called after the starts.
        on_step: Called after each step with the number of successes so far.
    """
    # new episodes
    num_envs = env.spec.num_envs
    env.abandon()
    obs = env.reset(seeds.to(rows.device), rows)
    expert = new_expert()
    active = torch.zeros(num_envs, dtype=torch.bool, device=env.spec.device)
    active[rows] = True
    success = EpisodeSuccess(num_envs, env.spec.device)
    broken = torch.zeros_like(active)
    began = active

    # steps of these environments until the last episode has ended
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
        solved = success.flags(env.spec.success_rule)["success"] & ~broken & ~active & began
        if on_step is not None:
            on_step(int(solved.sum()))
    return Round(TensorDict.stack(steps), torch.stack(live), solved.cpu(), broken.cpu())
