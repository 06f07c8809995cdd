"""`epo`: the decisions of the other members in each loss, and what must not reach the genes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune import envs, rl
from pitune.policies import FlowPolicy
from pitune.rl.algorithms.ppo import critic_loss
from pitune.rl.experience.sub_dict import sub_dict
from settings import changed

LEARNING: dict[str, Any] = {"critic_warmup": 0, "minibatch_size": 8, "num_epochs": 1}


@pytest.fixture
def policy(tiny_policy: Callable) -> FlowPolicy:
    return tiny_policy()


def new_epo(policy: FlowPolicy, ppo: dict[str, Any] | None = None, **changes: Any) -> rl.EPO:
    """Make an algorithm whose members differ."""
    torch.manual_seed(0)
    config = changed(rl.PPOConfig(), **{**LEARNING, **(ppo or {})})
    algorithm = rl.EPO(rl.EPOConfig(ppo=config, **changes), policy)
    with torch.no_grad():
        for weight in (algorithm.actor.population.to_policy, algorithm.critic.to_critic):
            weight.add_(0.2 * torch.randn(weight.shape))
        algorithm.critic.net[-1].get_parameter("weight").normal_()
    return algorithm


def gather(algorithm: rl.EPO) -> TensorDictBase:
    """Return a rollout (8, 5) with rewards that differ, as `update` prepares it."""
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=8, num_workers=0, max_episode_steps=7)
    rollout = rl.Rollouts(envs.make(config), algorithm, 5, seed=0).collect()
    rollout["next", "reward_steps"] += torch.rand(8, 5, 2)
    rollout["next", "member"] = rollout["member"]
    return rollout


def batches(algorithm: rl.EPO) -> tuple[TensorDictBase, TensorDictBase]:
    """Return a minibatch (8) of all members, and the others' decisions for the master."""
    seen: list[tuple[TensorDictBase, TensorDictBase]] = []

    def step(batch: TensorDictBase, others: TensorDictBase | None, _: bool) -> dict[str, float]:
        assert others is not None
        seen.append((batch, others))
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithm, "minibatch_step", step)
        algorithm.update(gather(algorithm))
    return seen[0]


@pytest.mark.parametrize("aggregate", [0.25, 2.0])
@torch.no_grad()
def test_both_losses_have_the_others_decisions_with_their_weight(
    aggregate: float, policy: FlowPolicy
) -> None:
    algorithm = new_epo(policy, aggregate=aggregate)
    batch, others = batches(algorithm)
    own, _ = critic_loss(algorithm.critic, batch, float("inf"))
    added, _ = critic_loss(algorithm.critic, others, float("inf"))
    assert float(added) > 0.1
    found, metrics = algorithm._critic_loss(batch, others)
    assert float(found) == pytest.approx(float(own + aggregate * added), rel=1e-5)
    assert float(metrics["value_loss"]) == pytest.approx(float(found))
    assert float(algorithm._critic_loss(batch, None)[0]) == pytest.approx(float(own))

    master = algorithm.master_loss(others)
    found, _ = algorithm._actor_loss(batch, others)
    expected = algorithm.loss(batch)[0] + aggregate * master
    assert abs(float(master)) > 1e-3
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


def test_the_master_takes_what_was_better_for_it(policy: FlowPolicy) -> None:
    """The slope of the loss in a decision's log-ratio is minus ratio times advantage."""
    algorithm = new_epo(policy)
    _, others = batches(algorithm)
    bias = algorithm.actor.policy.network.action_out_proj.bias
    (found,) = torch.autograd.grad(algorithm.master_loss(others), bias)
    dist = algorithm.actor.get_dist(others)
    log_ratio = dist.log_prob(others["chain"]) - others["action_log_prob"]
    gain = (log_ratio.exp() * others["advantage"]).mean()
    (expected,) = torch.autograd.grad(-gain, bias)
    assert torch.allclose(found, expected, atol=1e-4)
    assert float(expected.abs().max()) > 1e-2


def test_no_gradient_of_the_critic_reaches_the_genes(policy: FlowPolicy) -> None:
    algorithm = new_epo(policy)
    batch, others = batches(algorithm)
    population = algorithm.actor.population
    loss, _ = algorithm._critic_loss(batch, others)
    parameters = [population.genes, population.to_policy, algorithm.critic.to_critic]
    genes, to_policy, to_critic = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert genes is None
    assert to_policy is None
    assert to_critic.abs().max() > 0


def test_broken_decisions_of_the_others_are_left_out(policy: FlowPolicy) -> None:
    algorithm = new_epo(policy)
    rollout = gather(algorithm)
    rollout["next", "invalid"][3, 1] = True
    others = algorithm.others(rollout)
    whole = rollout["chain"][2:].flatten(0, 1)
    kept = torch.arange(30) != 1 * 5 + 1  # environment 3 is the second of those of the others
    assert torch.equal(others["chain"], whole[kept])


def test_the_next_value_of_the_others_is_the_masters(policy: FlowPolicy) -> None:
    algorithm = new_epo(policy, {"discount": 0.5, "time_limit": "bootstrap"})
    rollout = gather(algorithm)
    others = algorithm.others(rollout)
    master = sub_dict(rollout, "next").copy()
    master["member"] = torch.zeros_like(rollout["member"])
    outcome = sub_dict(rollout, "next")
    with torch.no_grad():
        following = algorithm.critic.value(master)
        assert not torch.allclose(algorithm.critic.value(outcome)[2:], following[2:])
    powers = torch.tensor([1.0, 0.5])
    reward = (outcome["reward_steps"] * outcome["live"] * powers).sum(-1, keepdim=True)
    discount = 0.5 ** outcome["duration"].float() * ~outcome["terminated"]
    target = (reward + discount * following)[2:].flatten(0, 1)
    assert torch.allclose(others["value_target"], target, atol=1e-5)


def test_a_gradient_step_takes_a_members_share_of_the_others(
    policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = new_epo(policy)
    batch, others = batches(algorithm)
    sizes: list[tuple[int, int]] = []

    def losses(part: TensorDictBase, sample: TensorDictBase, weight: float) -> Any:
        sizes.append((len(part), len(sample)))
        assert weight == 1.0
        return critic_loss(algorithm.critic, part, float("inf"))

    monkeypatch.setattr(algorithm, "_critic_loss", losses)
    algorithm.minibatch_step(sub_dict(batch, slice(8)), others)
    assert sizes == [(8, 2)]  # a quarter, as many as the master's own


def test_the_deployed_member_is_the_best_of_the_latest_episodes(policy: FlowPolicy) -> None:
    algorithm = new_epo(policy, evolve_every=0, fitness_decay=0.0)
    for best in (3, 1):
        rollout = gather(algorithm)
        outcome = sub_dict(rollout, "next")
        outcome["done"][:], outcome["success"][:], outcome["invalid"][:] = True, False, False
        outcome["success"][2 * best : 2 * best + 2] = True
        algorithm.update(rollout)
        assert algorithm.actor.best == best
        offset = algorithm.deployed_policy().network.state_proj.bias
        genes: Tensor = algorithm.actor.population.genes[best]
        expected = policy.network.state_proj.bias + genes @ algorithm.actor.population.to_policy
        assert torch.allclose(offset, expected, atol=1e-6)
