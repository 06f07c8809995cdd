"""Likelihoods of whole actions (FPO's loss, the exact ODE), and F5R's Gaussian velocity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Normal

from pitune.policies import (
    FlowMatchingConfig,
    FlowPolicy,
    LikelihoodActor,
    ModelInput,
    likelihood_config,
)
from pitune.policies.flow.chain import sample_chain
from pitune.policies.flow.kernels import FlowSDE, Transition, log_prob
from pitune.policies.flow.ode import ode_log_likelihood
from pitune.policies.flow.path import FlowOutput, TimeGrid
from pitune.policies.likelihood.distributions import LossRatio
from pitune.policies.likelihood.heads import VelocityHead
from pitune.policies.likelihood.whole_chunk import draw_flow_times

MEAN, STD = 0.6, 0.5
"""Of the Gaussian target."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def acted(
    policy: FlowPolicy, num: int = 32, kernel: str = "flow_sde", **likelihood: Any
) -> tuple[LikelihoodActor, TensorDict]:
    actor = LikelihoodActor(policy, likelihood_config(kernel, **likelihood))
    return actor, actor(observations(policy, num))


def observations(policy: FlowPolicy, num: int) -> TensorDict:
    obs = TensorDict({"state": torch.rand(num, 4)}, [num])
    return policy.observation_preprocessor(())(obs)


def gaussian_field(x: Tensor, flow_time: Tensor) -> FlowOutput:
    """The exact velocity where actions are N(MEAN, STD^2)."""
    t = flow_time[..., None, None]
    variance = (1 - t) ** 2 * STD**2 + t**2
    slope = (t - (1 - t) * STD**2) / variance
    return FlowOutput(-MEAN + slope * (x - (1 - t) * MEAN))


# The flow-matching loss as a likelihood (FPO)


