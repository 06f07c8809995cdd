"""`evaluate`: equal episodes everywhere, fixed starts, nothing disturbed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pitune import envs
from pitune.envs import CheckedEnv, ChunkEnv, EpisodeSeeds
from pitune.envs.mock.reach import Reach, Script
from pitune.policies import FlowSDEConfig, LikelihoodActor
from pitune.rl import Evaluation, evaluate


class Recorder(Reach):
    """Remembers the seeds and the starts of all its episodes."""

    def __init__(self, num_envs: int, **options: Any) -> None:
        super().__init__(num_envs, **options)
        self.seeds: list[list[int]] = [[] for _ in range(num_envs)]
        self.starts: list[list[Tensor]] = [[] for _ in range(num_envs)]

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Any:
        obs = super().reset(seed, env_idx)
        indices = range(self.spec.num_envs) if env_idx is None else env_idx.tolist()
        for index, number in zip(indices, seed.tolist(), strict=True):
            self.seeds[index].append(number)
            self.starts[index].append(obs["state"][index])
        return obs


@pytest.fixture
def actor(tiny_policy: Callable) -> LikelihoodActor:
    """Return an actor for `mock/Reach`."""
    return LikelihoodActor(tiny_policy(), FlowSDEConfig())


@pytest.fixture
def script_actor(tiny_policy: Callable) -> LikelihoodActor:
    return LikelihoodActor(tiny_policy(3, 1), FlowSDEConfig())


def biased_script() -> CheckedEnv:
    """Half of the environments succeed after 2 steps, half fail after 12."""
    lengths, ends = (2, 12) * 3, ("success", "time") * 3
    return CheckedEnv(Script(6, lengths=lengths, ends=ends))


# Counting


@pytest.mark.parametrize("quota", [1, 2, 5])
def test_every_environment_plays_its_quota(quota: int, script_actor: LikelihoodActor) -> None:
    result = evaluate(biased_script(), script_actor, 6 * quota)
    assert result.num_episodes == 6 * quota
    # By environment, then by episode.
    assert result.success == ([True] * quota + [False] * quota) * 3
    assert result.length == ([2] * quota + [12] * quota) * 3
    # The reward is the time: 1 + 2, and 1 + ... + 12.
    assert result.episode_return == ([3] * quota + [78] * quota) * 3
    assert result.success_rate == 0.5


def test_the_first_to_finish_would_be_biased_towards_short_episodes(
    script_actor: LikelihoodActor,
) -> None:
    """Negative control of the test above: successes are short, so they finish first."""
    env = biased_script()
    preprocess = script_actor.policy.observation_preprocessor(env.spec.tasks)
    chunk_env = ChunkEnv(env, 2, EpisodeSeeds(6, 0, "test"), preprocess=preprocess)
    finished: list[bool] = []
    td = chunk_env.reset()
    while len(finished) < 24:
        td, next_td = chunk_env.step_and_maybe_reset(script_actor(td))
        done = td["next", "done"]
        finished += td["next", "success"][done].tolist()
        td = next_td
    # Six rounds of the short ones, 18 episodes, before the long ones finish their first.
    assert sum(finished[:24]) / 24 > 0.8


def test_successes_are_counted_by_task(tiny_policy: Callable) -> None:
    actor = LikelihoodActor(tiny_policy(6, 2), FlowSDEConfig())
    env = CheckedEnv(Reach(4, num_tasks=2, max_episode_steps=2))
    result = evaluate(env, actor, 20)
    assert set(result.task_id) == {0, 1}
    counts = result.by_task()
    for task, (successes, episodes) in counts.items():
        assert episodes == result.task_id.count(task)
        of_task = [s for s, t in zip(result.success, result.task_id, strict=True) if t == task]
        assert successes == sum(of_task)
    assert sum(episodes for _, episodes in counts.values()) == 20


def test_episodes_in_a_broken_simulator_are_not_counted(script_actor: LikelihoodActor) -> None:
    class Breaking(Script):
        def step(self, action: Tensor, active: Tensor) -> Any:
            result = super().step(action, active)
            broken = (self.state[:, 2] == 1) & active & torch.tensor([True, False, False])
            result.info["invalid"] = broken
            return result._replace(truncated=result.truncated | broken)

    env = CheckedEnv(Breaking(3, lengths=(4, 4, 4), ends=("success", "success", "time")))
    result = evaluate(env, script_actor, 6)
    assert result.num_invalid == 2
    assert result.success == [True, True, False, False]
    assert result.success_rate == 0.5
    assert result.summary()["invalid"] == 2


def test_the_callback_receives_the_end_of_every_episode(script_actor: LikelihoodActor) -> None:
    heard: list[Tensor] = []
    evaluate(biased_script(), script_actor, 6, on_step=heard.append)
    assert torch.stack(heard).sum(0).tolist() == [6, 1] * 3


def test_numbers_of_the_summary_by_hand() -> None:
    result = Evaluation(
        success=[True, False, True, True],
        task_id=[0, 0, 1, 1],
        length=[3, 20, 5, 4],
        episode_return=[1.0, 0.0, 1.0, 1.0],
        num_invalid=1,
    )
    summary = result.summary()
    assert (summary["successes"], summary["episodes"], summary["invalid"]) == (3, 4, 1)
    assert (summary["success_rate"], summary["mean_length"]) == (0.75, 8.0)
    assert summary["mean_return"] == 0.75
    assert summary["by_task"] == {"0": (1, 2), "1": (2, 2)}
    # Wilson for 3 of 4: center (3 + 1.92) / 7.84, half width 1.96 / 7.84 * sqrt(0.75 + 0.96).
    assert summary["wilson_low"] == pytest.approx(0.6276 - 0.3269, abs=2e-3)
    assert summary["wilson_high"] == pytest.approx(0.6276 + 0.3269, abs=2e-3)
    assert str(result) == "75.0 % [30.1, 95.4] (3/4)"


def test_no_episode_is_no_rate() -> None:
    result = Evaluation(success=[], task_id=[], length=[], episode_return=[], num_invalid=4)
    assert math.isnan(result.success_rate)
    assert all(math.isnan(limit) for limit in result.interval)


# Starts


def test_two_policies_begin_alike(actor: LikelihoodActor, tiny_policy: Callable) -> None:
    other = LikelihoodActor(tiny_policy(seed=7), FlowSDEConfig())
    records = [Recorder(3, max_episode_steps=5) for _ in range(2)]
    for env, who in zip(records, (actor, other), strict=True):
        evaluate(CheckedEnv(env), who, 9, seed=4)
    for i in range(3):
        assert records[0].seeds[i][:3] == records[1].seeds[i][:3]
        for a, b in zip(records[0].starts[i][:3], records[1].starts[i][:3], strict=True):
            assert torch.equal(a, b)


def test_starts_of_different_splits_are_disjoint(actor: LikelihoodActor) -> None:
    seen: dict[str, set[int]] = {}
    for split in envs.seeding.SPLITS:
        env = Recorder(3, max_episode_steps=5)
        evaluate(CheckedEnv(env), actor, 12, split=split)
        seen[split] = {seed for seeds in env.seeds for seed in seeds}
        assert len(seen[split]) >= 12
    for first in seen:
        for second in seen:
            assert first == second or not seen[first] & seen[second]


def test_another_seed_gives_other_starts(actor: LikelihoodActor) -> None:
    first, second = Recorder(2, max_episode_steps=5), Recorder(2, max_episode_steps=5)
    evaluate(CheckedEnv(first), actor, 4, seed=0)
    evaluate(CheckedEnv(second), actor, 4, seed=1)
    assert not set(first.seeds[0]) & set(second.seeds[0])


def test_what_was_evaluated_before_does_not_matter(actor: LikelihoodActor) -> None:
    env = CheckedEnv(Reach(3, max_episode_steps=5))
    first = evaluate(env, actor, 6)
    evaluate(env, actor, 9, split="validation")
    assert evaluate(env, actor, 6) == first


# The policy


def test_random_numbers_of_the_caller_go_on_as_if_nothing_had_been(actor: LikelihoodActor) -> None:
    env = CheckedEnv(Reach(2, max_episode_steps=5))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    evaluate(env, actor, 4, seed=3)
    evaluate(env, actor, 4, stochastic=True)
    assert torch.equal(torch.rand(4), expected)


def test_the_policy_acts_as_deployed_unless_asked_to_explore(tiny_policy: Callable) -> None:
    """An actor whose noise is huge when it explores scores alike as deployed only."""
    quiet = LikelihoodActor(tiny_policy(), FlowSDEConfig(noise_level=0.01))
    loud = LikelihoodActor(quiet.policy, FlowSDEConfig(noise_level=3.0))
    env = Recorder(2, max_episode_steps=5)
    dense = CheckedEnv(env)
    env.dense = True
    assert evaluate(dense, quiet, 4) == evaluate(dense, loud, 4)
    explored = [evaluate(dense, who, 4, stochastic=True) for who in (quiet, loud)]
    assert explored[0].episode_return != explored[1].episode_return


def test_nothing_is_learned_by_looking(actor: LikelihoodActor) -> None:
    before = {key: value.clone() for key, value in actor.state_dict().items()}
    evaluate(CheckedEnv(Reach(2, max_episode_steps=3)), actor, 2)
    assert all(torch.equal(before[key], value) for key, value in actor.state_dict().items())
    assert all(parameter.grad is None for parameter in actor.parameters())


# What is refused


@pytest.mark.parametrize("num_episodes", [0, 5, -3])
def test_episodes_must_divide_among_the_environments(
    num_episodes: int, actor: LikelihoodActor
) -> None:
    with pytest.raises(
        ValueError, match=f"num_episodes={num_episodes} must be a multiple of 3 env"
    ):
        evaluate(CheckedEnv(Reach(3)), actor, num_episodes)


def test_a_policy_of_another_robot_is_refused(actor: LikelihoodActor) -> None:
    with pytest.raises(ValueError, match="checkpoint's state has 4 dimensions, mock/Script has 3"):
        evaluate(biased_script(), actor, 6)
    env = CheckedEnv(Reach(3))
    env.spec = replace(env.spec, action_low=(-1.0,), action_high=(1.0,))
    with pytest.raises(
        ValueError, match="checkpoint's action has 2 dimensions, mock/Reach has 1; "
    ):
        evaluate(env, actor, 3)
