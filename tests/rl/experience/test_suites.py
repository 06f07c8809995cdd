"""Suites in rollouts, demonstrations, critics and metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from pitune import envs, policies, rl
from pitune.envs import CheckedEnv, EpisodeSeeds, Starts
from pitune.envs.mock.reach import Reach, Script
from pitune.envs.suite.env import SuiteEnv
from pitune.policies import Actor, SamplerConfig, small_policy
from pitune.policies.preprocessing.own_tokenizer import make_tokenizer
from pitune.rl.actor_critic.critic_input import critic_input
from pitune.rl.experience.fit import _warn_of_tasks
from pitune.rl.experience.task_success import task_success
from pitune.rl.policy_gradient.value import ValueCritic

WORDS = ("move the hand to the goal", "pick up the puck and hold it at the goal")


class Failing(Reach):
    """Its expert stands still in every start whose seed is even."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.even = torch.zeros(num_envs, dtype=torch.bool)

    def reset(self, seed: torch.Tensor, env_idx: torch.Tensor | None = None) -> Any:
        self.even[slice(None) if env_idx is None else env_idx] = seed % 8 < 4
        return super().reset(seed, env_idx)

    def expert(self) -> Any:
        good, bad = super().expert(), self.even

        class Expert:
            def act(self) -> torch.Tensor:
                return good.act() * ~bad[:, None]

        return Expert()


class Blind(Reach):
    def expert(self) -> Any:
        raise ValueError("no expert")


def suite(*members: Any, words: tuple[str, ...] = WORDS) -> CheckedEnv:
    env = SuiteEnv("mock/suite", members)
    names = tuple(f"mock/{number}" for number in range(len(members)))
    env.spec = replace(env.spec, tasks=words[: len(members)], task_names=names)
    return CheckedEnv(env)


@pytest.fixture
def words_policy(tmp_path: Path) -> Callable[..., policies.FlowPolicy]:
    def make(cameras: tuple[str, ...] = ()) -> policies.FlowPolicy:
        torch.manual_seed(0)
        tokenizer = make_tokenizer(
            WORDS, tmp_path / "tokenizer.json", max_vocabulary=512, max_tokens=32
        )
        return small_policy(
            torch.rand(50, 4),
            torch.rand(50, 2) * 2 - 1,
            action_horizon=2,
            sampler=SamplerConfig(execution_horizon=2, flow_steps=2),
            tokenizer=tokenizer,
            cameras=cameras,
            image_size=16,
        )

    return make


# Demonstrations


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_each_task_is_demonstrated_equally_often_from_starts_of_its_own(num_envs: int) -> None:
    found = rl.collect_demonstrations(suite(Reach(num_envs), Reach(num_envs)), 5, seed=0)
    assert found.num_episodes == 10
    assert found.tasks == WORDS
    assert found.expert_success == ((5, 5), (5, 5))
    first = torch.searchsorted(found.episode, torch.arange(10))
    assert found.obs["task_id"][first].tolist() == [0] * 5 + [1] * 5
    starts = Starts(env_id="x", num_tasks=2, seeded_tasks=True)
    env = suite(Reach(1), Reach(1))
    for episode in range(10):
        task, number = divmod(episode, 5)
        seed = starts.seed_of(0, "demonstrations", task, number)
        state = env.reset(torch.tensor([seed]))["state"]
        assert torch.equal(found.obs["state"][first[episode]], state[0])


def test_failures_are_left_out_and_counted() -> None:
    found = rl.collect_demonstrations(suite(Reach(4), Failing(4)), 6, seed=0)
    assert found.num_episodes == 12
    assert found.expert_success[0] == (6, 6)
    successes, played = found.expert_success[1]
    assert successes == 6
    assert played > 6
    again = rl.collect_demonstrations(suite(Reach(7), Failing(7)), 6, seed=0)
    assert torch.equal(found.action, again.action)
    assert found.expert_success == again.expert_success


