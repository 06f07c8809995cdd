"""The parts of an evaluation in simulators with processes, cameras and state of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pitune import envs, policies, rl
from pitune.rl import EpisodeOutcome


def actor_for(spec: envs.EnvSpec) -> policies.Actor:
    torch.manual_seed(0)
    states, actions = torch.randn(50, spec.state_dim), 2 * torch.rand(50, spec.action_dim) - 1
    sampler = policies.SamplerConfig(flow_steps=2, execution_horizon=4)
    return policies.Actor(policies.small_policy(states, actions, action_horizon=8, sampler=sampler))


def parts_and_whole(
    env_id: str, num_workers: int
) -> tuple[tuple[EpisodeOutcome, ...], tuple[EpisodeOutcome, ...]]:
    """Return the rows of three processes' worth of parts, and those of the whole list."""
    config = envs.config_for(
        env_id, num_envs=4, num_workers=num_workers, reward="dense", max_episode_steps=25
    )
    env = envs.make(config)
    actor = actor_for(env.spec)
    whole = rl.evaluate(env, actor, 14).rows
    env.close()
    rows: list[EpisodeOutcome] = []
    for indices in ([13, 2, 7], [0, 1, 3, 4, 12], [5, 6, 8, 9, 10, 11]):
        part = envs.make(replace(config))
        rows += rl.evaluate(part, actor, 14, episodes=indices).rows
        part.close()
    return tuple(sorted(rows, key=lambda row: row.index)), whole


@pytest.mark.parametrize("num_workers", [0, 2])
def test_parts_on_real_physics_equal_the_whole_to_the_last_bit(num_workers: int) -> None:
    parts, whole = parts_and_whole("mujoco/PickCube", num_workers)
    assert parts == whole


def test_parts_of_a_suite_equal_the_whole_to_the_last_bit() -> None:
    parts, whole = parts_and_whole("mujoco/[PickCube,PushCube,StackCube]", 2)
    assert parts == whole
    assert [row.task_id for row in whole] == [index % 3 for index in range(14)]


@pytest.mark.sim
@pytest.mark.parametrize(
    "env_id",
    ["metaworld/reach-v3", "metaworld/[reach-v3,push-v3]", "maniskill/PickCube-v1"],
)
def test_parts_in_other_simulators_equal_the_whole_to_the_last_bit(env_id: str) -> None:
    parts, whole = parts_and_whole(env_id, 2)
    assert parts == whole


def test_each_start_of_a_suite_is_played_once_over_all_shares(tmp_path: Path) -> None:
    """Two of three shares, then the rest: the tasks are dealt evenly, and no start repeats."""
    from pitune.experiments.evaluate import EvaluateConfig, evaluate

    env = envs.EnvConfig(
        id="mujoco/[PickCube,PushCube]", num_envs=4, num_workers=0, max_episode_steps=8
    )
    spec = envs.make(env).spec
    policies.save(actor_for(spec).policy, tmp_path / "policy")
    config = EvaluateConfig(
        checkpoint=tmp_path / "policy",
        env=env,
        episodes=18,
        folder=tmp_path / "evaluation",
        device="cpu",
    )
    for shard in ("1/3", "3/3"):
        evaluate(replace(config, shard=shard))
    result = evaluate(config)
    assert len({row.seed for row in result.rows}) == 18
    assert [row.task_id for row in result.rows] == [index % 2 for index in range(18)]
