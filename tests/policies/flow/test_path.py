"""`path`: paths, flow times and trajectories against exactly known targets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from analytic_flows import (
    MASK,
    MEAN,
    STD,
    gaussian_field,
    gaussian_variance,
    learned_std,
    random_field,
)
from pitune.policies.flow.chain import sample_chain, score_chain
from pitune.policies.flow.kernels import FlowNoise, FlowSDE, ode_step
from pitune.policies.flow.ode import integrate
from pitune.policies.flow.path import (
    FlowOutput,
    TimeGrid,
    interpolate,
    predicted_action,
    predicted_noise,
    sample_flow_time,
    score,
    target_velocity,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# Paths and times


def test_flow_time_one_is_noise_and_zero_is_the_action() -> None:
    action, noise = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    assert torch.equal(interpolate(action, noise, torch.tensor(1.0)), noise)
    assert torch.equal(interpolate(action, noise, torch.tensor(0.0)), action)
    chain, _ = sample_chain(random_field(3, 2), noise, TimeGrid(4))
    assert torch.equal(chain[:, 0], noise)
    times = TimeGrid(4).times()
    assert torch.equal(times, torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))


def test_the_straight_line_gives_back_its_ends() -> None:
    action, noise, t = torch.randn(5, 2), torch.randn(5, 2), torch.tensor(0.3)
    x, velocity = interpolate(action, noise, t), target_velocity(action, noise)
    assert torch.allclose(predicted_action(x, velocity, t), action, atol=1e-6)
    assert torch.allclose(predicted_noise(x, velocity, t), noise, atol=1e-6)


def test_velocity_points_from_action_to_noise() -> None:
    action, noise = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0])
    assert torch.equal(target_velocity(action, noise), torch.tensor([-0.5, 6.0]))
    earlier, later = (interpolate(action, noise, torch.tensor(t)) for t in (0.25, 0.5))
    assert torch.allclose((later - earlier) / 0.25, target_velocity(action, noise))


@pytest.mark.parametrize("t", [0.05, 0.4, 0.95])
def test_score_is_the_gradient_of_the_log_density(t: float) -> None:
    x, time = torch.randn(64, 1, 1, 1), torch.tensor(t)
    velocity = gaussian_field(x, time.expand(64, 1)).velocity
    exact = -(x - (1 - t) * MEAN) / gaussian_variance(time)
    assert torch.allclose(score(x, velocity, time), exact, atol=1e-4)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_loss_of_the_exact_velocity_is_the_irreducible_variance(t: float) -> None:
    action, noise = MEAN + STD * torch.randn(100_000, 1, 1), torch.randn(100_000, 1, 1)
    x, time = interpolate(action, noise, torch.tensor(t)), torch.full((100_000, 1), t)
    velocity = gaussian_field(x[:, None], time).velocity[:, 0]
    loss = (velocity - target_velocity(action, noise)).square().mean()
    # Var(noise - action | x_t) of the two independent Gaussians
    irreducible = float(STD**2 / gaussian_variance(torch.tensor(t)))
    assert float(loss) == pytest.approx(irreducible, rel=0.02)
    reversed_sign = (velocity - target_velocity(noise, action)).square().mean()
    assert reversed_sign > 1.5 * irreducible


def beta_deviation(times: Tensor) -> float:
    """Kolmogorov-Smirnov distance of training times from 0.999 * Beta(1.5, 1) + 0.001."""
    law = ((times.sort().values - 0.001) / 0.999).clamp(0, 1) ** 1.5
    empirical = torch.arange(len(times)) / len(times)
    return float((law - empirical).abs().max())


def test_training_times_follow_the_beta_law_and_not_its_mirror_image() -> None:
    times = sample_flow_time(100_000)
    assert times.min() >= 0.001
    assert times.max() <= 1.0
    assert float(times.mean()) == pytest.approx(0.6004, abs=0.003)
    assert beta_deviation(times) < 1.95 / math.sqrt(100_000)  # passes with probability 0.999
    assert beta_deviation(1.001 - times) > 0.1
    assert beta_deviation(torch.rand(100_000)) > 0.1


# Trajectories


def paper_velocity(x: Tensor, s: float) -> Tensor:
    """E[action - noise | x_s = x] in the paper's time, x_s = (1 - s) noise + s action."""
    variance = s**2 * STD**2 + (1 - s) ** 2
    centered = x - s * MEAN
    return MEAN + (s * STD**2 - (1 - s)) / variance * centered


