"""`epo`: how often chance replaces a member, how often a worse one is found; the evaluated one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchrl.envs import ExplorationType, set_exploration_type

from observations import observed
from pitune import envs, rl
from pitune.policies import Actor
from pitune.rl.algorithms.evolution.epo_evolution import Fitness, corrected_deviations

DECAY, UPDATES = 0.7, 10


def recorded(rates: Tensor, episodes: int) -> Fitness:
    """Return the record of members with given success rates after ten updates."""
    fitness = Fitness(len(rates), DECAY)
    for _ in range(UPDATES):
        wins = torch.binomial(torch.full_like(rates, float(episodes)), rates)
        fitness.successes = DECAY * fitness.successes + wins
        fitness.episodes = DECAY * fitness.episodes + episodes
    return fitness


def replaced(rates: Tensor, episodes: int, trials: int, deviations: float = 2.0) -> Tensor:
    """Return the share of selections (P,) in which each member is significantly worse."""
    counts = torch.zeros(len(rates))
    for _ in range(trials):
        counts[recorded(rates, episodes).significantly_worse(deviations)] += 1
    return counts / trials


def chance(num_members: int, rate: float, episodes: int, trials: int) -> float:
    """Return the share of selections in which some of equal members would be replaced."""
    rates = torch.full((num_members,), rate)
    hits = sum(bool(recorded(rates, episodes).significantly_worse(2.0)) for _ in range(trials))
    return hits / trials


@pytest.mark.parametrize("num_members", [2, 4, 8, 16, 32])
@pytest.mark.parametrize(("rate", "episodes"), [(0.5, 10), (0.5, 100), (0.9, 25)])
def test_chance_replaces_equal_members_in_at_most_three_percent_of_selections(
    num_members: int, rate: float, episodes: int
) -> None:
    torch.manual_seed(0)
    assert chance(num_members, rate, episodes, trials=300) <= 0.03


@pytest.mark.parametrize("num_members", [4, 8, 16, 32])
def test_a_member_that_is_really_worse_is_found(num_members: int) -> None:
    torch.manual_seed(0)
    rates = torch.full((num_members,), 0.9)
    rates[-1] = 0.5
    found = replaced(rates, episodes=25, trials=100)
    assert found[-1] > 0.9
    assert found[:-1].max() <= 0.02


def test_more_members_need_a_greater_difference() -> None:
    needed = [corrected_deviations(2.0, num) for num in (1, 2, 4, 8, 16, 32, 10_000)]
    assert needed[:2] == [2.0, pytest.approx(2.0)]
    assert needed[1:] == sorted(needed[1:])
    assert needed[2] == pytest.approx(2.67, abs=0.01)
    for deviations in (0.0, 1.0, 8.0, 40.0):
        assert corrected_deviations(deviations, 4) >= deviations - 1e-6
        assert corrected_deviations(deviations, 4) < 41


def test_members_without_a_record_are_no_comparison() -> None:
    fitness = Fitness(4, DECAY)
    fitness.successes = torch.tensor([80.0, 64.0, 0.0, 0.0])
    fitness.episodes = torch.tensor([100.0, 100.0, 0.0, 5.0])
    assert fitness.significantly_worse(2.0) == [1]
    fitness.successes[2:], fitness.episodes[2:] = 80.0, 100.0
    assert fitness.significantly_worse(2.0) == []


# The evaluated member


def exploring_chunk(actor: Actor, state: Tensor, noise: Tensor) -> Tensor:
    td = observed(actor.policy, state, noise=noise)
    torch.manual_seed(5)
    with set_exploration_type(ExplorationType.RANDOM):
        return actor(td)["action"]


@pytest.mark.parametrize("num_rows", [8, 6])
def test_an_evaluation_while_exploring_plays_the_best_member_everywhere(
    num_rows: int, tiny_policy: Callable
) -> None:
    algorithm = rl.EPO(rl.EPOConfig(num_members=4), tiny_policy())
    with torch.no_grad():
        algorithm.actor.population.to_policy.normal_(std=0.3)
    state, noise = torch.rand(num_rows, 4), torch.randn(num_rows, 2, 2)
    for best in (0, 3):
        algorithm.actor.best = best
        alone = exploring_chunk(algorithm.actor.evaluated(), state, noise)
        expected = rl.PPO(
            rl.PPOConfig(), algorithm.actor.member_policy(best)
        )  # the deployed policy with the same exploration
        assert torch.allclose(alone, exploring_chunk(expected.actor, state, noise), atol=1e-5)
    if num_rows == 8:  # training goes on with all members
        assert not torch.allclose(exploring_chunk(algorithm.actor, state, noise), alone)
        members = algorithm.actor(observed(algorithm.actor.policy, state))["member"]
        assert members.unique().tolist() == [0, 1, 2, 3]


def test_evaluate_asks_for_the_evaluated_actor(tiny_policy: Callable) -> None:
    algorithm = rl.EPO(rl.EPOConfig(num_members=2), tiny_policy())
    with torch.no_grad():
        algorithm.actor.population.to_policy.normal_(std=0.5)
    algorithm.actor.best = 1
    env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=3, num_workers=0, max_episode_steps=7))
    found = rl.evaluate(env, algorithm.actor, 6, stochastic=True)
    best = rl.PPO(rl.PPOConfig(), algorithm.deployed_policy())
    expected = rl.evaluate(env, best.actor, 6, stochastic=True)
    assert found.length == expected.length
    assert found.episode_return == pytest.approx(expected.episode_return)
