"""`evaluate`: a list of fixed starts, each played once, nothing disturbed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pitune import envs
from pitune.envs import CheckedEnv, ChunkEnv, EpisodeSeeds, EvaluationSeeds, Starts
from pitune.envs.mock.reach import Reach, Script
from pitune.policies import (
    Actor,
    FlowSDEConfig,
    LikelihoodActor,
    SamplerConfig,
    small_policy,
)
from pitune.rl import EpisodeOutcome, Evaluation, evaluate
from pitune.rl.evaluation.chosen_episodes import ChosenEpisodes
from pitune.rl.evaluation.episode_noise import EpisodeNoise
from pitune.rl.evaluation.outcome import text_of
from pitune.rl.evaluation.played_once import check_played_once


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
def test_every_environment_plays_its_share(quota: int, script_actor: LikelihoodActor) -> None:
    result = evaluate(biased_script(), script_actor, 6 * quota)
    assert result.num_episodes == 6 * quota
    # by place in the list, which is dealt to the environments in turn
    assert result.success == [True, False] * 3 * quota
    assert result.length == [2, 12] * 3 * quota
    # The reward is the time: 1 + 2, and 1 + ... + 12.
    assert result.episode_return == [3, 78] * 3 * quota
    assert result.success_rate == 0.5
    assert [row.index for row in result.rows] == list(range(6 * quota))


class Played(Reach):
    """Counts the executed steps."""

    num_steps = 0

    def step(self, action: Tensor, active: Tensor, pictures: Tensor | None = None) -> Any:
        self.num_steps += int(active.sum())
        return super().step(action, active, pictures)


@pytest.mark.parametrize("num_episodes", [1, 5, 23])
def test_outcomes_do_not_depend_on_the_number_of_environments(
    num_episodes: int, actor: LikelihoodActor
) -> None:
    results = []
    for num_envs in (1, 4, 7, 80):
        env = Played(num_envs, reward="dense", max_episode_steps=9)
        result = evaluate(CheckedEnv(env), actor, num_episodes)
        # nothing is played that is not counted
        assert env.num_steps == sum(result.length)
        assert [row.index for row in result.rows] == list(range(num_episodes))
        results.append(result)
    for result in results[1:]:
        assert result.success == results[0].success
        assert result.length == results[0].length
        assert result.episode_return == pytest.approx(results[0].episode_return, abs=1e-4)
        assert [row.seed for row in result.rows] == [row.seed for row in results[0].rows]


def test_a_longer_list_begins_with_the_shorter_one(actor: LikelihoodActor) -> None:
    env = CheckedEnv(Reach(3, max_episode_steps=5))
    short, long = evaluate(env, actor, 4).rows, evaluate(env, actor, 11).rows
    assert [row.seed for row in short] == [row.seed for row in long[:4]]
    assert len({row.seed for row in long}) == 11


def test_starting_noise_differs_between_episodes_and_decisions(actor: LikelihoodActor) -> None:
    seeds = EvaluationSeeds(2, 3, seed=0)
    seeds.next(torch.arange(2))
    noise = EpisodeNoise(seeds, actor.policy.chunk_shape)
    draws = [noise.draw(), noise.draw()]
    seeds.next(torch.tensor([0]))
    draws.append(noise.draw())
    rows = torch.cat(draws).flatten(1)
    assert len(rows.unique(dim=0)) == 6
    # the second environment goes on, the first begins as any environment with this episode
    alone = EvaluationSeeds(3, 3, seed=0)
    alone.next(torch.arange(3))
    assert torch.equal(draws[2][0], EpisodeNoise(alone, actor.policy.chunk_shape).draw()[2])


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


class Breaking(Script):
    """The episodes of the first environment break down after a step."""

    def step(self, action: Tensor, active: Tensor) -> Any:
        result = super().step(action, active)
        broken = (self.state[:, 2] == 1) & active & torch.tensor([True, False, False])
        result.info["invalid"] = broken
        return result._replace(truncated=result.truncated | broken)


def breaking() -> CheckedEnv:
    return CheckedEnv(Breaking(3, lengths=(4, 4, 4), ends=("success", "success", "time")))


def test_episodes_in_a_broken_simulator_are_not_counted(script_actor: LikelihoodActor) -> None:
    result = evaluate(breaking(), script_actor, 6)
    assert result.num_invalid == 2
    assert result.success == [True, False, True, False]
    assert result.success_rate == 0.5
    assert result.summary()["invalid"] == 2
    assert [row.invalid for row in result.rows] == [True, False, False] * 2


def test_the_callback_receives_the_end_of_every_episode_once(script_actor: LikelihoodActor) -> None:
    heard: list[Tensor] = []
    evaluate(biased_script(), script_actor, 12, on_step=heard.append)
    assert torch.stack(heard).sum(0).tolist() == [2] * 6


# Definitions of success


class Goal(Script):
    """Solved at given steps. Success ends no episode."""

    solved: tuple[tuple[int, ...], ...] = ((3,), (1, 6), (6,), ())

    def __init__(self) -> None:
        super().__init__(4, lengths=(6,) * 4, ends=("time",) * 4)

    def step(self, action: Tensor, active: Tensor) -> Any:
        result = super().step(action, active)
        now = [int(t) in steps for t, steps in zip(self.state[:, 2], self.solved, strict=True)]
        result.info["success"] = torch.tensor(now) & active
        return result


ONCE, AT_END = [True, True, True, False], [False, True, True, False]


@pytest.mark.parametrize("executed", [1, 2, 3, 4])
def test_success_is_counted_once_or_at_the_end_whatever_the_chunks(executed: int) -> None:
    states, actions = torch.randn(9, 3), torch.randn(9, 1)
    sampler = SamplerConfig(flow_steps=2, execution_horizon=executed)
    actor = Actor(small_policy(states, actions, action_horizon=4, sampler=sampler))
    result = evaluate(CheckedEnv(Goal()), actor, 8)
    assert result.success_rule == "once"
    assert result.success == ONCE * 2
    assert (result.rate("once"), result.rate("at_end")) == (0.75, 0.5)
    by_end = [
        evaluate(CheckedEnv(Goal()), actor, 8, success="at_end"),
        evaluate(CheckedEnv(Goal(), success="at_end"), actor, 8),
    ]
    for other in by_end:
        assert other.success_rule == "at_end"
        assert other.success == AT_END * 2
        assert other.rows == result.rows


def test_without_success_there_is_no_rate(script_actor: LikelihoodActor) -> None:
    script = Script(2, lengths=(3, 5), ends=("time", "time"))
    script.spec = replace(script.spec, success_signal=False)
    result = evaluate(CheckedEnv(script), script_actor, 4)
    assert (result.success_rule, result.success, result.success_rate) == (None, [], None)
    assert (result.interval, result.lower_bound_all, result.by_task()) == (None, None, {})
    assert result.rows[0].success_once is None
    assert str(result) == "no success in info: return only, mean 10.5 (4 episodes)"
    assert json.loads(json.dumps(result.summary(), allow_nan=False))["success_rate"] is None


def test_success_that_is_first_reported_in_the_last_step_counts(
    script_actor: LikelihoodActor,
) -> None:
    class Late(Script):
        def step(self, action: Tensor, active: Tensor) -> Any:
            result = super().step(action, active)
            if result.info["success"].any():
                self.spec = replace(self.spec, success_signal=True)
            return result

    script = Late(2, lengths=(3, 5), ends=("time", "success"))
    script.spec = replace(script.spec, success_signal=False)
    assert evaluate(CheckedEnv(script), script_actor, 2).success == [False, True]


# The report


def test_numbers_of_the_summary_by_hand() -> None:
    columns = [(True, 0, 3, 1.0), (False, 0, 20, 0.0), (True, 1, 5, 1.0), (True, 1, 4, 1.0)]
    rows = [
        EpisodeOutcome(
            index=i,
            seed=i,
            task_id=task,
            success_once=success,
            success_at_end=success and i > 0,
            length=length,
            episode_return=total,
        )
        for i, (success, task, length, total) in enumerate(columns)
    ]
    rows.append(replace(rows[0], index=4, invalid=True))
    result = Evaluation(rows=tuple(rows))
    summary = result.summary()
    assert (summary["successes"], summary["episodes"], summary["invalid"]) == (3, 4, 1)
    assert (summary["success_rate"], summary["mean_length"]) == (0.75, 8.0)
    assert (summary["success_once"], summary["success_at_end"]) == (0.75, 0.5)
    assert summary["mean_return"] == 0.75
    assert summary["by_task"] == {"0": (1, 2), "1": (2, 2)}
    # Wilson for 3 of 4: center (3 + 1.92) / 7.84, half width 1.96 / 7.84 * sqrt(0.75 + 0.96).
    assert summary["wilson_low"] == pytest.approx(0.6276 - 0.3269, abs=2e-3)
    assert summary["wilson_high"] == pytest.approx(0.6276 + 0.3269, abs=2e-3)
    # and for 3 of 5, as if the broken one had failed
    assert summary["lower_bound_all"] == pytest.approx(0.2307, abs=2e-3)
    assert str(result) == "75.0 % [30.1, 95.4] (3/4; 1 broken)"
    assert len(summary["rows"]) == 5
    assert summary["rows"][1] == {
        "index": 1,
        "seed": 1,
        "task_id": 0,
        "success_once": False,
        "success_at_end": False,
        "length": 20,
        "episode_return": 0.0,
        "invalid": False,
    }
    assert json.loads(json.dumps(summary, allow_nan=False))["rows"] == summary["rows"]


def test_no_episode_is_no_rate() -> None:
    result = Evaluation.of(success=[], num_broken=4)
    assert (result.success_rate, result.interval, result.mean_return) == (None, None, None)
    assert result.lower_bound_all == 0.0
    assert str(result) == "no success rate (0/0; 4 broken)"
    json.dumps(result.summary(), allow_nan=False)


@pytest.mark.parametrize(("num_broken", "warns"), [(0, False), (2, False), (3, True), (46, True)])
def test_many_broken_episodes_are_warned_of_and_rank_low(num_broken: int, warns: bool) -> None:
    num = 50 - num_broken
    result = Evaluation.of(success=[True] * num, num_broken=num_broken)
    assert result.success_rate == 1.0
    warning = result.warning()
    assert (warning is not None) == warns
    if warning is not None:
        bound = f"success is at least {result.lower_bound_all:.1%}"
        assert f"{num_broken} of 50 episodes broke down" in warning
        assert bound in warning
    # a policy with the same successes, and failures in place of the broken ones
    failing = Evaluation.of(success=[True] * num + [False] * num_broken)
    assert result.lower_bound_all == failing.lower_bound_all
    assert str(result).endswith(f"({num}/{num}; {num_broken} broken)" if num_broken else "(50/50)")


@pytest.mark.parametrize("version", ["present", "0.2"])
def test_summaries_of_older_versions_are_printed_too(version: str) -> None:
    summary = Evaluation.of(success=[True, False]).summary()
    if version == "0.2":
        new = ("rows", "success_rule", "lower_bound_all", "success_once", "success_at_end")
        summary = {key: value for key, value in summary.items() if key not in new}
    assert text_of(summary) == "50.0 % [9.5, 90.5] (1/2)"
    none = {**summary, "success_rate": math.nan, "episodes": 0, "invalid": 3}
    assert text_of(none) == "no success rate (0/0; 3 broken)"


# Starts


def test_two_policies_begin_alike(actor: LikelihoodActor, tiny_policy: Callable) -> None:
    other = LikelihoodActor(tiny_policy(seed=7), FlowSDEConfig())
    records = [Recorder(3, max_episode_steps=5) for _ in range(2)]
    for env, who in zip(records, (actor, other), strict=True):
        evaluate(CheckedEnv(env), who, 9, seed=4)
    assert records[0].seeds == records[1].seeds
    for i in range(3):
        for a, b in zip(records[0].starts[i], records[1].starts[i], strict=True):
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


@pytest.mark.parametrize("num_episodes", [0, -3])
def test_a_list_without_episodes_is_refused(num_episodes: int, actor: LikelihoodActor) -> None:
    with pytest.raises(ValueError, match=f"num_episodes={num_episodes} must be at least 1"):
        evaluate(CheckedEnv(Reach(3)), actor, num_episodes)


def test_an_unknown_definition_of_success_is_refused(actor: LikelihoodActor) -> None:
    with pytest.raises(ValueError, match=r"success='last' must be 'once' .* or 'at_end'"):
        evaluate(CheckedEnv(Reach(3)), actor, 3, success="last")  # type: ignore[arg-type]


def test_a_policy_of_another_robot_is_refused(actor: LikelihoodActor) -> None:
    with pytest.raises(ValueError, match="checkpoint's state has 4 dimensions, mock/Script has 3"):
        evaluate(biased_script(), actor, 6)
    env = CheckedEnv(Reach(3))
    env.spec = replace(env.spec, action_low=(-1.0,), action_high=(1.0,))
    with pytest.raises(
        ValueError, match="checkpoint's action has 2 dimensions, mock/Reach has 1; "
    ):
        evaluate(env, actor, 3)


def test_exploration_in_an_evaluation_follows_from_its_seed(actor: LikelihoodActor) -> None:
    config = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, reward="dense")
    found = []
    for number in range(2):
        torch.manual_seed(number)  # the caller's random numbers
        found.append(evaluate(envs.make(config), actor, 4, stochastic=True))
    assert found[0] == found[1]


# Parts of a list


def test_parts_of_a_list_have_the_outcomes_of_the_whole_to_the_last_bit(
    actor: LikelihoodActor,
) -> None:
    env = CheckedEnv(Reach(4, reward="dense", max_episode_steps=9))
    whole = evaluate(env, actor, 19)
    ended: list[EpisodeOutcome] = []
    for part in ([0, 1, 2], [18, 3, 7, 11, 15], [4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 17]):
        result = evaluate(env, actor, 19, episodes=part, on_episode=ended.append)
        assert [row.index for row in result.rows] == sorted(part)
    assert tuple(sorted(ended, key=lambda row: row.index)) == whole.rows


def test_another_number_of_environments_rounds_otherwise(tiny_policy: Callable) -> None:
    """Negative control: the same rows of a batch are needed for the same last bits."""
    actor = Actor(tiny_policy(horizon=8))
    returns = []
    for num_envs in (1, 2, 3, 5, 7, 8, 16, 64):
        env = CheckedEnv(Reach(num_envs, reward="dense", max_episode_steps=20))
        returns.append([row.episode_return for row in evaluate(env, actor, 19).rows])
    assert any(values != returns[0] for values in returns)


@pytest.mark.parametrize("episodes", [[4], [-1], [0, 0]])
def test_a_part_outside_of_the_list_is_refused(episodes: list[int], actor: LikelihoodActor) -> None:
    with pytest.raises(ValueError, match="different places in a list of 4, from 0 to 3"):
        evaluate(CheckedEnv(Reach(2)), actor, 4, episodes=episodes)


def test_no_part_is_no_episode(actor: LikelihoodActor) -> None:
    assert evaluate(CheckedEnv(Reach(2)), actor, 4, episodes=[]).rows == ()


def test_an_episode_that_was_not_played_once_is_an_error() -> None:
    seeds = EvaluationSeeds(2, 3, seed=0)
    rows = [
        EpisodeOutcome(
            index=index,
            seed=seeds.seed_of(index),
            task_id=0,
            success_once=True,
            success_at_end=True,
            length=1,
        )
        for index in range(3)
    ]
    check_played_once(rows, range(3), seeds)
    for wrong, fault in (
        ([*rows, rows[1]], "episode 1: 2 times"),
        (rows[:2], "episode 2: 0 times"),
        ([*rows, replace(rows[0], index=7)], "episode 7: 1 times"),
        ([*rows[:2], replace(rows[2], seed=5)], "episode 2: seed 5 instead of"),
    ):
        with pytest.raises(RuntimeError, match=f"each of its 3 episodes once: {fault}"):
            check_played_once(wrong, range(3), seeds)


def test_the_places_of_a_part_are_those_of_the_whole_list() -> None:
    whole = EvaluationSeeds(3, 8, seed=0)
    part = ChosenEpisodes(EvaluationSeeds(3, 8, seed=0), [7, 4, 3])
    assert part.num_episodes.tolist() == [1, 2, 0]
    assert part.index.tolist() == [-1, -1, -1]
    drawn = part.next(torch.tensor([0, 1]))
    assert drawn.tolist() == [whole.seed_of(3), whole.seed_of(4)]
    assert part.next(torch.tensor([1])).tolist() == [whole.seed_of(7)]
    assert part.index.tolist() == [3, 7, -1]
    assert part.noise_seed_of(7) == whole.noise_seed_of(7)


def test_another_task_than_that_of_the_seed_is_an_error() -> None:
    starts = Starts(num_tasks=3, num_starts=10, seeded_tasks=True)
    seeds = EvaluationSeeds(2, 12, seed=0, starts=starts)
    rows = [
        EpisodeOutcome(
            index=index,
            seed=seeds.seed_of(index),
            task_id=index % 3,
            success_once=True,
            success_at_end=True,
            length=1,
        )
        for index in range(12)
    ]
    check_played_once(rows, range(12), seeds)
    rows[4] = replace(rows[4], task_id=0)
    with pytest.raises(RuntimeError, match="episode 4: task 0 instead of 1"):
        check_played_once(rows, range(12), seeds)


def test_a_start_that_occurs_twice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = EvaluationSeeds(2, 3, seed=0, starts=Starts(num_tasks=1, num_starts=10))
    monkeypatch.setattr(EvaluationSeeds, "seed_of", lambda self, index: 4 * (index > 0))
    rows = [
        EpisodeOutcome(
            index=index,
            seed=seeds.seed_of(index),
            task_id=0,
            success_once=True,
            success_at_end=True,
            length=1,
        )
        for index in range(3)
    ]
    with pytest.raises(RuntimeError, match="seed 4: 2 times"):
        check_played_once(rows, range(3), seeds)
