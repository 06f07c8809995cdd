"""`mock/TwoGoals`: it needs two modes, and both modes of a flow policy survive fine-tuning."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pitune import envs, policies, rl
from pitune.envs.mock.two_goals import TwoGoals, reached_goal
from pitune.policies import FlowPolicy, ModelInput, SamplerConfig
from pitune.rl.algorithms.bc import CloningStep, clone

NUM = 400


def make(num_envs: int = NUM) -> envs.CheckedEnv:
    return envs.make(envs.EnvConfig(id="mock/TwoGoals", num_envs=num_envs, num_workers=0))


def outcome(chunk: Tensor) -> Tensor:
    """Return the goal that each of E = NUM chunks (E, 4, 2) reaches (E,), -1 for none."""
    env, active = TwoGoals(NUM), torch.ones(NUM, dtype=torch.bool)
    env.reset(torch.arange(NUM))
    goal = torch.full((NUM,), -1)
    for j in range(4):
        result = env.step(chunk[:, j].clamp(-1, 1), active)
        goal = torch.where(result.info["success"], env.reached(), goal)
        active = active & ~(result.terminated | result.truncated)
    return goal


def shares(goal: Tensor) -> tuple[float, float]:
    """Return the shares of episodes that reached the left and the right goal."""
    return float((goal == 0).float().mean()), float((goal == 1).float().mean())


def starts(policy: FlowPolicy) -> ModelInput:
    """Return a policy's input for the starts of `outcome`, NUM rows."""
    return policy.model_input(TwoGoals(NUM).reset(torch.arange(NUM)))


@pytest.fixture(scope="module")
def demonstrations() -> rl.Demonstrations:
    return rl.collect_demonstrations(make(50), 100, seed=0)


@pytest.fixture(scope="module")
def first_chunks(demonstrations: rl.Demonstrations) -> Tensor:
    """Return the first chunks of the demonstrations (100, 4, 2)."""
    chunks = demonstrations.chunks(4)
    first = torch.searchsorted(demonstrations.episode, torch.arange(100))
    return chunks["action"][first]


@pytest.fixture(scope="module")
def clone_policy(demonstrations: rl.Demonstrations) -> Callable[[], FlowPolicy]:
    """Return a function that makes the same briefly cloned policy at each call."""

    def make_policy() -> FlowPolicy:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy = policies.small_policy(
                demonstrations.obs["state"],
                demonstrations.action,
                action_horizon=4,
                sampler=SamplerConfig(flow_steps=4, execution_horizon=4),
            )
            config = rl.BCConfig(decay_steps=150, minibatch_size=64)
            clone(CloningStep(policy, config), demonstrations.preprocess(policy).chunks(4), 150)
        return policy

    return make_policy


def test_the_expert_uses_both_ways_and_always_succeeds(first_chunks: Tensor) -> None:
    env = TwoGoals(NUM)
    env.reset(torch.arange(NUM))
    expert, active = env.expert(), torch.ones(NUM, dtype=torch.bool)
    goal = torch.full((NUM,), -1)
    for _ in range(4):
        result = env.step(expert.act(), active)
        goal = torch.where(result.info["success"], env.reached(), goal)
        active = active & ~result.terminated
    assert torch.equal(goal, env.chosen)
    assert min(shares(goal)) > 0.4
    assert min(float((first_chunks[:, 0, 0] * s > 0).float().mean()) for s in (1, -1)) > 0.3


def test_goals_are_reached_within_their_radius() -> None:
    points = torch.tensor([[0.15, 0.5], [0.85, 0.5], [0.5, 0.5], [0.15, 0.6], [0.2, 0.45]])
    assert reached_goal(points).tolist() == [0, 1, -1, -1, 0]


def test_a_gaussian_policy_fails_where_a_flow_policy_reaches_both_goals(
    first_chunks: Tensor, clone_policy: Callable
) -> None:
    """The Gaussian of maximum likelihood has the demonstrations' mean and deviation."""
    torch.manual_seed(0)
    mean, std = first_chunks.mean(0), first_chunks.std(0)
    sampled = outcome(mean + std * torch.randn(NUM, 4, 2))
    assert sum(shares(sampled)) < 0.2
    assert sum(shares(outcome(mean.expand(NUM, 4, 2)))) == 0
    policy = clone_policy()
    with torch.no_grad():
        goal = outcome(policy.sample_actions(starts(policy), torch.randn(NUM, 4, 2)))
    assert sum(shares(goal)) > 0.4
    assert min(shares(goal)) > 0.15


@pytest.mark.slow
def test_both_ways_survive_ppo(clone_policy: Callable) -> None:
    torch.manual_seed(0)
    policy = clone_policy()
    noise = torch.randn(NUM, 4, 2)
    with torch.no_grad():
        before = shares(outcome(policy.sample_actions(starts(policy), noise)))
    env = make(100)
    algorithm = rl.PPO(
        rl.PPOConfig(update=rl.UpdateConfig(minibatch_size=250), critic_warmup=2), policy
    )
    rollouts = rl.Rollouts(env, algorithm, 10, seed=0)
    for _ in range(15):
        algorithm.update(rollouts.collect())
    with torch.no_grad():
        after = shares(outcome(policy.sample_actions(starts(policy), noise)))
    assert sum(after) > 0.9 > sum(before)
    assert min(after) > 0.2
