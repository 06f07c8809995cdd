"""Unbiased success rates, from a list of starts that is the same for every policy.

Episode i of an evaluation has a start and starting noise of its own, which follow from the seed,
the split and i alone. So the outcomes of a deterministic simulator do not depend on the number of
environments, apart from rounding errors of the network, and two policies can be compared start by
start. Each episode of the list is played once and counted: the first to finish would be short ones,
and successes are short. An environment without further episodes waits and executes no step.

The starts never occur in training. The random numbers of training are not used.
Letters: E envs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import ExplorationType, set_exploration_type

from pitune.envs import (
    CheckedEnv,
    ChunkEnv,
    EnvSpec,
    EvaluationSeeds,
    Split,
    Starts,
    SuccessRule,
)
from pitune.envs.success import check_rule
from pitune.policies import FlowPolicy
from pitune.policies.actor import ActingModule
from pitune.policies.finetuning.shard import gather
from pitune.rl import ranks
from pitune.rl.evaluation.chosen_episodes import ChosenEpisodes
from pitune.rl.evaluation.episode_noise import EpisodeNoise
from pitune.rl.evaluation.marks import Marks
from pitune.rl.evaluation.outcome import EpisodeOutcome, Evaluation
from pitune.rl.evaluation.played_once import check_played_once
from pitune.rl.experience.fit import check_fit
from pitune.rl.experience.rollouts import chunk_env_for
from pitune.rl.experience.sub_dict import sub_dict


@torch.no_grad()
def evaluate(
    env: CheckedEnv,
    actor: ActingModule,
    num_episodes: int,
    *,
    seed: int = 0,
    split: Split = "test",
    stochastic: bool = False,
    success: SuccessRule | None = None,
    on_step: Callable[[Tensor], None] | None = None,
    on_episode: Callable[[EpisodeOutcome], None] | None = None,
    episodes: Sequence[int] | None = None,
    instructions: Sequence[str] | None = None,
) -> Evaluation:
    """Play a list of `num_episodes` episodes and return their outcomes in its order.

    Args:
        env: The checked simulator. New episodes begin in it, and `Rollouts` in the same
            environment begin anew afterwards.
        actor: Acts as deployed (by the ODE), or as in training if `stochastic`.
        num_episodes: Length of the list, any number.
        seed: Of the starts and of the policy's noise.
        split: Set of starts: "validation" during training, "test" for reports.
        stochastic: Whether the actor explores, with noise that depends on the number of
            environments.
        success: Definition of success. The environment's own by default (`EnvConfig.success`).
        on_step: Called after each decision with the finished environments (E,).
        on_episode: Called with each outcome when its episode ends, in any order. While the
            environment has reported no success, the success is False.
        episodes: Places in the list to play, to go on with an evaluation or to share it between
            processes. All by default. The outcomes of a deterministic simulator do not depend on
            this choice, to the last bit, while E is the same. With `stochastic` they do.
        instructions: The words for each task, in place of the environment's.

    Raises:
        ValueError: there is no episode, the definition of success is unknown, or the policy,
            `episodes` or `instructions` do not fit the environment.
        RuntimeError: the environment did not play each (task, start) of the list exactly once.

    Example:
        >>> evaluate(env, algorithm.actor, num_episodes=100).success_rate  # doctest: +SKIP
        0.93
    """
    rule = env.spec.success_rule if success is None else success
    check_rule(rule)
    if isinstance(actor.policy, FlowPolicy):  # a server's policy has checked itself
        check_fit(actor.policy, env.spec)
        gather(actor.policy)
    actor = actor.evaluated()

    # environment with starts of its own
    shared = episodes is None and ranks.world() > 1
    own = _places_of_rank(num_episodes, env.spec.num_envs) if shared else episodes
    seeds = EvaluationSeeds(env.spec.num_envs, num_episodes, seed, split, Starts.of(env.spec))
    seeds = seeds if own is None else ChosenEpisodes(seeds, own)
    # it may turn out only in the last step that there is a success
    num, words = seeds.num_episodes.to(env.spec.device), _words(instructions, env.spec, actor)
    chunk_env = chunk_env_for(actor.policy, env, seeds, num, tasks=words, record_success=True)

    # rows in the order of the list
    with _own_randomness(seed, stochastic):
        rows = _play(chunk_env, actor, seeds, on_step, on_episode)
    if shared:
        rows = [row for part in ranks.gathered(rows) for row in part]
    rows.sort(key=lambda row: row.index)
    check_played_once(rows, range(num_episodes) if episodes is None else episodes, seeds)
    if ranks.on_any(env.spec.success_signal) if shared else env.spec.success_signal:
        return Evaluation(rows=tuple(rows), success_rule=rule)
    rows = [replace(row, success_once=None, success_at_end=None) for row in rows]
    return Evaluation(rows=tuple(rows), success_rule=None)


def _places_of_rank(num_episodes: int, num_envs: int) -> list[int]:
    """Return the places in the list that this rank plays.

    The ranks' environments are one list, and environment i modulo their number plays episode i.
    """
    total = num_envs * ranks.world()
    return [i for i in range(num_episodes) if i % total // num_envs == ranks.rank()]


@contextmanager
def _own_randomness(seed: int, stochastic: bool) -> Iterator[None]:
    """Use random numbers of an evaluation's own while the context is open, and its exploration."""
    mode = ExplorationType.RANDOM if stochastic else ExplorationType.DETERMINISTIC
    seed += ranks.rank() << 32
    with torch.random.fork_rng(ranks.devices()), set_exploration_type(mode):
        torch.manual_seed(seed)
        yield