def test_the_experts_success_is_stored(tmp_path: Path) -> None:
    found = rl.collect_demonstrations(suite(Reach(4), Failing(4)), 3, seed=0)
    found.save(tmp_path / "demonstrations.safetensors")
    loaded = rl.Demonstrations.load(tmp_path / "demonstrations.safetensors")
    assert loaded.expert_success == found.expert_success
    single = rl.collect_demonstrations(envs.make(envs.EnvConfig(id="mock/Reach", num_envs=4)), 6, 0)
    assert single.expert_success == ((8, 8),)


def test_a_task_without_an_expert_is_refused_or_skipped() -> None:
    env = suite(Reach(3), Blind(3))
    message = r"\['mock/1'\] of mock/suite have no expert to demonstrate them; leave them out .*"
    with pytest.raises(ValueError, match=message + r"\(--skip-tasks-without-expert\)"):
        rl.collect_demonstrations(env, 2, seed=0)
    found = rl.collect_demonstrations(env, 2, seed=0, skip_tasks_without_expert=True)
    assert found.expert_success == ((2, 2), (0, 0))
    assert set(found.obs["task_id"].tolist()) == {0}
    script = Script(3, lengths=(2,) * 3, ends=("success",) * 3)
    with pytest.raises(ValueError, match=r"\['mock/0'\] of mock/suite have no expert"):
        rl.collect_demonstrations(suite(script), 1, 0, skip_tasks_without_expert=True)


def test_an_expert_that_hardly_succeeds_is_named() -> None:
    class Never(Failing):
        def reset(self, seed: torch.Tensor, env_idx: torch.Tensor | None = None) -> Any:
            obs = super().reset(seed, env_idx)
            self.even[:] = True
            return obs

    message = (
        r"the expert of mock/1 succeeded in \d of \d+ episodes; 2 are needed, and at most 40 may "
    )
    with pytest.raises(RuntimeError, match=message):
        rl.collect_demonstrations(suite(Reach(4), Never(4)), 2, seed=0)


def test_no_more_demonstrations_than_fixed_starts_are_collected() -> None:
    env = suite(Reach(4), Reach(4))
    env.spec = replace(env.spec, num_starts=20)
    assert rl.collect_demonstrations(env, 2, seed=0).num_episodes == 4
    with pytest.raises(RuntimeError, match="expert of mock/0 succeeded in 2 of 2 episodes; 3 are"):
        rl.collect_demonstrations(env, 3, seed=0)


# Training


