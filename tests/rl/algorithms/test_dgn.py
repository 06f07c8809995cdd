"""`dgn` and its noise: what is fitted, when it acts, and what never learns from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rewards import rewarded
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import ExplorationType, set_exploration_type

from observations import observed
from pitune import envs, rl
from pitune.policies import ModelInput
from pitune.rl import DGN, ActorCriticConfig, DGNConfig, OffPolicyConfig
from pitune.rl.algorithms.dgn_noise import MIN_DIAGONAL, DifferenceModel, fit

SMALL = OffPolicyConfig(
    capacity=500,
    minibatch_size=8,
    num_critics=2,
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
            hidden=(16,),
            initial_fit_steps=50,
            fit_steps=5,
            fit_every=32,
        ).with_demonstrations(demonstrations_file)
        return DGN(replace(config, **changes), tiny_policy())

    return make


def experience(algorithm: DGN) -> rl.Rollouts:
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7)
    return rl.Rollouts(envs.make(config), algorithm, 4, seed=0)


def fitted(
    difference: Tensor, with_mean: bool = False, num_steps: int = 1500
) -> torch.distributions.MultivariateNormal:
    """Return what a model makes of differences (N, X) at an observation that says nothing."""
    torch.manual_seed(0)
    model = DifferenceModel(1, difference.shape[1], (16,), with_mean)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    read = torch.zeros(len(difference), 1)
    fit(model, optimizer, read, difference, num_steps, 512)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    fit(model, optimizer, read, difference, num_steps // 3, len(difference))
    with torch.no_grad():
        return model(read[:1])


FACTOR = torch.tensor([[0.5, 0.0, 0.0], [0.3, 0.4, 0.0], [-0.2, 0.1, 0.3]])
BIAS = torch.tensor([0.6, -0.4, 0.2])


@pytest.fixture
def differences() -> Tensor:
    """Return differences of a known covariance and a known bias."""
    torch.manual_seed(1)
    return BIAS + torch.randn(4000, 3) @ FACTOR.T


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# The noise model


def test_with_zero_mean_the_second_moment_is_recovered(differences: Tensor) -> None:
    second = differences.T @ differences / len(differences)
    found = fitted(differences)
    assert off(found.covariance_matrix[0], second) < 0.05
    assert torch.equal(found.mean, torch.zeros(1, 3))
    assert off(found.covariance_matrix[0], differences.T.cov()) > 0.3  # it is no covariance


def test_with_a_mean_covariance_and_bias_are_recovered(differences: Tensor) -> None:
    found = fitted(differences, with_mean=True)
    assert off(found.covariance_matrix[0], FACTOR @ FACTOR.T) < 0.08
    assert off(found.mean[0], BIAS) < 0.05


def test_a_sign_that_is_turned_shows_in_the_mean_and_not_in_the_second_moment(
    differences: Tensor,
) -> None:
    """Control: with zero mean the noise cannot tell towards from away."""
    turned, with_mean = fitted(-differences), fitted(-differences, with_mean=True)
    second = differences.T @ differences / len(differences)
    assert off(turned.covariance_matrix[0], second) < 0.05
    assert off(with_mean.mean[0], -BIAS) < 0.05


def test_the_density_is_the_normal_one_and_its_gradient_is_right() -> None:
    torch.manual_seed(0)
    model = DifferenceModel(2, 3, (4,), with_mean=True).double()
    read = torch.randn(5, 2, dtype=torch.float64)
    value = torch.randn(5, 3, dtype=torch.float64)
    given = model(read)
    factor = given.scale_tril
    assert torch.equal(factor, factor.tril())
    assert (factor.diagonal(dim1=-2, dim2=-1) >= MIN_DIAGONAL).all()
    z = torch.linalg.solve_triangular(factor, (value - given.mean)[..., None], upper=False)
    by_hand = -0.5 * z.square().sum((1, 2)) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    by_hand = by_hand - 1.5 * math.log(2 * math.pi)
    assert torch.allclose(given.log_prob(value), by_hand)

    def loss(bias: Tensor) -> Tensor:
        head = model.head
        return torch.func.functional_call(
            model, {"head.bias": bias, "head.weight": head.weight}, (read,)
        ).log_prob(value)

    bias = model.head.bias.detach().clone().requires_grad_(True)
    assert torch.autograd.gradcheck(loss, (bias,))


def test_a_policy_that_does_as_demonstrated_is_left_alone() -> None:
    found = fitted(torch.zeros(512, 3), num_steps=1500)
    assert found.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt().max() < 0.02


def test_noise_of_equal_size_has_the_same_length_and_no_direction() -> None:
    torch.manual_seed(0)
    model = DifferenceModel(1, 3, (4,), with_mean=False)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5, 0.2, -2.0]))
    read = torch.zeros(60_000, 1)
    guided, white = model.sample(read), model.sample(read, "equal_size")
    length = [float(noise.square().sum(1).mean()) for noise in (guided, white)]
    assert length[0] == pytest.approx(length[1], rel=0.03)
    correlation = torch.corrcoef(white.T) - torch.eye(3)
    assert correlation.abs().max() < 0.02
    assert (torch.corrcoef(guided.T) - torch.eye(3)).abs().max() > 0.5
    assert float(white.std(0).max() / white.std(0).min()) == pytest.approx(1.0, abs=0.03)


def test_the_noise_depends_on_the_observation() -> None:
    """Differences along one axis on the left and along the other on the right."""
    torch.manual_seed(0)
    read = torch.randint(2, (2000, 1)).float() * 2 - 1
    axis = torch.cat([read > 0, read < 0], 1).float()
    difference = axis * torch.randn(2000, 2) + 0.02 * torch.randn(2000, 2)
    model = DifferenceModel(1, 2, (32,), with_mean=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    fit(model, optimizer, read, difference, 600, 256)
    with torch.no_grad():
        std = model(torch.tensor([[1.0], [-1.0]])).stddev
    assert std[0, 0] > 5 * std[0, 1]
    assert std[1, 1] > 5 * std[1, 0]
    with pytest.raises(
        FloatingPointError,
        match="noise model loss is nan in step 0 of 1; lower its learning rate, check the scale",
    ):
        fit(model, optimizer, read, torch.full((2000, 2), float("nan")), 1, 8)


def test_dropout_keeps_the_covariance_right_where_nothing_was_demonstrated() -> None:
    """One difference a state: without dropout the model learns each by heart."""
    torch.manual_seed(0)
    read, held_out = torch.randn(100, 6), torch.randn(500, 6)
    found = {}
    for dropout in (0.0, 0.5):
        torch.manual_seed(1)
        model = DifferenceModel(6, 8, (64, 64), with_mean=False, dropout=dropout)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.manual_seed(2)
        fit(model, optimizer, read, torch.randn(100, 8), 1000, 64)
        with torch.no_grad():
            given = model(held_out)
            for mode in (True, False):  # outside of fitting none is dropped
                assert torch.equal(given.scale_tril, model.train(mode)(held_out).scale_tril)
            found[dropout] = float(given.log_prob(torch.randn(500, 8)).mean())
    truth = -8 * 0.5 * (math.log(2 * math.pi) + 1)
    assert found[0.5] > 3 * truth
    assert found[0.0] < 10 * truth


# The algorithm


def test_a_difference_is_the_demonstrated_action_minus_that_of_zero_noise(new: Callable) -> None:
    algorithm = new()
    policy, demonstrated = algorithm.actor.policy, algorithm.demonstrated
    seen, difference = algorithm.differences()
    own = policy.sample_actions(
        ModelInput.of(demonstrated), torch.zeros(len(demonstrated), *policy.chunk_shape)
    )
    expected = (demonstrated["action"] - own) / policy.preprocessor.action_scale
    assert torch.allclose(difference, expected.flatten(1), atol=1e-4)
    assert torch.equal(seen, demonstrated["model_input", "state"])
    again = algorithm.differences()[1]
    assert torch.equal(difference, again)  # nothing is drawn


def test_noise_acts_after_the_first_rollout_and_never_in_evaluation(new: Callable) -> None:
    algorithm = new()
    rollouts = experience(algorithm)
    obs = observed(algorithm.actor.policy, torch.rand(6, 4))
    given = obs.clone().set("noise", algorithm.actor.policy.draw_noise(6))

    def acted(mode: ExplorationType) -> Tensor:
        with set_exploration_type(mode):
            return algorithm.actor(given.clone())["action"]

    assert algorithm.exploring.perturb is None
    assert torch.equal(acted(ExplorationType.RANDOM), acted(ExplorationType.DETERMINISTIC))
    metrics = algorithm.update(rewarded(rollouts.collect()))
    assert algorithm.learner.off_policy.warming_up  # critics are fitted to what the noise found
    assert algorithm.exploring.perturb is not None
    assert metrics["noise_std"] > 0
    deployed = algorithm.actor.policy.sample_actions(ModelInput.of(obs), given["noise"])
    assert torch.equal(acted(ExplorationType.DETERMINISTIC), deployed)
    assert (acted(ExplorationType.RANDOM) - deployed).abs().max() > 1e-3
    silent = new(noise="none")
    silent.update(rewarded(experience(silent).collect()))
    assert silent.exploring.perturb is None


def test_fitting_the_noise_leaves_policy_and_critics_alone_and_they_leave_it(
    new: Callable,
) -> None:
    algorithm = new()
    rollouts = experience(algorithm)
    for _ in range(3):
        algorithm.update(rewarded(rollouts.collect()))
    learner = [
        *algorithm.actor.policy.parameters(),
        *algorithm.learner.off_policy.critic.parameters(),
    ]
    noise = list(algorithm.noise_model.parameters())
    for parameter in (*learner, *noise):
        parameter.grad = None
    before = [p.detach().clone() for p in learner]
    algorithm.since_fit = algorithm.config.fit_every
    assert algorithm._refit(0)
    assert all(p.grad is None for p in learner)
    assert all(torch.equal(p, old) for p, old in zip(learner, before, strict=True))
    before = [p.detach().clone() for p in noise]
    for parameter in noise:
        parameter.grad = None
    algorithm.learner.learn(4)
    assert all(p.grad is None for p in noise)
    assert all(torch.equal(p, old) for p, old in zip(noise, before, strict=True))


def test_the_noise_is_fitted_again_when_it_is_due(new: Callable) -> None:
    algorithm = new(fit_every=32)
    rollouts = experience(algorithm)
    fits = ["noise_loss" in algorithm.update(rewarded(rollouts.collect())) for _ in range(6)]
    assert fits == [True, False, True, False, True, False]


def test_shuffled_differences_are_the_same_ones_elsewhere(new: Callable) -> None:
    seen = {}
    for shuffle in (False, True):
        algorithm = new(
            shuffle_differences=shuffle,
            initial_fit_steps=400,
            noise_learning_rate=1e-2,
            dropout=0.0,
        )
        seen[shuffle] = algorithm.update(rewarded(experience(algorithm).collect()))
    assert seen[True]["difference"] == pytest.approx(seen[False]["difference"])
    assert seen[True]["noise_loss"] > seen[False]["noise_loss"] + 0.1  # the state says nothing


# The schedule


def test_the_exponential_schedule_counts_decisions_after_the_warm_up(new: Callable) -> None:
    algorithm = new(decay_decisions=100)
    assert algorithm.noise_scale() == 1.0
    algorithm.learner.off_policy.num_decisions = 50
    assert algorithm.noise_scale() == pytest.approx(math.exp(-0.5))
    rollouts = experience(algorithm)
    algorithm.learner.off_policy.num_decisions = 0
    scales = [algorithm.update(rewarded(rollouts.collect()))["noise_scale"] for _ in range(4)]
    assert scales == pytest.approx([1.0, 1.0, math.exp(-0.16), math.exp(-0.32)])
    torch.manual_seed(0)
    seen = torch.rand(2000, 4)
    torch.manual_seed(0)
    full = algorithm.noise_model.sample(seen)
    torch.manual_seed(0)
    assert torch.allclose(algorithm.perturbation(seen), math.exp(-0.32) * full)


def test_white_noise_goes_by_the_same_schedule(new: Callable) -> None:
    algorithm = new(noise="gaussian", exploration_std=0.2, decay_decisions=100)
    seen = torch.rand(5000, 4)
    for decisions in (0, 100):
        algorithm.learner.off_policy.num_decisions = decisions
        expected = 0.2 * math.exp(-decisions / 100)
        assert float(algorithm.perturbation(seen).std()) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("name", "value", "range_"),
    [
        ("decay_decisions", 0, "at least 1"),
        ("success_window", 0, "at least 1"),
        ("noise_minibatch_size", 0, "at least 1"),
        ("fit_every", 0, "at least 1"),
        ("dropout", 1.0, "at least 0 and below 1"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float, range_: str) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name}={value} must be {range_}"):
        DGNConfig(**settings)


def test_success_switches_the_noise_off_and_failure_on_again(new: Callable) -> None:
    algorithm = new(schedule="success", success_window=10, exploration_std=0.05)
    seen = torch.rand(3000, 4)
    algorithm.outcomes = [1.0] * 9
    assert algorithm.noise_scale() == 1.0  # too few to say
    algorithm.outcomes = [0.0] * 5 + [1.0] * 5
    assert algorithm.noise_scale() == 0.0
    assert float(algorithm.perturbation(seen).std()) == pytest.approx(0.05, rel=0.05)
    algorithm.outcomes = [0.0] * 6 + [1.0] * 4
    assert algorithm.noise_scale() == 1.0
    assert new(schedule="constant").noise_scale() == 1.0


def test_the_latest_episodes_count_in_order_of_time(new: Callable) -> None:
    algorithm = new(success_window=3)
    done = torch.tensor([[True, False, True], [False, True, True]])[..., None]
    success = torch.tensor([[True, False, False], [False, True, False]])[..., None]
    invalid = torch.tensor([[False, False, False], [False, False, True]])[..., None]
    after = TensorDict({"done": done, "success": success, "invalid": invalid}, [2, 3])
    algorithm._count_successes(TensorDict({"next": after}, [2, 3]))
    assert algorithm.outcomes == [1.0, 1.0, 0.0]  # t = 0, 1, 2; the invalid one is left out
    algorithm._count_successes(TensorDict({"next": after}, [2, 3]))
    assert algorithm.outcomes == [1.0, 1.0, 0.0]
    assert len(algorithm.outcomes) == 3


def test_the_outcomes_that_decide_survive_a_file(new: Callable) -> None:
    first, second = (new(schedule="success", success_window=4) for _ in range(2))
    first.outcomes, first.since_fit = [1.0, 1.0, 0.0, 1.0], 7
    second.load_training_state(first.training_state())
    assert second.noise_scale() == first.noise_scale() == 0.0
    assert (second.since_fit, second.num_fits) == (7, 0)
    assert second.exploring.perturb is None
    first.num_fits = 1
    second.load_training_state(first.training_state())
    assert second.exploring.perturb is not None  # a resumed run explores at once


@pytest.mark.parametrize("noise", ["gaussian", "equal_size"])
def test_the_baselines_are_settings(noise: str, new: Callable) -> None:
    algorithm = new(noise=noise, exploration_std=0.2, schedule="constant")
    rollouts = experience(algorithm)
    for _ in range(3):
        algorithm.update(rewarded(rollouts.collect()))
    noise_drawn = algorithm.perturbation(torch.full((20_000, 4), 0.5))
    correlation = torch.corrcoef(noise_drawn.T) - torch.eye(4)
    assert correlation.abs().max() < 0.03
    if noise == "gaussian":
        assert float(noise_drawn.std()) == pytest.approx(0.2, rel=0.02)