def paper_chain(noise: Tensor, num_steps: int, noise_level: float) -> Tensor:
    """Euler(-Maruyama) in the paper's time, s from 0 (noise) to 1 (action)."""
    x, h, chain = noise, 1 / num_steps, [noise]
    for k in range(num_steps):
        s = k * h
        u = paper_velocity(x, s)
        x_next = x + h * u
        if noise_level > 0:
            g = noise_level * math.sqrt((1 - s) / max(s, h))
            drift = g**2 * h / (2 * (1 - s)) * (x - s * u)
            x_next = x_next - drift + g * math.sqrt(h) * torch.randn_like(x)
        x = x_next
        chain.append(x)
    return torch.stack(chain, 1)


def test_the_ode_follows_the_same_trajectory_in_both_time_conventions() -> None:
    noise = torch.randn(256, 3, 2)
    chain, _ = sample_chain(gaussian_field, noise, TimeGrid(10))
    assert torch.allclose(chain, paper_chain(noise, 10, noise_level=0.0), atol=1e-6)


def test_the_sde_follows_the_same_trajectory_in_both_time_conventions() -> None:
    noise = torch.randn(256, 3, 2)
    torch.manual_seed(5)
    chain, _ = sample_chain(gaussian_field, noise, TimeGrid(10), FlowSDE(0.7))
    torch.manual_seed(5)
    assert torch.allclose(chain, paper_chain(noise, 10, noise_level=0.7), atol=2e-6)


@pytest.mark.parametrize("num_steps", range(1, 51))
def test_the_field_is_asked_once_per_step_at_the_grids_times(num_steps: int) -> None:
    asked: list[float] = []

    def field(x: Tensor, flow_time: Tensor) -> FlowOutput:
        asked.extend(flow_time[0].tolist())
        return FlowOutput(x)

    grid, noise = TimeGrid(num_steps), torch.ones(1, 1, 1)
    expected = pytest.approx([1 - k / num_steps for k in range(num_steps)], abs=1e-6)
    integrate(field, noise, grid)
    assert asked == expected
    asked.clear()
    chain, _ = sample_chain(field, noise, grid, FlowSDE(0.5))
    assert chain.shape == (1, num_steps + 1, 1, 1)
    assert asked == expected
    asked.clear()
    score_chain(field, chain, grid, FlowSDE(0.5))
    assert asked == expected
    for solver in ("midpoint", "heun"):
        asked.clear()
        integrate(field, noise, grid, solver)
        assert len(asked) == 2 * num_steps
        assert min(asked) >= 0


def test_the_chain_without_noise_is_euler_bit_for_bit() -> None:
    field, noise, grid = random_field(3, 2), torch.randn(16, 3, 2), TimeGrid(7)
    chain, entries = sample_chain(field, noise, grid, ode_step)
    assert torch.equal(chain[:, -1], integrate(field, noise, grid, "euler"))
    assert entries.eq(0).all()


@pytest.mark.parametrize("num_steps", [1, 4])
def test_a_kernel_whose_mask_is_zero_is_the_ode_with_no_density(num_steps: int) -> None:
    field, noise, grid = random_field(3, 2), torch.randn(16, 3, 2), TimeGrid(num_steps)
    for kernel in (FlowSDE(0.5, 0 * MASK), FlowNoise(learned_std, 0 * MASK)):
        chain, entries = sample_chain(field, noise, grid, kernel)
        assert torch.allclose(chain[:, -1], integrate(field, noise, grid), atol=1e-5)
        assert entries.eq(0).all()