ALGORITHMS = {
    "ppo": rl.PPOConfig(),
    "grpo": rl.GRPOConfig(group_size=2),
    "fpo": rl.FPOConfig(),
    "dsrl": rl.DSRLConfig(
        off_policy=rl.OffPolicyConfig(warmup_decisions=10, warmup_rounds=1, minibatch_size=8)
    ),
    "wsrl": rl.WSRLConfig(
        learner=rl.ActorCriticConfig(
            off_policy=rl.OffPolicyConfig(warmup_decisions=10, warmup_rounds=1, minibatch_size=8)
        )
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_learns_from_a_suite(name: str, words_policy: Callable) -> None:
    env = suite(Reach(4, max_episode_steps=4), Reach(4, max_episode_steps=4))
    algorithm = rl.make(ALGORITHMS[name], words_policy())
    rollouts = rl.Rollouts(env, algorithm, num_chunks=4, seed=0)
    for _ in range(2):
        rollout = rollouts.collect()
        algorithm.update(rollout)
    tasks = rollout["task_id"]
    expected = [0, 0, 1, 1] if name == "grpo" else [0, 1, 0, 1]
    assert (tasks == torch.tensor(expected)[:, None]).all()
    assert set(rl.rollout_metrics(rollout)) >= {"train/task_success/0", "train/task_success/1"}


def test_a_resumed_run_plays_the_same_tasks(words_policy: Callable) -> None:
    """With three environments and two tasks, the tasks are exchanged at resets."""
    rollouts = []
    for _ in range(2):
        env = suite(Reach(3, max_episode_steps=4), Reach(3, max_episode_steps=4))
        collected = rl.Rollouts(env, rl.make(rl.PPOConfig(), words_policy()), 6, seed=0)
        collected.restart(5)
        torch.manual_seed(0)
        rollouts.append(collected.collect())
    assert torch.equal(rollouts[0]["task_id"], rollouts[1]["task_id"])
    assert torch.equal(rollouts[0]["next", "state"], rollouts[1]["next", "state"])
    assert len(set(rollouts[0]["task_id"][0].tolist())) == 2


def test_an_evaluation_counts_each_task(words_policy: Callable) -> None:
    env = suite(Reach(3, max_episode_steps=4), Reach(3, max_episode_steps=4))
    outcome = rl.evaluate(env, Actor(words_policy()), 10)
    assert {task: played for task, (_, played) in outcome.by_task().items()} == {0: 5, 1: 5}


def test_metrics_of_more_than_ten_tasks_are_the_worst_and_the_best() -> None:
    assert task_success("train", [0, 0], [True, False]) == {}
    assert task_success("eval", [1, 0, 1], [True, False, False]) == {
        "eval/task_success/0": 0.0,
        "eval/task_success/1": 0.5,
    }
    rates = task_success("train", [*range(11)], [task > 0 for task in range(11)])
    assert rates == {"train/task_success/worst": 0.0, "train/task_success/best": 1.0}


# The words in policy and critics


def rows(policy: policies.FlowPolicy, cameras: tuple[str, ...] = ()) -> TensorDict:
    """Return rows of equal observations with the two tasks in turn."""
    state = torch.rand(4, 4).repeat_interleave(2, 0)
    obs: dict[str, Any] = {"state": state, "task_id": torch.arange(8) % 2}
    obs |= {f"image/{name}": torch.zeros(8, 3, 16, 16, dtype=torch.uint8) for name in cameras}
    preprocess = policy.observation_preprocessor(WORDS)
    found = preprocess(TensorDict(obs, batch_size=[8]))
    assert isinstance(found, TensorDict)
    return found


@pytest.mark.parametrize("cameras", [(), ("top",)])
def test_critics_distinguish_tasks_by_the_words(
    cameras: tuple[str, ...], words_policy: Callable
) -> None:
    policy = words_policy(cameras)
    td = rows(policy, cameras)
    features = critic_input(policy, td)[:, policy.preprocessor.model_state_dim :]
    assert (features[0] - features[1]).norm() > 0.01 * features[0].norm()
    critic = ValueCritic(policy.preprocessor.model_state_dim, policy.feature_dim)
    td["elapsed"], td["features"] = torch.zeros(8, 1), features
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    target = (torch.arange(8) % 2).float()[:, None]
    for _ in range(300):
        optimizer.zero_grad()
        loss = (critic.value(td) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.01


def test_a_policy_without_words_is_warned_of_once(
    tiny_policy: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    env = suite(Reach(2), Reach(2))
    _warn_of_tasks.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            rl.evaluate(env, Actor(tiny_policy()), 2)
    warnings = [record.getMessage() for record in caplog.records]
    assert [text for text in warnings if "cannot distinguish tasks" in text] == [
        "mock/suite has 2 tasks, but the policy reads no instruction, so it and its critics cannot "
        "distinguish tasks whose observations are alike; use a policy with words "
        "(pitune pretrain --words)"
    ]


def test_a_suite_without_words_is_refused_by_a_policy_that_reads_them(
    words_policy: Callable,
) -> None:
    env = suite(Reach(2), Reach(2), words=("", ""))
    with pytest.raises(ValueError, match="this policy needs a prompt, but the instructions are"):
        rl.evaluate(env, Actor(words_policy()), 2)


def test_groups_share_task_and_start() -> None:
    env = suite(Reach(6), Reach(6))
    seeds = EpisodeSeeds(6, 0, "train", 3, Starts.of(env.spec))
    obs = env.reset(seeds.next(torch.arange(6)))
    assert obs["task_id"].tolist() == [0, 0, 0, 1, 1, 1]
    assert (obs["state"][:3] == obs["state"][0]).all()
    assert not torch.equal(obs["state"][0], obs["state"][3])
