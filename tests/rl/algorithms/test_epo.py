"""`epo`, `epo_population`, `epo_evolution`: one member is PPO, members are members, the merge."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import ExplorationType, set_exploration_type

from observations import observed
from pitune import envs, policies, rl
from pitune.policies import (
    FlowNoiseConfig,
    FlowPolicy,
    FlowSDEConfig,
    LikelihoodConfig,
    ModelInput,
    likelihood_config,
)
from pitune.rl.algorithms.evolution.epo_evolution import Fitness, evolve
from pitune.rl.algorithms.evolution.epo_population import Population
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.policy_gradient.loss import log_ratios
from settings import changed

LEARNING: dict[str, Any] = {"critic_warmup": 0, "minibatch_size": 8, "num_epochs": 2}


def new_epo(policy: FlowPolicy, ppo: dict | None = None, **changes: Any) -> rl.EPO:
    torch.manual_seed(0)
    config = changed(rl.PPOConfig(), **{**LEARNING, **(ppo or {})})
    return rl.EPO(rl.EPOConfig(ppo=config, **changes), policy)


def rollouts(algorithm: rl.Algorithm, num_envs: int = 8) -> rl.Rollouts:
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=num_envs, num_workers=0, max_episode_steps=7)
    return rl.Rollouts(envs.make(config), algorithm, 5, seed=0)


def gather(algorithm: rl.EPO) -> TensorDictBase:
    """Return a rollout (8, 5) with rewards that differ."""
    return rewarded(rollouts(algorithm).collect())


def rewarded(rollout: TensorDictBase) -> TensorDictBase:
    """Return a rollout with further rewards that differ."""
    rollout["next", "reward_steps"] += torch.rand(rollout["next", "reward_steps"].shape)
    return rollout


def tell_apart(algorithm: rl.EPO) -> None:
    """Give the maps of genes weights, so that members differ."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (algorithm.actor.population.to_policy, algorithm.critic.to_critic):
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def onto(target: rl.EPO, rollout: TensorDictBase) -> TensorDictBase:
    """Return a rollout as `update` prepares it."""
    rollout = rollout.copy()
    rollout["next", "member"] = rollout["member"]
    return rollout


# One member


@pytest.mark.parametrize("likelihood", [FlowSDEConfig(), FlowNoiseConfig(stochastic_steps="one")])
def test_one_member_without_evolution_is_ppo_bit_for_bit(
    likelihood: LikelihoodConfig, tiny_policy: Callable
) -> None:
    """T-D6, over four updates with new rollouts each, warm-up and target KL included."""
    ends, metrics = [], []
    for epo in (False, True):
        settings = {**LEARNING, "critic_warmup": 1, "likelihood": likelihood}
        config = changed(rl.PPOConfig(), **settings)
        torch.manual_seed(0)
        algorithm: rl.EPO | rl.PPO = (
            rl.EPO(rl.EPOConfig(ppo=config, num_members=1, evolve_every=0), tiny_policy())
            if epo
            else rl.PPO(config, tiny_policy())
        )
        experience = rollouts(algorithm)
        metrics.append([algorithm.update(rewarded(experience.collect())) for _ in range(4)])
        ends.append(weights(algorithm.actor.policy))
        noise = algorithm.actor.likelihood.head
        if noise is not None:
            ends[-1] = torch.cat([ends[-1], weights(noise)])
    assert torch.equal(ends[0], ends[1])
    assert metrics[0] == metrics[1]
    assert not torch.equal(ends[0][: len(weights(tiny_policy()))], weights(tiny_policy()))


# Members


def test_at_first_every_member_is_the_pretrained_policy(tiny_policy: Callable) -> None:
    """T-D8."""
    algorithm, policy = new_epo(tiny_policy()), tiny_policy()
    td = observed(policy, torch.rand(8, 4))
    inputs, noise = ModelInput.of(td), torch.randn(8, 2, 2)
    expected = policy.sample_actions(inputs, noise)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert torch.equal(algorithm.actor(td.clone().set("noise", noise))["action"], expected)
    for member in range(4):
        found = algorithm.actor.member_policy(member).sample_actions(inputs, noise)
        assert torch.equal(found, expected)
    tell_apart(algorithm)
    apart = [algorithm.actor.member_policy(m).sample_actions(inputs, noise) for m in range(4)]
    assert all(float((a - expected).abs().max().detach()) > 1e-2 for a in apart)


