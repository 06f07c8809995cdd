"""`chain`: what is sampled is what is scored, for every kernel."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from analytic_flows import KERNELS, MASK, random_field
from pitune.policies.flow.chain import sample_chain, score_chain
from pitune.policies.flow.kernels import FlowNoise, FlowSDE, Kernel, Transition, log_prob, ode_step
from pitune.policies.flow.ode import integrate
from pitune.policies.flow.path import FlowOutput, TimeGrid, VelocityField


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# Densities


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("mode", ["all", "one"])
def test_score_of_a_sampled_chain_is_its_log_density(name: str, num_steps: int, mode: str) -> None:
    field, kernel, grid = random_field(3, 2), KERNELS[name], TimeGrid(num_steps)
    step = torch.randint(num_steps, (64,)) if mode == "one" else None
    chain, sampled = sample_chain(field, torch.randn(64, 3, 2), grid, kernel, step)
    scored, transition, _ = score_chain(field, chain, grid, kernel, step)
    assert sampled.shape == scored.shape == (64, 1 if mode == "one" else num_steps, 3, 2)
    assert torch.allclose(scored, sampled, rtol=0, atol=1e-5)

    rows = torch.arange(64)[:, None]
    ends = torch.arange(num_steps).expand(64, -1) + 1 if step is None else step[:, None] + 1
    std = transition.std.expand_as(transition.mean)
    random = std > 0
    executed = MASK > 0 if "masked" in name else torch.ones(3, 2, dtype=torch.bool)
    assert torch.equal(random, executed.expand_as(random))
    normal = Normal(transition.mean[random], std[random])
    assert torch.allclose(scored[random], normal.log_prob(chain[rows, ends][random]), atol=1e-5)
    assert scored[~random].eq(0).all()


@pytest.mark.parametrize("name", KERNELS)
def test_sampled_steps_have_the_kernels_mean_and_spread(name: str) -> None:
    field, kernel, grid = random_field(3, 2), KERNELS[name], TimeGrid(3)
    noise = torch.randn(1, 3, 2).expand(20_000, 3, 2)
    chain, _ = sample_chain(field, noise, grid, kernel)
    _, (mean, std), _ = score_chain(field, chain, grid, kernel)
    z = (chain[:, 1:] - mean) / torch.where(std > 0, std, 1.0)
    random = (std.expand_as(mean) > 0)[0]
    assert float(z.mean(0)[random].abs().max()) < 0.04
    assert float((z.std(0)[random] - 1).abs().max()) < 0.03
    assert float(z[:, ~random].abs().sum()) == pytest.approx(0, abs=1.0)


def test_only_the_stochastic_step_of_a_row_is_random() -> None:
    field, grid, num_steps = random_field(3, 2), TimeGrid(4), 4
    step = torch.arange(64) % num_steps
    chain, _ = sample_chain(field, torch.randn(64, 3, 2), grid, FlowSDE(0.5), step)
    for k in range(num_steps):
        output = field(chain[:, k : k + 1], grid.times()[k].expand(64, 1))
        expected = ode_step(chain[:, k : k + 1], output, torch.full((64, 1), k), grid).mean[:, 0]
        is_ode = (chain[:, k + 1] == expected).flatten(1).all(1)
        assert torch.equal(is_ode, step != k)


def test_scoring_one_step_of_a_random_chain_is_that_column_of_the_whole_score() -> None:
    field, grid, kernel = random_field(3, 2), TimeGrid(4), FlowSDE(0.5)
    chain, _ = sample_chain(field, torch.randn(32, 3, 2), grid, kernel)
    whole, *_ = score_chain(field, chain, grid, kernel)
    step = torch.arange(32) % 4
    one, *_ = score_chain(field, chain, grid, kernel, step)
    assert torch.allclose(one[:, 0], whole[torch.arange(32), step], atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_a_scorer_that_is_off_by_one_step_is_seen(name: str) -> None:
    field, kernel, grid = random_field(3, 2), KERNELS[name], TimeGrid(5)
    step = torch.randint(4, (64,))
    chain, sampled = sample_chain(field, torch.randn(64, 3, 2), grid, kernel, step)
    shifted, *_ = score_chain(field, chain, grid, kernel, step + 1)
    assert float((shifted - sampled).abs().max()) > 0.1
    chain, sampled = sample_chain(field, torch.randn(64, 3, 2), grid, kernel)
    shifted, *_ = score_chain(field, chain.roll(-1, dims=1), grid, kernel)
    assert float((shifted[:, :-1] - sampled[:, :-1]).abs().max()) > 0.1


class ShiftedGrid(TimeGrid):
    """A grid that ends one step early, as in the commonest mismatch of sampler and scorer."""

    def times(self, device: torch.device | None = None) -> Tensor:
        return torch.linspace(1, 0.05, self.flow_steps + 1, device=device)


@pytest.mark.parametrize("name", KERNELS)
def test_a_scorer_with_another_time_grid_is_seen(name: str) -> None:
    field, kernel = random_field(3, 2), KERNELS[name]
    chain, sampled = sample_chain(field, torch.randn(64, 3, 2), TimeGrid(5), kernel)
    shifted, *_ = score_chain(field, chain, ShiftedGrid(5), kernel)
    assert float((shifted - sampled).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["flow_sde_masked", "flow_noise_constant"])
def test_a_half_precision_field_has_a_chain_and_a_density_in_float32(name: str) -> None:
    single, kernel, grid = random_field(3, 2), KERNELS[name], TimeGrid(3)

    def half(x: Tensor, flow_time: Tensor) -> FlowOutput:
        return FlowOutput(single(x.bfloat16().float(), flow_time).velocity.bfloat16())

    def widened(x: Tensor, flow_time: Tensor) -> FlowOutput:
        return FlowOutput(half(x, flow_time).velocity.float())

    noise = torch.randn(64, 3, 2).bfloat16()
    torch.manual_seed(5)
    chain, sampled = sample_chain(half, noise, grid, kernel)
    scored, *_ = score_chain(half, chain, grid, kernel)
    assert chain.dtype == sampled.dtype == scored.dtype == torch.float32
    assert torch.allclose(scored, sampled, rtol=0, atol=1e-5)
    # only the field rounds, and none of the arithmetic around it
    torch.manual_seed(5)
    assert torch.equal(chain, sample_chain(widened, noise, grid, kernel)[0])
    assert torch.equal(scored, score_chain(widened, chain, grid, kernel)[0])
    assert torch.equal(integrate(half, noise, grid), integrate(widened, noise, grid))
    # the control: a chain stored in bfloat16 is another chain
    rounded, *_ = score_chain(half, chain.bfloat16().float(), grid, kernel)
    assert float((rounded - sampled).abs().max()) > 1e-2


@pytest.mark.parametrize(
    "make", [lambda std: FlowSDE(0.5), lambda std: FlowNoise(lambda output, time: std)]
)
def test_density_gradient_matches_finite_differences(make: Callable[[Tensor], Kernel]) -> None:
    x, x_next, velocity, std = torch.rand(4, 3, 2, 3, 2, dtype=torch.float64) + 0.1
    step = torch.tensor([[0, 1], [1, 2], [3, 2]])

    def density(velocity: Tensor, std: Tensor) -> Tensor:
        transition = make(std)(x, FlowOutput(velocity), step, TimeGrid(4))
        return log_prob(transition, x_next).sum() + 0 * std.sum()

    inputs = (velocity.requires_grad_(), std.requires_grad_())
    assert torch.autograd.gradcheck(density, inputs, atol=1e-6)


@pytest.mark.parametrize("mode", ["all", "one"])
def test_score_gradient_matches_finite_differences(mode: str) -> None:
    # The field is linear in its weights, so the score is quadratic and a central difference exact
    # for any step; the chain is data and carries no gradient.
    grid, kernel = TimeGrid(4), FlowSDE(0.5, MASK)
    step = torch.randint(4, (8,)) if mode == "one" else None

    def field_of(weight: Tensor) -> VelocityField:
        return lambda x, t: FlowOutput(x @ weight + t[..., None, None] * weight[0])

    weight = torch.randn(2, 2) / 2
    chain, _ = sample_chain(field_of(weight), torch.randn(8, 3, 2), grid, kernel, step)

    def total(weight: Tensor) -> Tensor:
        return score_chain(field_of(weight), chain, grid, kernel, step)[0].sum()

    (gradient,) = torch.autograd.grad(total(weight.requires_grad_()), weight)
    for i in range(4):
        change = 0.25 * torch.eye(4)[i].reshape(2, 2)
        difference = (total(weight + change) - total(weight - change)) / 0.5
        assert float(gradient.flatten()[i]) == pytest.approx(difference.item(), rel=1e-3, abs=1e-2)


def test_entries_without_noise_have_no_density_and_no_gradient() -> None:
    mean = torch.randn(4, 1, 3, 2, requires_grad=True)
    transition = Transition(mean, 0.2 * MASK)
    entries = log_prob(transition, torch.randn(4, 1, 3, 2))
    assert entries.isfinite().all()
    (gradient,) = torch.autograd.grad(entries.sum(), mean)
    assert gradient.isfinite().all()
    assert torch.equal(gradient != 0, (MASK > 0).expand_as(mean))


@pytest.mark.parametrize("step", [0, 1, 3])
def test_divergence_of_two_transitions_is_closed_form_and_monte_carlo(step: int) -> None:
    grid, delta, t = TimeGrid(4), 0.25, 1 - step / 4
    x, first, second = torch.randn(3, 1, 1, 3, 2)
    first, second = 0.3 * first, 0.3 * second
    steps = torch.full((1, 1), step)
    old, new = (FlowSDE(0.5)(x, FlowOutput(v), steps, grid) for v in (first, second))
    closed = kl_divergence(Normal(old.mean, old.std), Normal(new.mean, new.std)).sum()
    g = 0.5 * math.sqrt(t / (1 - min(t, 0.75)))
    weight = delta / 2 * (1 / g + g * (1 - t) / (2 * t)) ** 2
    in_velocities = weight * float((first - second).square().sum())
    assert in_velocities == pytest.approx(float(closed), rel=1e-4)
    x_next = old.mean + old.std * torch.randn(100_000, 1, 3, 2)
    gap = (log_prob(old, x_next) - log_prob(new, x_next)).flatten(1).sum(1)
    error = gap.std() / math.sqrt(len(gap))
    assert abs(gap.mean() - closed) < 4 * error
    assert error < 0.05 * closed  # or Monte Carlo would show nothing


# Errors


@pytest.mark.parametrize("flow_steps", [0, -3])
def test_a_grid_needs_a_step(flow_steps: int) -> None:
    with pytest.raises(ValueError, match=f"flow_steps={flow_steps} must be at least 1"):
        TimeGrid(flow_steps)


@pytest.mark.parametrize("noise_level", [0.0, -0.5])
def test_flow_sde_without_noise_is_refused(noise_level: float) -> None:
    with pytest.raises(ValueError, match=f"noise_level={noise_level} must be above 0"):
        FlowSDE(noise_level)


def test_scoring_the_ode_is_refused() -> None:
    chain, _ = sample_chain(random_field(3, 2), torch.randn(2, 3, 2), TimeGrid(2))
    with pytest.raises(ValueError, match="ODE has no transition density"):
        score_chain(random_field(3, 2), chain, TimeGrid(2), ode_step)


@pytest.mark.parametrize("shape", [(2, 4, 3, 2), (2, 6, 3, 2), (2, 5, 6), (5, 3, 2)])
def test_a_chain_of_another_length_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(B, 5, H, A\)"):
        score_chain(random_field(3, 2), torch.zeros(shape), TimeGrid(4), FlowSDE(0.5))
