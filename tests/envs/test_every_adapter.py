"""Rollouts and evaluations in every kind of environment, suites included.

Letters: E envs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from adapters import ENVIRONMENTS, LIMIT, NUM_ENVS, SIMULATORS, SUITES, maker
from torch import Tensor

from pitune.envs import CheckedEnv, ChunkEnv, EpisodeSeeds, Starts
from pitune.envs.workers.process import Worker
from pitune.policies import Actor, SamplerConfig, small_policy
from pitune.rl import Evaluation, evaluate

ALL = torch.ones(NUM_ENVS, dtype=torch.bool)


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def env(request: pytest.FixtureRequest) -> Iterator[CheckedEnv]:
    env = request.param()
    yield env
    env.close()


def untrained(env: CheckedEnv) -> Actor:
    """Return an actor that moves at random, by the starting noise."""
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(50, env.spec.state_dim, generator=generator)
    action = torch.rand(50, env.spec.action_dim, generator=generator) * 2 - 1
    torch.manual_seed(0)
    sampler = SamplerConfig(execution_horizon=2, flow_steps=2)
    return Actor(small_policy(state, action, action_horizon=2, sampler=sampler))


def seeds_of(env: CheckedEnv, seed: int = 0, group_size: int = 1) -> EpisodeSeeds:
    return EpisodeSeeds(NUM_ENVS, seed, "train", group_size, Starts.of(env.spec))


def needs_seeds(env: CheckedEnv) -> None:
    if not env.spec.deterministic_reset:
        pytest.skip("a seed does not fix the start here")


def with_tasks(env: CheckedEnv, num_episodes: int) -> Evaluation:
    return evaluate(env, untrained(env), num_episodes)


# Rollouts


def test_equal_seeds_give_equal_rollouts_and_other_seeds_others(env: CheckedEnv) -> None:
    needs_seeds(env)
    rollouts = []
    for seed in (0, 0, 1):
        chunk_env = ChunkEnv(env, 2, seeds_of(env, seed))
        torch.manual_seed(0)
        rollouts.append(chunk_env.rollout(6, break_when_any_done=False))
    first, again, other = rollouts
    for key in ("state", "task_id", ("next", "state"), ("next", "reward"), ("next", "done")):
        assert torch.equal(first[key], again[key]), key
    assert not torch.equal(first["state"], other["state"])


def test_environments_begin_differently_and_groups_equally(env: CheckedEnv) -> None:
    needs_seeds(env)
    columns = slice(1, None) if env.spec.id == "mock/Script" else slice(None)  # begins with its row
    every = torch.arange(NUM_ENVS)
    seeds = seeds_of(env).next(every)
    apart = env.reset(seeds)
    together = env.reset(seeds_of(env, group_size=NUM_ENVS).next(every))
    rows = {tuple(row) for row in apart["state"][:, columns].tolist()}
    # two environments may draw the same one of a few fixed starts
    assert len(rows) == (NUM_ENVS if env.spec.num_starts is None else len(set(seeds.tolist())))
    assert len(rows) > 1
    assert (together["state"][:, columns] == together["state"][:1, columns]).all()
    assert len(set(together["task_id"].tolist())) == 1


def test_the_final_observation_is_the_last_of_its_episode(env: CheckedEnv) -> None:
    """The recorded actions are played again in the bare environment, from the same seeds."""
    needs_seeds(env)
    seeds = seeds_of(env)
    torch.manual_seed(0)
    rollout = ChunkEnv(env, 2, seeds).rollout(LIMIT // 2, break_when_any_done=False)
    obs = env.reset(seeds_of(env).next(torch.arange(NUM_ENVS)))
    active, last = ALL.clone(), obs["state"].clone()
    for step in range(LIMIT):
        action = rollout["action"][:, step // 2, step % 2]
        result = env.step(action, active)
        last[active] = result.obs["state"][active]
        active &= ~(result.terminated | result.truncated)
    assert not active.any()
    done = rollout["next", "done"].squeeze(-1)  # (E, decisions)
    first_end = done.float().argmax(1)
    assert done.any(1).all()
    recorded = rollout["next", "state"][torch.arange(NUM_ENVS), first_end]
    assert torch.equal(recorded, last)


def test_numbers_that_are_not_finite_are_caught(
    env: CheckedEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = env.env.step

    def broken(*arguments: Any, **options: Any) -> Any:
        result = step(*arguments, **options)
        result.obs["state"] = result.obs["state"].clone()
        result.obs["state"][1, -1] = torch.nan
        return result

    env.reset(seeds_of(env).next(torch.arange(NUM_ENVS)))
    monkeypatch.setattr(env.env, "step", broken)
    with pytest.raises(ValueError, match=r"state is not finite in environments \[1\]"):
        env.step((env.low + env.high).expand(NUM_ENVS, -1) / 2, ALL)


# Evaluations


def test_every_start_is_played_once_and_tasks_evenly(env: CheckedEnv) -> None:
    num_tasks = len(env.spec.tasks) if env.spec.seeded_tasks else 1
    outcome = with_tasks(env, 4 * num_tasks)
    assert [row.index for row in outcome.rows] == list(range(4 * num_tasks))
    assert outcome.num_invalid == 0
    if env.spec.deterministic_reset:
        assert len({row.seed for row in outcome.rows}) == 4 * num_tasks
    if env.spec.seeded_tasks:
        assert [row.task_id for row in outcome.rows] == [*range(num_tasks)] * 4


def test_training_deals_the_tasks_of_a_suite_evenly(env: CheckedEnv) -> None:
    if not env.spec.seeded_tasks:
        pytest.skip("no suite")
    num_tasks, seeds = len(env.spec.tasks), seeds_of(env)
    counts: Counter[int] = Counter()
    for _ in range(num_tasks):
        obs = env.reset(seeds.next(torch.arange(NUM_ENVS)))
        counts.update(obs["task_id"].tolist())
    assert set(counts.values()) == {NUM_ENVS}
    assert len(counts) == num_tasks


def test_a_suites_episode_is_that_of_its_member(env: CheckedEnv) -> None:
    if env.spec.id not in SUITES:
        pytest.skip("no suite")
    num_tasks = len(env.spec.tasks)
    task_id = num_tasks - 1
    start = 12
    seed = torch.full((NUM_ENVS,), task_id + num_tasks * start)
    single = maker(env.spec.task_names[task_id])()
    mine, alone = env.reset(seed), single.reset(torch.full((NUM_ENVS,), start))
    for _ in range(LIMIT):
        assert _same_numbers(mine["state"], alone["state"])
        action = (env.low + 0.7 * (env.high - env.low)).expand(NUM_ENVS, -1)
        first, second = env.step(action, ALL), single.step(action, ALL)
        assert torch.equal(first.reward, second.reward)
        mine, alone = first.obs, second.obs
        if (first.terminated | first.truncated).any():
            break
    single.close()


def _same_numbers(common: Tensor, own: Tensor) -> bool:
    """Return whether a suite's states are a member's, but for places that are 0."""
    if common.shape == own.shape:
        return torch.equal(common, own)
    return sorted(common[0][common[0] != 0].tolist()) == sorted(own[0][own[0] != 0].tolist())


class Killer:
    """Kills a worker process after a decision of an evaluation."""

    def __init__(self, env: CheckedEnv) -> None:
        self.env, self.killed = env, 0

    def __call__(self, done: Tensor) -> None:
        pool = self.env.env._pool  # type: ignore[attr-defined]
        worker = pool.workers[0]
        assert isinstance(worker, Worker)
        if not done[worker.rows.start] and not self.killed:
            worker._process.kill()
            worker._process.join()
            self.killed += 1


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(maker("gym/Pendulum-v1", 2, reward="dense"), id="gym/Pendulum-v1"),
        *(
            pytest.param(maker(id, 2), id=id, marks=pytest.mark.sim)
            for id in ("metaworld/[reach-v3,push-v3]", "maniskill/[PickCube-v1,PushCube-v1]")
        ),
    ],
)
def test_a_killed_worker_is_replaced_and_nothing_is_counted_twice(
    make: Callable[[], CheckedEnv], request: pytest.FixtureRequest
) -> None:
    package = SIMULATORS.get(request.node.callspec.id)
    if package:
        pytest.importorskip(package)
    env = make()
    killer = Killer(env)
    outcome = evaluate(env, untrained(env), 12, on_step=killer)
    env.close()
    assert killer.killed == 1
    assert [row.index for row in outcome.rows] == list(range(12))
    assert outcome.num_invalid in (1, 2)  # the first worker has two of the three environments
    assert outcome.num_episodes + outcome.num_invalid == 12
    if env.spec.seeded_tasks:
        assert [row.task_id for row in outcome.rows] == [0, 1] * 6
