"""Evolution strategies: perturbations, ranks, and the estimate of the gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch import nn

from pitune import envs, policies, rl
from pitune.envs import CheckedEnv
from pitune.policies import FinetuneConfig, apply_finetuning
from pitune.policies.finetuning.trainable import parameter_groups
from pitune.rl.algorithms.es import ES, ESConfig, centered_ranks, chosen_parameters
from pitune.rl.algorithms.evolution.perturbations import Perturbations, PerturbedActor
from pitune.rl.experience.sub_dict import sub_dict


def reach(num_envs: int = 8) -> CheckedEnv:
    config = envs.EnvConfig(id="mock/Reach", num_envs=num_envs, max_episode_steps=8)
    return envs.make(config)


def new(half_trained: Path, **settings: Any) -> ES:
    torch.manual_seed(0)
    algorithm = rl.make(ESConfig(**{"num_pairs": 2, **settings}), policies.load(half_trained))
    assert isinstance(algorithm, ES)
    return algorithm


def collected(algorithm: ES, env: CheckedEnv | None = None) -> TensorDictBase:
    return rl.Rollouts(env or reach(), algorithm, 4, seed=0).collect()


# Perturbations


def test_members_of_a_pair_have_opposite_noise_and_the_weights_come_back_bit_for_bit() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(1000))
    before = weight.detach().clone()
    noise = Perturbations({"weight": weight}, num_pairs=2, std=0.1)
    seen = []
    for member in range(4):
        with noise.member(member):
            seen.append(weight.detach() - before)
        assert torch.equal(weight, before)
    assert torch.allclose(seen[0], -seen[1], atol=1e-6)
    assert torch.allclose(seen[2], -seen[3], atol=1e-6)
    assert float((seen[0] - seen[2]).abs().max()) > 0.1
    assert float(seen[0].std()) == pytest.approx(0.1, rel=0.1)


def test_an_error_inside_a_member_restores_the_weights() -> None:
    weight = nn.Parameter(torch.zeros(3))
    noise = Perturbations({"weight": weight}, num_pairs=1, std=0.1)
    with pytest.raises(RuntimeError, match="lost"), noise.member(0):
        raise RuntimeError("lost")
    assert not weight.any()


def test_seeds_fix_the_noise_and_new_draws_change_it() -> None:
    weight = nn.Parameter(torch.zeros(5))
    first = Perturbations({"weight": weight}, num_pairs=1, std=0.1)
    second = Perturbations({"weight": weight}, num_pairs=1, std=0.1)
    assert not torch.equal(first.of_pair(0)["weight"], second.of_pair(0)["weight"])
    second.set_seeds(first.seeds)
    assert torch.equal(first.of_pair(0)["weight"], second.of_pair(0)["weight"])
    before = first.of_pair(0)["weight"]
    first.draw()
    assert not torch.equal(first.of_pair(0)["weight"], before)


def test_each_environment_acts_with_the_weights_of_its_member(half_trained: Path) -> None:
    algorithm = new(half_trained, noise_std=0.3)
    policy, actor = algorithm.actor.policy, algorithm.actor
    td = rl.Rollouts(reach(), algorithm, 4, seed=0)._chunk_env.reset()
    torch.manual_seed(1)
    acted = actor(td.copy())
    assert acted["member"].tolist() == [0, 1, 2, 3] * 2
    torch.manual_seed(1)
    noise = policy.draw_noise(2)
    for row in range(8):
        with algorithm.perturbations.member(row % 4):
            inputs = policies.ModelInput.of(td[row : row + 1])
            alone = policy.sample_actions(inputs, noise[row // 4][None])
        assert torch.allclose(acted["action"][row], alone[0], atol=1e-5)


def test_members_play_the_same_starts(half_trained: Path) -> None:
    rollout = collected(new(half_trained))
    start = rollout["state"][:, 0].view(2, 4, -1)
    assert torch.equal(start[:, :1].expand_as(start), start)
    assert not torch.equal(start[0], start[1])
    other = collected(new(half_trained, same_starts=False))["state"][:, 0]
    assert len(other.unique(dim=0)) == 8


def test_the_deployed_policy_is_not_perturbed(half_trained: Path) -> None:
    algorithm = new(half_trained, noise_std=10.0)
    assert not isinstance(algorithm.actor.evaluated(), PerturbedActor)
    plain = policies.Actor(policies.load(half_trained))
    for stochastic in (False, True):
        found, expected = (
            rl.evaluate(reach(), actor, 20, stochastic=stochastic).success_rate
            for actor in (algorithm.actor, plain)
        )
        assert found == expected


# Update


def test_ranks_are_centered_and_ties_share_theirs() -> None:
    assert centered_ranks(torch.tensor([5.0, 1.0])).tolist() == [0.5, -0.5]
    assert centered_ranks(torch.ones(4)).tolist() == [0.0] * 4
    # only the order counts
    values = torch.tensor([0.1, 3.0, 2.0, -1.0])
    assert torch.equal(centered_ranks(values), centered_ranks(values**3))


def test_a_pair_without_a_fitness_has_no_weight() -> None:
    rank = centered_ranks(torch.tensor([3.0, 1.0, float("nan"), 9.0]))
    assert rank[2:].tolist() == [0.0, 0.0]
    assert rank[0] > rank[1]


def test_the_gradient_is_the_weighted_sum_of_the_noise(half_trained: Path) -> None:
    algorithm = new(half_trained)
    batch = algorithm_batch([0.5, -0.25])
    loss, _ = algorithm.loss(batch)
    grads = torch.autograd.grad(loss, list(algorithm.parameters.values()))
    for grad, name in zip(grads, algorithm.parameters, strict=True):
        noise = [algorithm.perturbations.of_pair(pair)[name] for pair in (0, 1)]
        assert torch.allclose(grad, -(0.5 * noise[0] - 0.25 * noise[1]) / 2, atol=1e-6)


def algorithm_batch(slopes: list[float]) -> TensorDictBase:
    from tensordict import TensorDict

    pairs = torch.arange(len(slopes))
    return TensorDict({"pair": pairs, "slope": torch.tensor(slopes)}, [len(slopes)])


def test_the_estimate_points_up_the_fitness(half_trained: Path) -> None:
    """On a linear fitness of the weights, many pairs give its direction."""
    algorithm = new(half_trained, num_pairs=200, groups=("projections",))
    names = list(algorithm.parameters)
    generator = torch.Generator().manual_seed(0)
    slope = {n: torch.randn(p.shape, generator=generator) for n, p in algorithm.parameters.items()}
    along = torch.tensor(
        [
            sum(float((slope[n] * algorithm.perturbations.of_pair(i)[n]).sum()) for n in names)
            for i in range(200)
        ]
    )
    fitness = torch.stack([along, -along], 1).flatten()
    rank = centered_ranks(fitness)
    loss, _ = algorithm.loss(algorithm_batch(((rank[0::2] - rank[1::2]) / 0.04).tolist()))
    grads = torch.autograd.grad(loss, [algorithm.parameters[n] for n in names])
    flat = torch.cat([g.flatten() for g in grads])
    truth = torch.cat([slope[n].flatten() for n in names])
    cosine = float(torch.cosine_similarity(-flat, truth, dim=0))
    expected = (200 / (200 + len(truth))) ** 0.5  # of noise in as many dimensions
    assert cosine > 0.6 * expected
    assert cosine > 4 / len(truth) ** 0.5  # the chance of a random direction


def test_the_fitness_is_that_of_each_members_own_episodes(half_trained: Path) -> None:
    algorithm = new(half_trained, fitness="success")
    rollout = collected(algorithm).clone()
    after = sub_dict(rollout, "next")
    after["success"] = after["done"] & (torch.arange(8) % 4 == 2)[:, None, None]
    assert algorithm.fitness(rollout).tolist() == [0.0, 0.0, 1.0, 0.0]
    after["invalid"] |= (torch.arange(8) % 4 == 1)[:, None, None]
    assert algorithm.fitness(rollout).isnan().tolist() == [False, True, False, False]


def test_members_that_are_all_alike_take_no_step(half_trained: Path) -> None:
    algorithm = new(half_trained)
    rollout = collected(algorithm).clone()
    rollout["next", "reward_steps"] = torch.zeros_like(rollout["next", "reward_steps"])
    before = {k: v.clone() for k, v in algorithm.actor.state_dict().items()}
    seeds = algorithm.perturbations.seeds
    metrics = algorithm.update(rollout)
    assert metrics["grad_norm"] == 0.0
    assert all(torch.equal(v, algorithm.actor.state_dict()[k]) for k, v in before.items())
    assert not torch.equal(seeds, algorithm.perturbations.seeds)


def test_only_the_chosen_groups_learn(half_trained: Path) -> None:
    algorithm = new(half_trained, groups=("action_expert",))
    network = algorithm.actor.policy.network
    before = {k: v.clone() for k, v in network.named_parameters()}
    rollouts = rl.Rollouts(reach(), algorithm, 4, seed=0)
    for _ in range(3):
        algorithm.update(rollouts.collect())
    groups = parameter_groups(network)
    moved = {groups[k] for k, v in network.named_parameters() if not torch.equal(v, before[k])}
    assert moved == {"action_expert"}


def test_groups_that_are_not_trained_are_refused(half_trained: Path) -> None:
    policy = apply_finetuning(
        policies.load(half_trained), FinetuneConfig(trainable=("projections",))
    )
    message = r"names \['action_expert'\], of which no parameter is trained; trained are \['proj"
    with pytest.raises(ValueError, match=message):
        chosen_parameters(policy, ("projections", "action_expert"))
    assert (
        chosen_parameters(policy, ("all",)).keys()
        == chosen_parameters(policy, ("projections",)).keys()
    )
    with pytest.raises(ValueError, match="groups is empty, so nothing would be perturbed"):
        ESConfig(groups=())


def test_environments_that_do_not_fit_are_refused(half_trained: Path) -> None:
    algorithm = new(half_trained)
    with pytest.raises(ValueError, match="num_envs=6 must be a multiple of that"):
        rl.Rollouts(reach(6), algorithm, 4, seed=0)
    td = rl.Rollouts(reach(), algorithm, 4, seed=0)._chunk_env.reset()
    with pytest.raises(ValueError, match=r"num_envs=6 must be a multiple of the 4 members of nu"):
        algorithm.actor(td[:6])


@pytest.mark.slow
def test_it_learns_to_reach(half_trained: Path, small_preset: Callable) -> None:
    algorithm = new(half_trained, num_pairs=8, learning_rate=0.02)
    env = reach(32)
    before = rl.evaluate(env, algorithm.actor, 200).success_rate
    rollouts = rl.Rollouts(env, algorithm, 8, seed=0)
    for _ in range(25):
        algorithm.update(rollouts.collect())
    after = rl.evaluate(env, algorithm.actor, 200).success_rate
    assert before is not None
    assert after is not None
    assert after > before + 0.1