def _words(
    instructions: Sequence[str] | None, spec: EnvSpec, actor: ActingModule
) -> tuple[str, ...]:
    """Return the words of each task, of the caller or of the environment.

    Raises:
        ValueError: their number is not that of the tasks, or the policy reads no words.
    """
    if instructions is None:
        return spec.tasks
    if len(instructions) != len(spec.tasks):
        raise ValueError(
            f"instructions={list(instructions)} must have one entry for each of the "
            f"{len(spec.tasks)} tasks of {spec.id}"
        )
    policy = actor.policy
    if isinstance(policy, FlowPolicy) and policy.preprocessor.config.prompt is None:
        raise ValueError(
            "instructions are given, but the policy has no prompt and would not read them; leave "
            "them out, or use a policy with a prompt"
        )
    return tuple(instructions)


_COLUMNS = ("duration", "reward", "done", "success_once", "success_at_end", "invalid")


def _play(
    chunk_env: ChunkEnv,
    actor: ActingModule,
    seeds: EvaluationSeeds,
    on_step: Callable[[Tensor], None] | None,
    on_episode: Callable[[EpisodeOutcome], None] | None,
) -> list[EpisodeOutcome]:
    """Play all episodes and return their outcomes, as they end."""
    num_envs = chunk_env.batch_size[0]
    noise = EpisodeNoise(seeds, actor.policy.chunk_shape)
    length, total = [0] * num_envs, [0.0] * num_envs
    marks = Marks(num_envs)
    rows: list[EpisodeOutcome] = []
    wanted = int(seeds.num_episodes.sum())
    if not wanted:  # more ranks than episodes
        return rows
    td: TensorDictBase = chunk_env.reset()
    while len(rows) < wanted:
        task_id, index = td["task_id"].tolist(), seeds.index.tolist()
        td, next_td = chunk_env.step_and_maybe_reset(actor(td.set("noise", noise.draw())))

        marks.add(td)
        # outcomes of the decisions
        outcome = sub_dict(td, "next")
        columns = (outcome[key].flatten().tolist() for key in _COLUMNS)
        for i, values in enumerate(zip(*columns, strict=True)):
            duration, reward, done, once, at_end, invalid = values
            length[i] += duration
            total[i] += reward
            if not done:
                continue
            fixed = chunk_env.env.spec.deterministic_reset
            row = EpisodeOutcome(
                index=index[i],
                seed=seeds.seed_of(index[i]) if fixed else None,
                task_id=task_id[i],
                success_once=once,
                success_at_end=at_end,
                length=length[i],
                episode_return=total[i],
                invalid=invalid,
                **marks.taken(i),
            )
            rows.append(row)
            if on_episode is not None:
                on_episode(row)
            length[i], total[i] = 0, 0.0
        if on_step is not None:
            on_step(outcome["done"].flatten())
        td = next_td
    return rows