def test_members_own_equal_shares_of_neighbors(tiny_policy: Callable) -> None:
    """T-D1, the mapping."""
    rollout = gather(new_epo(tiny_policy()))
    assert rollout["member"][:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(rollout["member"], rollout["member"][:, :1].expand(8, 5))


def test_environments_that_do_not_divide_among_members_are_refused(tiny_policy: Callable) -> None:
    with pytest.raises(ValueError, match="EPO splits the environments into 4 equal shares; num_e"):
        rollouts(new_epo(tiny_policy()), num_envs=6)
    with pytest.raises(ValueError, match="num_envs=6 must be a multiple of num_members=4"):
        new_epo(tiny_policy()).actor.population.members(6)


def test_a_folded_member_is_the_conditioned_one(tiny_policy: Callable) -> None:
    algorithm = new_epo(tiny_policy())
    tell_apart(algorithm)
    td = observed(algorithm.actor.policy, torch.rand(8, 4))
    inputs, noise = ModelInput.of(td), torch.randn(8, 2, 2)
    for member in (0, 3):
        algorithm.actor.best = member
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            acted = algorithm.actor(td.clone().set("noise", noise))["action"]
        folded = algorithm.deployed_policy()
        algorithm.actor.best = 1  # a member is folded whichever is the best
        of_member = algorithm.actor.member_policy(member)
        assert torch.equal(
            of_member.sample_actions(inputs, noise), folded.sample_actions(inputs, noise)
        )
        assert torch.allclose(folded.sample_actions(inputs, noise), acted, atol=1e-5)
        assert not torch.allclose(algorithm.actor.policy.sample_actions(inputs, noise), acted)
        assert folded.state_dict().keys() == tiny_policy().state_dict().keys()


def test_a_member_s_data_moves_its_own_gene_and_the_shared_parameters(
    tiny_policy: Callable,
) -> None:
    """T-D1, the gradients."""
    algorithm = new_epo(tiny_policy())
    tell_apart(algorithm)
    rollout = gather(algorithm)
    batch = (
        sub_dict(rollout, slice(2, 4)).flatten().set("advantage", torch.randn(10, 1))
    )  # member 1
    loss, _ = algorithm.loss(batch)
    population = algorithm.actor.population
    shared = algorithm.actor.policy.network.action_out_proj.weight
    genes, weight = torch.autograd.grad(loss, [population.genes, shared])
    assert genes[1].abs().min() > 0
    assert genes[[0, 2, 3]].eq(0).all()
    assert weight.abs().max() > 0


@pytest.mark.parametrize("kernel", ["flow_sde", "flow_noise"])
def test_ratio_is_one_before_the_first_step(kernel: Any, tiny_policy: Callable) -> None:
    algorithm = new_epo(tiny_policy(), {"likelihood": likelihood_config(kernel)})
    tell_apart(algorithm)
    metrics = algorithm.update(gather(algorithm))
    assert metrics["ratio_deviation"] < 1e-4
    assert metrics["action_spread"] > 1e-2
    assert metrics["gene_spread"] > 1


def test_scoring_as_another_member_trips_the_ratio(tiny_policy: Callable) -> None:
    """Negative control."""
    algorithm = new_epo(tiny_policy(), aggregate=0.0)
    tell_apart(algorithm)
    rollout = gather(algorithm)
    rollout["member"] = rollout["member"].roll(2, 0)
    assert algorithm.update(rollout)["ratio_deviation"] > 1e-2


# What the master learns from the others


def test_others_decisions_carry_the_master_s_gradient_and_who_acted_s_probability(
    tiny_policy: Callable,
) -> None:
    """T-D2."""
    algorithm = new_epo(tiny_policy())
    tell_apart(algorithm)
    rollout = onto(algorithm, gather(algorithm))
    others = algorithm.others(rollout)
    assert len(others) == 30
    stored = rollout["action_log_prob"][2:].flatten(0, 1)
    assert torch.equal(others["action_log_prob"], stored)
    assert torch.equal(others["chain"], rollout["chain"][2:].flatten(0, 1))
    population = algorithm.actor.population
    (genes,) = torch.autograd.grad(algorithm.master_loss(others), population.genes)
    assert genes[0].abs().min() > 0
    assert genes[1:].eq(0).all()
    assert others["center"].abs().max() > 1e-2
    assert others["advantage"].mean().abs() < 1e-5


def test_the_clip_is_around_the_master_s_own_old_ratio(tiny_policy: Callable) -> None:
    """T-D3: before the first step nothing is clipped, however far the members are apart."""
    algorithm = new_epo(tiny_policy())
    tell_apart(algorithm)
    others = algorithm.others(onto(algorithm, gather(algorithm)))
    log_ratio, _ = log_ratios(algorithm.actor, others)
    assert torch.allclose(log_ratio, others["center"], atol=1e-4)
    assert (log_ratio.abs() > 0.3).any()  # a clip around 1 would cut these
    by_hand = -(log_ratio.exp() * others["advantage"]).mean()
    assert float(algorithm.master_loss(others)) == pytest.approx(float(by_hand), rel=1e-3)


def test_targets_look_one_decision_ahead_with_the_master_s_values(tiny_policy: Callable) -> None:
    algorithm = new_epo(tiny_policy(), {"discount": 0.9, "time_limit": "bootstrap"})
    tell_apart(algorithm)
    torch.nn.init.normal_(algorithm.critic.net[-1].get_parameter("weight"))
    rollout = onto(algorithm, gather(algorithm))
    others = algorithm.others(rollout)
    zeros = torch.zeros_like(rollout["member"])
    with torch.no_grad():
        after = sub_dict(rollout, "next").copy().set("member", zeros)
        value = algorithm.critic.value(rollout.copy().set("member", zeros))
        following = algorithm.critic.value(after)
        assert not torch.allclose(algorithm.critic.value(rollout)[2:], value[2:])
    reward = (after["reward_steps"] * after["live"] * torch.tensor([1.0, 0.9])).sum(-1, True)
    going_on = (~after["terminated"]).float()
    target = reward + 0.9 ** after["duration"].float() * going_on * following
    assert torch.allclose(others["value_target"], target[2:].flatten(0, 1), atol=1e-5)
    assert torch.allclose(others["state_value"], value[2:].flatten(0, 1), atol=1e-5)


def test_decisions_too_far_from_the_master_are_left_out(tiny_policy: Callable) -> None:
    algorithm = new_epo(tiny_policy(), log_ratio_cap=0.2)
    tell_apart(algorithm)
    others = algorithm.others(onto(algorithm, gather(algorithm)))
    assert 0 < len(others) < 30
    assert others["center"].abs().max() <= 0.2


# Fitness


def played(success: list[list[bool]], episodes: int = 20) -> TensorDict:
    """Return a rollout (P, T) of which each decision is an episode, with these outcomes."""
    table = torch.tensor(success)
    done = torch.ones_like(table)[..., None]
    member = torch.arange(len(table))[:, None].expand_as(table)
    after = {"done": done, "invalid": ~done, "success": table[..., None]}
    shape = list(table.shape)
    return TensorDict({"member": member, "next": TensorDict(after, shape)}, shape)


def with_rates(*rates: float, num: int = 40, decay: float = 1.0) -> Fitness:
    fitness = Fitness(len(rates), decay)
    fitness.add(played([[i < round(rate * num) for i in range(num)] for rate in rates]))
    return fitness


def test_fitness_is_that_of_a_member_s_own_episodes() -> None:
    """T-D5."""
    fitness = with_rates(0.0, 0.0, 0.0, 1.0)
    assert fitness.rate().tolist() == [0, 0, 0, 1]
    assert fitness.best() == 3
    shuffled = played([[False] * 40, [True] * 40, [False] * 40, [False] * 40])
    fitness.add(shuffled)
    assert fitness.rate().tolist() == [0, 0.5, 0, 0.5]


def test_old_episodes_are_forgotten_and_broken_ones_not_counted() -> None:
    fitness = with_rates(1.0, 0.0, decay=0.5)
    fitness.add(played([[False] * 40, [False] * 40]))
    assert fitness.rate().tolist() == pytest.approx([1 / 3, 0])
    rollout = played([[True] * 40, [True] * 40])
    rollout["next", "invalid"][0] = True
    fitness = Fitness(2, 0.5)
    fitness.add(rollout)
    assert fitness.episodes.tolist() == [0, 40]
    assert math.isnan(fitness.rate()[0])


def test_only_members_that_are_worse_beyond_chance_are_replaced() -> None:
    """T-D7: equal, slightly different, unknown and clearly different records."""
    assert with_rates(0.5, 0.5, 0.5, 0.5).significantly_worse(2.0) == []
    assert with_rates(0.0, 0.0, 0.0, 0.0).significantly_worse(2.0) == []
    assert with_rates(0.5, 0.45, 0.55, 0.5).significantly_worse(2.0) == []
    assert Fitness(4, 0.7).significantly_worse(2.0) == []
    assert Fitness(4, 0.7).best() == 0
    assert with_rates(0.9, 0.1, 0.5, 0.9).significantly_worse(2.0) == [1, 2]
    few = with_rates(1.0, 0.0, num=8)
    assert few.significantly_worse(2.0) == []  # too few episodes to know
    assert with_rates(0.7).significantly_worse(2.0) == []


# Evolution


def evolved(
    fitness: Fitness, num: int = 4, mutation: float = 0.0
) -> tuple[Population, Tensor, Any]:
    """Return a trained population after evolution, its genes before, and its optimizer."""
    torch.manual_seed(0)
    population = Population(num, 3, 5)
    optimizer = torch.optim.Adam(population.parameters(), lr=0.1)
    population.genes.square().sum().backward()
    optimizer.step()
    before = population.genes.detach().clone()
    replaced = evolve(population, optimizer, fitness, deviations=2.0, mutation_std=mutation)
    return population, before, (optimizer, replaced)


def test_the_worst_becomes_the_mean_of_the_two_best_and_the_others_stay() -> None:
    """T-D4, the first half."""
    population, before, (_, replaced) = evolved(with_rates(0.9, 0.1, 0.5, 0.8))
    assert replaced == [1]  # a quarter of four
    assert torch.allclose(population.genes[1], (before[0] + before[3]) / 2)
    assert torch.equal(population.genes[[0, 2, 3]], before[[0, 2, 3]])


def test_a_child_goes_on_learning_with_moments_of_its_own() -> None:
    """T-D4: catches a gene that the optimizer does not know any more."""
    population, _, (optimizer, _) = evolved(with_rates(0.9, 0.1, 0.5, 0.8), mutation=0.3)
    state = optimizer.state[population.genes]
    assert state["exp_avg"][1].eq(0).all()
    assert state["exp_avg_sq"][1].eq(0).all()
    assert state["exp_avg"][0].abs().min() > 0
    child = population.genes.detach()[1].clone()
    optimizer.zero_grad()
    population.genes.square().sum().backward()
    optimizer.step()
    assert (population.genes[1] - child).abs().min() > 1e-3


def test_a_gene_written_into_a_new_parameter_would_stand_still() -> None:
    """Negative control: the released code's defect."""
    population = Population(4, 3, 5)
    optimizer = torch.optim.Adam(population.parameters(), lr=0.1)
    population.genes = torch.nn.Parameter(population.genes.detach().clone())
    before = population.genes.detach().clone()
    population.genes.square().sum().backward()
    optimizer.step()
    assert torch.equal(population.genes, before)


def test_mutation_and_records() -> None:
    fitness = with_rates(0.9, 0.1, 0.5, 0.8)
    plain, *_ = evolved(with_rates(0.9, 0.1, 0.5, 0.8))
    mutated, *_ = evolved(fitness, mutation=0.3)
    assert 0.01 < float((mutated.genes - plain.genes)[1].detach().norm()) < 2
    assert fitness.episodes.tolist() == [40, 0, 40, 40]
    assert math.isnan(fitness.rate()[1])


def test_equal_members_are_left_alone() -> None:
    population, before, (_, replaced) = evolved(with_rates(0.5, 0.5, 0.5, 0.5), mutation=1.0)
    assert replaced == []
    assert torch.equal(population.genes, before)


def test_two_members_leave_the_better_as_the_only_parent() -> None:
    population, before, (_, replaced) = evolved(with_rates(0.1, 0.9), num=2)
    assert replaced == [0]
    assert torch.allclose(population.genes[0], before[1])


def test_an_update_selects_at_its_time_and_deploys_the_best(tiny_policy: Callable) -> None:
    algorithm = new_epo(tiny_policy(), evolve_every=2, fitness_decay=1.0)
    rollout = gather(algorithm)
    after = sub_dict(rollout, "next")
    after["done"][:], after["success"][:] = True, False
    after["terminated"][:] = True
    after["success"][4:6] = True  # member 2
    metrics = algorithm.update(rollout)
    assert metrics["best_member"] == 2
    assert metrics["replaced"] == 0
    metrics = algorithm.update(rollout)
    assert metrics["replaced"] == 1
    assert metrics["fitness/2"] == 1.0
    assert algorithm.actor.best == 2


def test_the_saved_policy_is_the_best_member_and_learning_goes_on(
    tiny_policy: Callable, tmp_path: Path
) -> None:
    """What is saved as the policy is folded; the shared bias comes back on resuming."""
    first = new_epo(tiny_policy())
    tell_apart(first)
    first.actor.best = 2
    policies.save(first.deployed_policy(), tmp_path / "policy")
    torch.save(first.training_state(), tmp_path / "state.pt")
    second = new_epo(tiny_policy())
    second.actor.policy.load_state_dict(policies.load(tmp_path / "policy").state_dict())
    assert not torch.equal(weights(first.actor.policy), weights(second.actor.policy))
    second.load_training_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(weights(first.actor), weights(second.actor))
    assert second.actor.best == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_members": 0}, "num_members=0 must be at least 1"),
        ({"ppo": rl.PPOConfig(scored_steps="one")}, "scored_steps='one' is not supported by epo"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rl.EPOConfig(**changes)


@pytest.mark.slow
def test_epo_improves_a_half_trained_policy(half_trained: Path) -> None:
    torch.manual_seed(0)
    policy = policies.load(half_trained)
    config = envs.EnvConfig(id="mock/Reach", num_envs=52, num_workers=0, max_episode_steps=10)
    env = envs.make(config)
    ppo = rl.PPOConfig(
        update=rl.UpdateConfig(minibatch_size=250), critic_warmup=2, actor_learning_rate=5e-4
    )
    algorithm = rl.EPO(rl.EPOConfig(ppo=ppo), policy)
    before = rl.evaluate(env, algorithm.actor, 208)
    experience = rl.Rollouts(env, algorithm, 10, seed=0)
    for _ in range(40):
        algorithm.update(experience.collect())
    after = rl.evaluate(env, algorithm.actor, 208)
    assert before.interval is not None
    assert after.interval is not None
    assert before.interval[1] < 0.8 < after.interval[0]  # the intervals do not overlap


def test_cloning_the_reference_reads_the_genes_with_which_members_act(
    tiny_policy: Callable,
) -> None:
    algorithm = new_epo(tiny_policy(), {"bc_coefficient": 0.5}, num_members=2)
    tell_apart(algorithm)
    reference = algorithm.loss.reference
    assert reference is not None
    batch = sub_dict(onto(algorithm, gather(algorithm)), (slice(None), 0))
    batch.update(reference.cloning_draws(algorithm.actor, len(batch)))
    losses = [
        reference.cloning_loss(
            algorithm.actor, batch.copy().set("member", torch.full((len(batch),), member))
        )
        for member in (0, 1)
    ]
    assert not torch.allclose(losses[0], losses[1])
