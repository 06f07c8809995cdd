"""`dgn`, `dgn_noise`: the noise's factor, its size, its schedule and its fits, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch.nn.functional import softplus

from pitune import envs, rl
from pitune.rl import DGN, ActorCriticConfig, DGNConfig, OffPolicyConfig
from pitune.rl.algorithms import dgn
from pitune.rl.algorithms.dgn_noise import MIN_DIAGONAL, DifferenceModel, likelihood_loss

SMALL = OffPolicyConfig(
    capacity=500,
    minibatch_size=8,
    hidden=(8,),
    warmup_decisions=32,
    warmup_rounds=4,
    updates_per_decision=0.5,
    offline_share=0.5,
)


@pytest.fixture
def new(tiny_policy: Callable, demonstrations_file: Path) -> Callable[..., DGN]:
    def make(**changes: Any) -> DGN:
        torch.manual_seed(0)
        config = DGNConfig(
            learner=ActorCriticConfig(off_policy=SMALL, actor_every=2),
            hidden=(8,),
            initial_fit_steps=3,
            fit_steps=2,
            fit_every=16,
        ).with_demonstrations(demonstrations_file)
        return DGN(replace(config, **changes), tiny_policy())

    return make


def experience(algorithm: DGN) -> rl.Rollouts:
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7)
    return rl.Rollouts(envs.make(config), algorithm, 4, seed=0)


# The Gaussian


def known(with_mean: bool) -> DifferenceModel:
    """Return a model whose output is the same everywhere."""
    model = DifferenceModel(1, 2, (4,), with_mean)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.5, 2.0, -1.0, 3.0, -4.0][: len(model.head.bias)]))
    return model


@torch.no_grad()
def test_the_factor_by_hand() -> None:
    """Entries 0.5, 2 and -1 of the lower triangle, whose rows shrink with their diagonal."""
    dist = known(with_mean=True)(torch.zeros(1, 1))
    first, second = softplus(torch.tensor([0.5, -1.0])) + MIN_DIAGONAL
    expected = torch.stack([torch.stack([first, 0 * first]), torch.stack([2 * second, second])])
    assert torch.allclose(dist.scale_tril[0], expected)
    assert dist.mean[0].tolist() == [3, -4]
    assert known(with_mean=False)(torch.zeros(1, 1)).mean[0].tolist() == [0, 0]


@torch.no_grad()
def test_differences_of_zero_let_the_whole_noise_vanish() -> None:
    model = known(with_mean=False)
    model.head.bias.copy_(torch.tensor([-30.0, 2.0, -30.0]))
    assert model(torch.zeros(1, 1)).scale_tril.abs().max() < 3 * MIN_DIAGONAL


@pytest.mark.parametrize("with_mean", [False, True])
@torch.no_grad()
def test_white_noise_has_the_second_moment_of_the_guided_one(with_mean: bool) -> None:
    torch.manual_seed(0)
    model, obs = known(with_mean), torch.zeros(40_000, 1)
    dist = model(obs[:1])
    length = float(dist.covariance_matrix.diagonal(dim1=-2, dim2=-1).sum()) + 25 * with_mean
    for shape in ("data_guided", "equal_size"):
        found = model.sample(obs, shape).square().sum(1).mean()
        assert float(found) == pytest.approx(length, rel=0.03)


@torch.no_grad()
def test_the_loss_is_minus_the_mean_log_density() -> None:
    model, difference = known(with_mean=True), torch.tensor([[3.0, -4.0], [1.0, 2.0]])
    rows = {"input": torch.zeros(2, 1), "difference": difference, "masks": TensorDict({}, [2])}
    loss, metrics = likelihood_loss(model, TensorDict(rows, [2]))
    factor = model(torch.zeros(1, 1)).scale_tril[0]
    z = torch.linalg.solve_triangular(
        factor, (difference - torch.tensor([3.0, -4.0])).T, upper=False
    )
    density = -0.5 * z.square().sum(0) - factor.diagonal().log().sum() - math.log(2 * math.pi)
    assert float(loss) == pytest.approx(-float(density.mean()), rel=1e-5)
    assert metrics["noise_loss"] == loss


def test_dropped_units_are_made_up_for_by_the_others() -> None:
    torch.manual_seed(0)
    model = DifferenceModel(1, 2, (300, 200), with_mean=False, dropout=0.25)
    masks = model.dropout_masks(400)
    assert [mask.shape for mask in masks] == [(400, 300), (400, 200)]
    for mask in masks:
        assert mask.unique().tolist() == pytest.approx([0, 4 / 3])
        assert float(mask.mean()) == pytest.approx(1, abs=0.01)


# The schedule


@pytest.mark.parametrize("noise", ["data_guided", "equal_size"])
def test_fitted_noise_of_both_shapes_goes_by_the_schedule(noise: Any, new: Callable) -> None:
    algorithm = new(noise=noise, decay_decisions=100)
    algorithm.learner.off_policy.num_decisions = 50
    seen = torch.rand(100, 4)
    torch.manual_seed(0)
    full = algorithm.noise_model.sample(seen, noise)
    torch.manual_seed(0)
    assert torch.allclose(algorithm.perturbation(seen), math.exp(-0.5) * full)


def test_the_latest_outcomes_replace_the_oldest(new: Callable) -> None:
    algorithm = new(success_window=3)

    def play(*outcomes: bool) -> list[float]:
        flags = {"success": torch.tensor([outcomes])[..., None]}
        flags["done"] = torch.ones_like(flags["success"])
        flags["invalid"] = torch.zeros_like(flags["success"])
        after = TensorDict(flags, [1, len(outcomes)])
        algorithm._count_successes(TensorDict({"next": after}, [1, len(outcomes)]))
        return algorithm.outcomes

    assert play(False, False) == [0, 0]
    assert play(True, False, True) == [1, 0, 1]
    assert play(True) == [0, 1, 1]


# Fits and the warm-up


def test_the_first_fit_is_longer_than_the_later_ones(
    new: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = new()
    steps: list[int] = []

    def fit(*args: Any) -> float:
        steps.append(args[4])
        return 0.0

    monkeypatch.setattr(dgn, "fit", fit)
    rollouts = experience(algorithm)
    for _ in range(3):
        algorithm.update(rollouts.collect())
    assert steps == [3, 2, 2]


def test_the_policy_stands_still_in_the_warm_up(new: Callable) -> None:
    algorithm = new()
    rollouts = experience(algorithm)

    def weights() -> torch.Tensor:
        policy = algorithm.actor.policy
        return torch.cat([p.detach().flatten().clone() for p in policy.parameters()])

    before = weights()
    rounds = [algorithm.update(rollouts.collect())["rounds"] for _ in range(2)]
    assert rounds == [0, 4]
    assert torch.equal(weights(), before)
    assert algorithm.update(rollouts.collect())["rounds"] == 8
    assert not torch.equal(weights(), before)
