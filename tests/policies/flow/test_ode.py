"""`ode`: solvers and likelihood against flows that are solved on paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from pitune.policies.flow.ode import Solver, integrate, ode_log_likelihood
from pitune.policies.flow.path import FlowOutput, TimeGrid

MEAN, STD = 0.6, 0.5
"""Of the Gaussian target."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def gaussian_field(x: Tensor, flow_time: Tensor) -> FlowOutput:
    """E[noise - action | x_t = x] when actions are N(MEAN, STD^2)."""
    t = flow_time[..., None, None]
    variance = (1 - t) ** 2 * STD**2 + t**2
    return FlowOutput((t - (1 - t) * STD**2) / variance * (x - (1 - t) * MEAN) - MEAN)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_ode_samples_of_a_gaussian_have_its_mean_and_spread(solver: Solver) -> None:
    # quantiles of the normal in place of draws: an ODE's error is then the discretization's alone
    noise = Normal(0.0, 1.0).icdf((torch.arange(4000) + 0.5) / 4000)[:, None, None]
    action = integrate(gaussian_field, noise, TimeGrid(200), solver)
    assert float(action.mean()) == pytest.approx(MEAN, rel=0.01)
    assert float(action.std()) == pytest.approx(STD, rel=0.01)
    assert torch.allclose(action, MEAN + STD * noise, atol=0.03)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_solvers_have_their_order(solver: Solver, order: int) -> None:
    # dx/dt = (1 + t) x^2 has 1 / x(0) = 1 / x(1) + 1.5
    def field(x: Tensor, flow_time: Tensor) -> FlowOutput:
        return FlowOutput((1 + flow_time[..., None, None]) * x.square())

    noise = torch.linspace(0.5, 2, 9)[:, None, None]
    exact = 1 / (1 / noise + 1.5)
    coarse, fine = (
        float((integrate(field, noise, TimeGrid(k), solver) - exact).abs().max()) for k in (64, 128)
    )
    assert coarse / fine == pytest.approx(2**order, rel=0.1)


def test_ode_likelihood_of_a_linear_flow_is_the_analytic_gaussian() -> None:
    # dx/dt = x W from the action to the noise: noise = action e^W, and log|det e^W| = trace W
    weight = torch.tensor([[0.4, 0.9], [-0.3, -1.1]], dtype=torch.float64)
    action = torch.randn(16, 3, 2, dtype=torch.float64)
    found, noise = ode_log_likelihood(lambda x, t: FlowOutput(x @ weight), action)
    exact_noise = action @ torch.linalg.matrix_exp(weight)
    exact = Normal(0.0, 1.0).log_prob(exact_noise).flatten(1).sum(1) + 3 * weight.trace()
    assert torch.allclose(noise, exact_noise, atol=1e-3)
    assert torch.allclose(found, exact, atol=1e-2)
    doubled, _ = ode_log_likelihood(lambda x, t: FlowOutput(x @ weight), action, 200)
    assert float((doubled - exact).abs().max()) < 0.3 * float((found - exact).abs().max())


def test_ode_likelihood_of_a_flow_that_changes_in_time_is_the_analytic_gaussian() -> None:
    action = MEAN + STD * torch.randn(16, 2, 1, dtype=torch.float64)
    found, noise = ode_log_likelihood(gaussian_field, action)
    exact = Normal(MEAN, STD).log_prob(action).flatten(1).sum(1)
    assert torch.allclose(found, exact, atol=5e-3)
    assert torch.allclose(noise, (action - MEAN) / STD, atol=5e-3)


def test_ode_likelihood_inverts_the_sampler() -> None:
    noise = torch.randn(8, 2, 1)
    action = integrate(gaussian_field, noise, TimeGrid(100), "heun")
    assert torch.allclose(ode_log_likelihood(gaussian_field, action)[1], noise, atol=5e-3)


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown solver='rk4'; valid: euler, midpoint, heun"):
        integrate(gaussian_field, torch.randn(2, 3, 2), TimeGrid(2), "rk4")  # type: ignore[arg-type]