@pytest.mark.parametrize("ratio", ["joint", "step"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("space", ["velocity", "noise"])
def test_the_ratio_of_losses_is_one_on_the_stored_draws(
    ratio: str, reduction: str, space: str, tiny_policy: Callable
) -> None:
    """T-I7."""
    options: dict[str, Any] = {"ratio": ratio, "reduction": reduction, "loss_space": space}
    actor, td = acted(tiny_policy(horizon=3), kernel="flow_matching", num_draws=5, **options)
    assert td["action_log_prob"].shape == ((32,) if ratio == "joint" else (32, 5))
    assert set(actor.out_keys) <= set(td.keys())
    for size in (32, 7):
        again = torch.cat([actor.get_dist(p).log_prob(p["chain"]) for p in td.split(size)])
        assert float((again - td["action_log_prob"]).abs().max().detach()) < 1e-5
    fresh = td.clone()
    fresh["draw_noise"] = torch.randn_like(fresh["draw_noise"])
    other = actor.get_dist(fresh).log_prob(fresh["chain"])
    assert float((other - td["action_log_prob"]).abs().max().detach()) > 0.1  # the control


def test_draws_are_fresh_for_every_decision_and_know_nothing_of_the_action(
    tiny_policy: Callable,
) -> None:
    """T-I8."""
    _, td = acted(tiny_policy(), num=4000, kernel="flow_matching", num_draws=3)
    noise = td["draw_noise"]
    assert noise.shape == (4000, 3, 2, 2)
    assert len(noise.flatten(1).unique(dim=0)) == 4000
    assert not torch.equal(noise[:, 0], noise[:, 1])
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    for other in (td["chain"][:, -1], td["chain"][:, 0]):
        product = (noise[:, 0] * other).mean(0) / other.std(0)
        assert float(product.abs().max()) < 0.07


def test_the_loss_is_that_of_cloning_on_the_executed_entries(tiny_policy: Callable) -> None:
    policy = tiny_policy(horizon=3, executed=2)
    actor, td = acted(policy, kernel="flow_matching", num_draws=2, ratio="step", reduction="mean")
    action = policy.preprocessor.unnormalize_action(td["chain"][:, -1])
    for draw in range(2):
        entries = policy.loss(
            ModelInput.of(td), action, td["draw_noise"][:, draw], td["draw_time"][:, draw]
        )
        by_hand = -entries[:, :2].mean((1, 2))
        assert torch.allclose(td["action_log_prob"][:, draw], by_hand, atol=1e-4)
    whole = -policy.loss(
        ModelInput.of(td), action, td["draw_noise"][:, 0], td["draw_time"][:, 0]
    ).mean((1, 2))
    assert not torch.allclose(td["action_log_prob"][:, 0], whole, atol=1e-2)
    actor.likelihood.config = likelihood_config(
        "flow_matching", ratio="step", reduction="mean", loss_space="noise"
    )
    in_noise = actor.get_dist(td).log_prob(td["chain"])
    weight = (1 - td["draw_time"]).square()
    assert torch.allclose(in_noise, td["action_log_prob"] * weight, atol=1e-4)


def test_moving_towards_an_action_raises_its_ratio(tiny_policy: Callable) -> None:
    """T-B9: the sign. A gradient step on the cloning loss of a chunk makes it likelier."""
    actor, td = acted(tiny_policy(), kernel="flow_matching", num_draws=64, ratio="joint")
    policy = actor.policy
    action = policy.preprocessor.unnormalize_action(td["chain"][:, -1])
    torch.manual_seed(1)
    loss = torch.stack([policy.loss(ModelInput.of(td), action).mean() for _ in range(64)]).mean()
    parameters = list(policy.parameters())
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
    ):
        if gradient is not None:
            parameter.data -= 0.01 * gradient
    log_ratio = actor.get_dist(td).log_prob(td["chain"]) - td["action_log_prob"]
    assert float(log_ratio.mean()) > 0.01
    assert float(-log_ratio.mean()) < 0  # the inverted ratio, new minus old loss, would fall


def test_a_policy_gradient_through_losses_learns_the_better_action(tiny_policy: Callable) -> None:
    """The sign once more, end to end: actions above the mean are good; the mean must rise."""
    moves = {}
    for sign in (1.0, -1.0):
        torch.manual_seed(0)
        actor, td = acted(tiny_policy(), num=512, kernel="flow_matching", ratio="joint")
        action: Tensor = td["action"]
        good = action.mean((1, 2))
        advantage = (good - good.mean()) / good.std()
        optimizer = torch.optim.SGD(actor.parameters(), lr=0.02)
        noise = torch.randn(512, 2, 2)
        before = actor.policy.sample_actions(ModelInput.of(td), noise).mean()
        for _ in range(5):
            log_ratio = actor.get_dist(td).log_prob(td["chain"]) - td["action_log_prob"]
            optimizer.zero_grad()
            (-(sign * log_ratio).exp() * advantage).mean().backward()
            torch.nn.utils.clip_grad_norm_(actor.parameters(), 0.5)
            optimizer.step()
        moves[sign] = float(
            (actor.policy.sample_actions(ModelInput.of(td), noise).mean() - before).detach()
        )
    assert moves[1.0] > 0.01
    assert moves[-1.0] < -0.01  # negative control: the inverted ratio of some published code


@pytest.mark.parametrize("law", ["training", "grid", "uniform"])
def test_flow_times_of_draws_follow_their_law(law: Any) -> None:
    times = draw_flow_times((20_000, 3), law, TimeGrid(4))
    assert times.shape == (20_000, 3)
    assert times.min() > 0
    assert times.max() <= 1
    if law == "training":
        assert float(times.mean()) == pytest.approx(0.6004, abs=0.005)
    if law == "grid":
        assert sorted(times.unique().tolist()) == [0.25, 0.5, 0.75, 1.0]
    if law == "uniform":
        assert float(times.mean()) == pytest.approx(0.5, abs=0.005)
        assert 0.005 <= float(times.min()) < 0.01


def test_scoring_a_loss_without_its_draws_is_refused(tiny_policy: Callable) -> None:
    actor, td = acted(tiny_policy(), kernel="flow_matching")
    with pytest.raises(ValueError, match="input has no draw_noise and draw_time, pass the"):
        actor.get_dist(td.select("model_input", "chain"))
    with pytest.raises(ValueError, match="the flow_matching likelihood has no entropy"):
        actor.get_dist(td).entropy()


# The exact likelihood


def test_the_exact_likelihood_of_a_linear_field_is_the_normal_density() -> None:
    """T-B8, full and probed; with one entry per row a probe is exact."""
    action = torch.linspace(-0.5, 1.7, 7, dtype=torch.float64)[:, None, None]
    expected = Normal(MEAN, STD).log_prob(action).flatten()
    full, _ = ode_log_likelihood(gaussian_field, action)
    assert torch.allclose(full, expected, atol=1e-3)
    for num_probes in (1, 3):
        probed, _ = ode_log_likelihood(gaussian_field, action, num_probes=num_probes)
        assert torch.allclose(probed, full, atol=1e-10)


def test_hutchinsons_divergence_is_unbiased() -> None:
    mixing = torch.tensor([[0.5, 0.8, -0.3], [0.1, -0.7, 0.4], [-0.6, 0.2, 0.3]]).double()

    def field(x: Tensor, flow_time: Tensor) -> FlowOutput:
        return FlowOutput((x.flatten(2) @ mixing.T).reshape(x.shape))

    action = torch.randn(1, 1, 3, dtype=torch.float64)
    exact, _ = ode_log_likelihood(field, action, flow_steps=5)
    rows = action.expand(2000, 1, 3)
    each, _ = ode_log_likelihood(field, rows, flow_steps=5, num_probes=1)
    error = float(each.std()) / math.sqrt(2000)
    assert float(each.std()) > 0.1  # a single probe is not exact here
    assert abs(float(each.mean() - exact)) < 4 * error
    trace = float(mixing.trace())
    assert abs(float(each.mean() - exact) + 2 * trace) > 0.05  # the control: sign of the divergence


@pytest.mark.parametrize("ratio", ["joint", "step"])
def test_the_exact_likelihood_stands_behind_get_dist(ratio: str, tiny_policy: Callable) -> None:
    actor, td = acted(tiny_policy(), num=4, kernel="ode", ratio=ratio)
    policy = actor.policy
    by_hand, _ = ode_log_likelihood(
        policy.field(policy.encode(ModelInput.of(td))), td["chain"][:, -1]
    )
    assert torch.allclose(td["action_log_prob"].reshape(4), by_hand, atol=1e-5)
    again = actor.get_dist(td).log_prob(td["chain"])
    assert torch.allclose(again, td["action_log_prob"], atol=1e-5)
    noise = td["chain"][:, 0]
    assert torch.allclose(td["action"], policy.sample_actions(ModelInput.of(td), noise), atol=1e-5)


def marginal_density(kernel: Callable, points: Tensor, grid: TimeGrid) -> Tensor:
    """Return the density of a sampler's end at points, averaged over its last step's starts."""
    chain, _ = sample_chain(gaussian_field, torch.randn(100_000, 1, 1), grid, kernel)
    x = chain[:, -2:-1]
    step = torch.full(x.shape[:2], grid.flow_steps - 1)
    last: Transition = kernel(x, gaussian_field(x, grid.times()[step]), step, grid)
    return torch.stack([log_prob(last, p.expand_as(x)).exp().mean() for p in points])


def test_flow_sdes_marginal_is_the_exact_likelihood_of_the_ode() -> None:
    """Of a linear field, for many steps; a wrong sign of the drift's correction is seen."""
    points, grid = torch.tensor([-0.2, 0.3, 0.6, 1.0, 1.5]), TimeGrid(100)
    exact, _ = ode_log_likelihood(gaussian_field, points[:, None, None])
    found = marginal_density(FlowSDE(0.5), points, grid)
    assert torch.allclose(found, exact.exp(), rtol=0.08, atol=0.01)

    def wrong(x: Tensor, output: FlowOutput, step: Tensor, grid: TimeGrid) -> Transition:
        mean, std = FlowSDE(0.5)(x, output, step, grid)
        ode = x - grid.dt * output.velocity
        return Transition(2 * ode - mean, std)

    assert not torch.allclose(marginal_density(wrong, points, grid), exact.exp(), rtol=0.2)


# The Gaussian velocity (F5R-TTS)


def test_the_velocity_head_starts_constant_and_is_scored_as_a_normal(tiny_policy: Callable) -> None:
    actor, td = acted(tiny_policy(flow_steps=4), kernel="velocity_gaussian", std=0.2, ratio="step")
    assert isinstance(actor.likelihood.head, VelocityHead)
    assert actor.terminal_std(td) == pytest.approx(0.2, rel=1e-5)
    policy, dt = actor.policy, 0.25
    with torch.no_grad():
        field = policy.field(policy.encode(ModelInput.of(td)))
        velocity = field(td["chain"][:, :-1], policy.grid.times()[:4].expand(32, 4)).velocity
    # in terms of velocities: u = (x - x_next) / dt ~ N(v, (0.2 / dt)^2), whose density is dt times
    sampled = (td["chain"][:, :-1] - td["chain"][:, 1:]) / dt
    density = Normal(velocity, 0.2 / dt).log_prob(sampled) - math.log(dt)
    assert torch.allclose(td["action_log_prob"], density.sum((-2, -1)), atol=1e-3)


def test_the_velocity_head_has_no_bounds_and_learns() -> None:
    head = VelocityHead(16, 3, 0.1, 0.25)
    output = FlowOutput(torch.zeros(8, 2, 4, 3), torch.randn(8, 2, 4, 16))
    assert torch.allclose(head(output, torch.zeros(8, 2)), torch.tensor(0.1))
    torch.nn.init.normal_(head.head.weight, std=2.0)
    std = head(output, torch.zeros(8, 2))
    assert float(std.min().detach()) < 0.01
    assert float(std.max().detach()) > 1.0
    with pytest.raises(ValueError, match="the velocity head needs the network's hidden features"):
        head(FlowOutput(torch.zeros(8, 2, 4, 3)), torch.zeros(8, 2))


# Words


@pytest.mark.parametrize("kernel", ["flow_matching", "ode"])
def test_one_random_step_means_nothing_where_no_step_is_random(kernel: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'stochastic_steps'"):
        likelihood_config(kernel, stochastic_steps="one")


def test_noise_on_the_chunk_is_for_likelihoods_that_need_no_density() -> None:
    with pytest.raises(ValueError, match=r"action_noise=-0\.1 must be at least 0"):
        likelihood_config("flow_matching", action_noise=-0.1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'action_noise'"):
        likelihood_config("flow_sde", action_noise=0.1)


@pytest.mark.parametrize(
    ("kernel", "setting", "message"),
    [
        ("flow_matching", {"num_draws": 0}, "num_draws=0 must be at least 1"),
        ("ode", {"num_probes": -1}, "num_probes=-1 must be at least 0"),
        ("velocity_gaussian", {"std": 0.0}, "std=0.0 must be above 0"),
        (
            "flow_matching",
            {"draw_times": "never"},
            "draw_times='never' is unknown; valid: 'training'",
        ),
        (
            "flow_matching",
            {"loss_space": "x"},
            "loss_space='x' is unknown; valid: 'velocity'",
        ),
    ],
)
def test_settings_of_a_likelihood_are_checked(kernel: str, setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        likelihood_config(kernel, **setting)


def test_an_unknown_likelihood_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown likelihood 'flow_sd'; did you mean 'flow_sde'"):
        likelihood_config("flow_sd")


def test_the_loss_ratio_samples_the_deployed_flow() -> None:
    grid = TimeGrid(3)
    draws = torch.randn(5, 2, 1, 1), torch.rand(5, 2)
    dist = LossRatio(gaussian_field, grid, FlowMatchingConfig(), *draws, torch.ones(1, 1))
    noise = torch.randn(5, 1, 1)
    expected, _ = sample_chain(gaussian_field, noise, grid)
    assert torch.equal(dist.sample_from(noise), expected)
    assert dist.sample().shape == (5, 4, 1, 1)
