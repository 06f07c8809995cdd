"""`distributions`, `heads`: the reductions of log-probabilities and losses, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from analytic_flows import MASK, gaussian_field
from observations import observed
from pitune.policies import (
    ExactFlowConfig,
    FlowMatchingConfig,
    FlowSDEConfig,
    LikelihoodActor,
    likelihood_config,
)
from pitune.policies.flow.kernels import FlowNoise, FlowSDE, Kernel
from pitune.policies.flow.path import FlowOutput, TimeGrid
from pitune.policies.likelihood.distributions import ExactFlow, FlowChain, LossRatio
from pitune.policies.likelihood.heads import NoiseNetwork, VelocityHead
from pitune.policies.likelihood.whole_chunk import draw_flow_times

CPU = torch.device("cpu")
NUM_SCORED = int(MASK.sum())


def chain_of(kernel: Kernel, step: Tensor | None = None, **settings: Any) -> FlowChain:
    return FlowChain(
        gaussian_field,
        kernel,
        TimeGrid(3),
        FlowSDEConfig(**settings),
        step,
        (5, 3, 2),
        num_scored=NUM_SCORED,
        device=CPU,
    )


def by_hand(kernel: Kernel, chain: Tensor) -> Tensor:
    """Return the log-density of the executed entries at each of three steps (5, 3)."""
    grid, totals = TimeGrid(3), []
    for k in range(3):
        x, step = chain[:, k : k + 1], torch.full((5, 1), k)
        mean, std = kernel(x, gaussian_field(x, grid.times()[step]), step, grid)
        density = Normal(mean, std.expand_as(mean) + (MASK == 0)).log_prob(chain[:, k + 1 : k + 2])
        totals.append((density * MASK).sum((-2, -1)))
    return torch.cat(totals, 1)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("ratio", ["step", "joint"])
def test_entries_are_summed_or_averaged_and_steps_are_apart_or_summed(
    ratio: Any, reduction: Any
) -> None:
    torch.manual_seed(0)
    kernel = FlowSDE(0.5, MASK)
    dist = chain_of(kernel, ratio=ratio, reduction=reduction)
    chain, sampled = dist.sample_and_log_prob(torch.randn(5, 3, 2))
    expected = by_hand(kernel, chain) / (NUM_SCORED if reduction == "mean" else 1)
    expected = expected.sum(1) if ratio == "joint" else expected
    assert torch.allclose(dist.log_prob(chain), expected, atol=1e-4)
    assert torch.allclose(sampled, expected, atol=1e-4)


def std_of_time(output: FlowOutput, flow_time: Tensor) -> Tensor:
    return flow_time[..., None, None].expand_as(output.velocity)


@pytest.mark.parametrize("mask", [None, MASK])
def test_the_entropy_is_the_mean_over_random_entries(mask: Tensor | None) -> None:
    """Standard deviations 1, 2/3 and 1/3 at the three steps."""
    dist = chain_of(FlowNoise(std_of_time, mask))
    dist.log_prob(dist.sample())
    logs = [math.log(t) + 0.5 * math.log(2 * math.pi * math.e) for t in (1, 2 / 3, 1 / 3)]
    assert dist.entropy().tolist() == pytest.approx([sum(logs) / 3] * 5, rel=1e-4)


def test_the_entropy_of_one_random_step_is_that_steps() -> None:
    dist = chain_of(FlowNoise(std_of_time, MASK), torch.tensor([0, 1, 2, 1, 0]))
    dist.log_prob(dist.sample())
    constant = 0.5 * math.log(2 * math.pi * math.e)
    expected = [math.log(t) + constant for t in (1, 2 / 3, 1 / 3, 2 / 3, 1)]
    assert dist.entropy().tolist() == pytest.approx(expected, rel=1e-4)


# The loss ratio


@pytest.mark.parametrize("space", ["velocity", "noise"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("ratio", ["step", "joint"])
def test_the_loss_of_each_draw_by_hand(ratio: Any, reduction: Any, space: Any) -> None:
    """In the space of noise the error is that of the predicted noise x + (1 - t) v."""
    torch.manual_seed(0)
    config = FlowMatchingConfig(ratio=ratio, reduction=reduction, loss_space=space, num_draws=4)
    noise, time = torch.randn(5, 4, 3, 2), torch.rand(5, 4)
    dist = LossRatio(gaussian_field, TimeGrid(3), config, noise, time, MASK)
    chain = torch.randn(5, 4, 3, 2)  # (N, K + 1, H, A), of which the end counts
    action, t = chain[:, -1:], time[..., None, None]
    x = t * noise + (1 - t) * action
    velocity = gaussian_field(x, time).velocity
    error = velocity - (noise - action)
    if space == "noise":
        error = x + (1 - t) * velocity - noise
    losses = (error.square() * MASK).sum((-2, -1)) / (NUM_SCORED if reduction == "mean" else 1)
    expected = -losses.mean(1) if ratio == "joint" else -losses
    assert torch.allclose(dist.log_prob(chain), expected, atol=1e-4)


def test_a_loss_is_clamped_from_above() -> None:
    config = FlowMatchingConfig(ratio="step", num_draws=200, loss_clamp=3.0)
    torch.manual_seed(0)
    noise, time = torch.randn(5, 200, 3, 2), torch.rand(5, 200)
    free = LossRatio(gaussian_field, TimeGrid(3), FlowMatchingConfig(), noise, time, MASK)
    dist = LossRatio(gaussian_field, TimeGrid(3), config, noise, time, MASK)
    chain = torch.randn(5, 4, 3, 2)
    losses = -free.log_prob(chain)
    assert losses.min() < 3 < losses.max()
    assert torch.allclose(dist.log_prob(chain), -losses.clamp(max=3.0))


def test_times_of_the_grid_are_those_of_the_sampler_and_uniform_ones_stay_inside() -> None:
    torch.manual_seed(0)
    grid = TimeGrid(4)
    drawn = draw_flow_times((4000, 2), "grid", grid)
    assert drawn.unique().tolist() == [0.25, 0.5, 0.75, 1.0]
    uniform = draw_flow_times((4000, 2), "uniform", grid)
    assert 0.005 <= float(uniform.min()) < 0.01
    assert 0.99 < float(uniform.max()) <= 0.995


def test_the_loss_counts_executed_entries_only(tiny_policy: Callable) -> None:
    """Two of three steps are executed."""
    policy = tiny_policy(horizon=3)
    actor = LikelihoodActor(policy, FlowMatchingConfig(num_draws=2))
    td = actor(observed(policy, torch.rand(6, 4)))
    moved = td.clone()
    moved["draw_noise"][:, :, 2] += 1.0  # the loss of the third step alone
    assert policy.executed_mask()[2].eq(0).all()
    dist = actor.get_dist(moved)
    dist.log_prob(moved["chain"])
    losses = (dist.velocity - (moved["draw_noise"] - moved["chain"][:, -1:])).square()
    expected = -(losses * policy.executed_mask()).sum((-2, -1))
    assert torch.allclose(dist.log_prob(moved["chain"]), expected, atol=1e-4)


# Random steps


def test_the_one_random_step_is_each_with_equal_probability(tiny_policy: Callable) -> None:
    policy = tiny_policy(flow_steps=4)
    likelihood = LikelihoodActor(policy, FlowSDEConfig(stochastic_steps="one")).likelihood
    torch.manual_seed(0)
    steps = likelihood.draw(policy, 4000)["stochastic_step"]
    shares = torch.bincount(steps, minlength=4) / 4000
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.03)


def test_the_mean_of_entries_counts_executed_ones(tiny_policy: Callable) -> None:
    policy = tiny_policy(horizon=3)
    td = None
    found = {}
    for reduction in ("sum", "mean"):
        actor = LikelihoodActor(policy, FlowSDEConfig(reduction=reduction))
        if td is None:
            td = actor(observed(policy, torch.rand(6, 4)))
        found[reduction] = actor.get_dist(td).log_prob(td["chain"])
    assert torch.allclose(found["sum"], 4 * found["mean"], atol=1e-5)  # two steps of two entries


@pytest.mark.parametrize("name", ["flow_sde", "flow_noise", "velocity_gaussian"])
def test_the_terminal_deviation_is_that_of_executed_entries_in_the_last_step(
    name: str, tiny_policy: Callable
) -> None:
    policy = tiny_policy(horizon=3, flow_steps=4)
    actor = LikelihoodActor(policy, likelihood_config(name))
    td = actor(observed(policy, torch.rand(6, 4)))
    dist = actor.get_dist(td)
    dist.log_prob(td["chain"])
    last = dist.scored_std[:, -1]  # type: ignore[attr-defined]
    expected = float(last[:, policy.executed_mask().bool()].mean())
    assert actor.terminal_std(td) == pytest.approx(expected, rel=1e-4)
    first = dist.scored_std[:, 0][:, policy.executed_mask().bool()]  # type: ignore[attr-defined]
    if name == "flow_sde":
        assert expected != pytest.approx(float(first.mean()), rel=1e-2)


@pytest.mark.parametrize("name", ["flow_sde", "flow_noise", "velocity_gaussian"])
def test_only_executed_entries_are_random(name: str, tiny_policy: Callable) -> None:
    policy = tiny_policy(horizon=3, flow_steps=2)
    actor = LikelihoodActor(policy, likelihood_config(name))
    td = actor(observed(policy, torch.rand(6, 4)))
    dist = actor.get_dist(td)
    dist.log_prob(td["chain"])
    random = dist.scored_std > 0  # type: ignore[attr-defined]
    assert torch.equal(random, policy.executed_mask().bool().expand_as(random))


# Learned noise


@pytest.mark.parametrize(("bias", "std"), [(-50.0, 0.05), (0.0, 0.1), (50.0, 0.2)])
def test_a_learned_noise_is_inside_its_bounds(bias: float, std: float) -> None:
    """The middle is the geometric mean of the bounds."""
    head = NoiseNetwork(8, 2, std_min=0.05, std_max=0.2)
    with torch.no_grad():
        head.net[-1].get_parameter("bias").fill_(bias)
    output = FlowOutput(torch.zeros(3, 1, 4, 2), torch.randn(3, 1, 4, 8))
    assert torch.allclose(head(output, torch.zeros(3, 1)), torch.full((3, 1, 4, 2), std))


@pytest.mark.parametrize("dt", [0.1, 0.5])
def test_the_noise_of_a_velocity_is_scaled_by_the_step(dt: float) -> None:
    head = VelocityHead(8, 2, std=0.1, dt=dt)
    output = FlowOutput(torch.zeros(3, 1, 4, 2), torch.randn(3, 1, 4, 8))
    assert torch.allclose(head(output, torch.zeros(3, 1)), torch.full((3, 1, 4, 2), 0.1))
    with torch.no_grad():
        head.head.bias.add_(1.0)
    found = head(output, torch.zeros(3, 1))
    assert torch.allclose(found, torch.full((3, 1, 4, 2), 0.1 * math.e))


@pytest.mark.parametrize("ratio", ["joint", "step"])
def test_the_exact_density_is_that_of_the_chains_end(ratio: Any) -> None:
    """A field of zero velocity leaves the noise as it is, and one probe is exact for it."""
    config = ExactFlowConfig(ratio=ratio, num_probes=1)
    dist = ExactFlow(lambda x, time: FlowOutput(0 * x), TimeGrid(3), config, (5, 3, 2), CPU)
    torch.manual_seed(0)
    chain = torch.randn(5, 4, 3, 2)  # (N, K + 1, H, A)
    expected = Normal(0.0, 1.0).log_prob(chain[:, -1]).sum((1, 2))
    found = dist.log_prob(chain)
    assert torch.allclose(found, expected if ratio == "joint" else expected[:, None], atol=1e-4)
