"""`FlowSDE`: its formula, and the marginals that it keeps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from analytic_flows import MEAN, STD, gaussian_field, mixture_field, mixture_samples, scaled_drift
from pitune.policies.flow.chain import sample_chain
from pitune.policies.flow.kernels import FlowSDE, Kernel, Transition, log_prob, ode_step
from pitune.policies.flow.path import FlowOutput, TimeGrid


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# Flow-SDE: its formula and its marginals


def test_flow_sde_has_the_weights_worked_by_hand() -> None:
    # noise_level 0.5, K = 4. At t = 1, g^2 = 0.25 * 1 / (1 - 0.75) = 1: std = sqrt(0.25) = 0.5 and
    # the noise's weight is 0.75 - 1 * 0.25 / 2 = 0.625; at t = 1/4, g^2 = 1/12
    std = torch.tensor([0.5, math.sqrt(3) / 4, 0.25, math.sqrt(1 / 48)])
    noise_weight = torch.tensor([0.625, 0.375, 0.1875, -1 / 24])
    action_weight = torch.tensor([0.25, 0.5, 0.75, 1.0])
    step = torch.arange(4)[None]
    t = TimeGrid(4).times()[:4][None, :, None, None]
    zero, one = torch.zeros(1, 4, 1, 1), torch.ones(1, 4, 1, 1)
    kernel = FlowSDE(0.5)
    only_noise = kernel(t, FlowOutput(one), step, TimeGrid(4))  # action 0, noise 1
    only_action = kernel(1 - t, FlowOutput(-one), step, TimeGrid(4))  # action 1, noise 0
    assert torch.allclose(only_noise.mean.flatten(), noise_weight, atol=1e-6)
    assert torch.allclose(only_action.mean.flatten(), action_weight, atol=1e-6)
    assert torch.allclose((only_noise.std + zero).flatten(), std, atol=1e-6)


def test_one_flow_sde_step_is_a_gaussian_around_the_ode_worked_by_hand() -> None:
    # K = 1 and t = 1: N(noise - v - a^2 / 2 * noise, a^2)
    x, velocity, level = torch.randn(8, 1, 3, 2), torch.randn(8, 1, 3, 2), 0.7
    step = torch.zeros(8, 1, dtype=torch.int64)
    mean, std = FlowSDE(level)(x, FlowOutput(velocity), step, TimeGrid(1))
    assert torch.allclose(mean, x - velocity - level**2 / 2 * x, atol=1e-6)
    assert torch.allclose(std, torch.tensor(level))
    x_next = torch.randn(8, 1, 3, 2)
    by_hand = -((x_next - (x - velocity - 0.245 * x)) ** 2) / 0.98 - math.log(0.7)
    by_hand = by_hand - math.log(math.sqrt(2 * math.pi))
    assert torch.allclose(log_prob(Transition(mean, std), x_next), by_hand, atol=1e-4)


@pytest.mark.parametrize(("num_steps", "step", "tolerance"), [(2, 1, 1e-12), (10, 7, 1e-6)])
def test_the_algebraic_forms_of_flow_sde_agree(num_steps: int, step: int, tolerance: float) -> None:
    # the kernel's times are float32; at t = 1/2, K = 2 they are exact, and so is g = noise_level
    x, v = torch.randn(2, 500, 1, 3, 2, dtype=torch.float64)
    t, delta = 1 - step / num_steps, 1 / num_steps
    g = 0.5 * math.sqrt(t / (1 - t))
    mean, std = FlowSDE(0.5)(x, FlowOutput(v), torch.full((500, 1), step), TimeGrid(num_steps))
    s, u = 1 - t, -v
    this_time = x - delta * v - g**2 * delta / (2 * t) * (x + (1 - t) * v)
    papers_time = x + delta * u - g**2 * delta / (2 * (1 - s)) * (x - s * u)
    flow_grpo = x * (1 - g**2 / (2 * t) * delta) - v * (1 + g**2 * (1 - t) / (2 * t)) * delta
    for form in (this_time, papers_time, flow_grpo):
        assert float((mean - form).abs().max()) < tolerance
    assert torch.allclose(std, torch.tensor(g * math.sqrt(delta)), rtol=1e-6)


def wasserstein(samples: Tensor, exact: Tensor) -> float:
    """Mean 1-D Wasserstein distance of R sets (R, N, D) from R others along fixed directions."""
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(samples.shape[-1], 8, generator=generator)
    directions = directions / directions.norm(dim=0)
    gap = (samples @ directions).sort(1).values - (exact @ directions).sort(1).values
    return float(gap.abs().mean())


TWO_MODES = (torch.tensor([0.3, 0.7]), torch.tensor([[-1.2], [0.8]]), torch.tensor([0.25, 0.35]))
TWO_MODES_2D = (
    torch.tensor([0.4, 0.6]),
    torch.tensor([[-1.0, -1.0], [1.0, 0.6]]),
    torch.tensor([0.3, 0.4]),
)


def distance_over_floor(
    target: tuple[Tensor, Tensor, Tensor], kernel: Kernel, num_steps: int
) -> float:
    """How much farther the sampled actions are from exact ones than exact ones from each other."""
    dim, num_sets, num = target[1].shape[1], 8, 1500
    sets = (num_sets, num, dim)
    draws = [mixture_samples(*target, num_sets * num).reshape(sets) for _ in range(4)]
    noise = torch.randn(num_sets * num, 1, dim)
    chain, _ = sample_chain(mixture_field(*target), noise, TimeGrid(num_steps), kernel)
    floor = wasserstein(torch.cat(draws[:2]), torch.cat(draws[2:]))
    return wasserstein(chain[:, -1].reshape(sets), draws[0]) / floor


@pytest.mark.parametrize("num_steps", [50, 200])
def test_flow_sde_keeps_the_marginals(num_steps: int) -> None:
    assert distance_over_floor(TWO_MODES, FlowSDE(0.5), num_steps) < 2


@pytest.mark.parametrize("num_steps", [50, 200])
def test_masked_flow_sde_keeps_the_marginals(num_steps: int) -> None:
    kernel = FlowSDE(0.5, torch.tensor([[1.0, 0.0]]))
    assert distance_over_floor(TWO_MODES_2D, kernel, num_steps) < 2


@pytest.mark.parametrize("factor", [-1.0, 0.0], ids=["reversed_drift", "no_drift"])
def test_a_wrong_drift_is_seen_in_the_marginals(factor: float) -> None:
    assert distance_over_floor(TWO_MODES, scaled_drift(factor), 50) > 4
    masked = scaled_drift(factor, mask=torch.tensor([[1.0, 0.0]]))
    assert distance_over_floor(TWO_MODES_2D, masked, 50) > 2.5


def gaussian_end(kernel: Kernel, num_steps: int) -> tuple[float, float]:
    """Exact mean and standard deviation of a kernel's actions: every step is affine in x."""
    grid, mean, variance = TimeGrid(num_steps), 0.0, 1.0
    points = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None, None]
    points = points.expand(2, num_steps, 1, 1)
    steps = torch.arange(num_steps).expand(2, -1)
    ends, stds = kernel(points, gaussian_field(points, grid.times()[steps]), steps, grid)
    noises = stds.expand_as(ends)[0].flatten().tolist()
    for (offset, end), noise in zip(ends[..., 0, 0].T.tolist(), noises, strict=True):
        slope = end - offset
        mean, variance = slope * mean + offset, slope**2 * variance + noise**2
    return mean, math.sqrt(variance)


@pytest.mark.parametrize("noise_level", [0.3, 0.7])
def test_sde_marginals_approach_the_odes_as_steps_grow(noise_level: float) -> None:
    # slower than 1 / K: the first step has the standard deviation noise_level, however many follow
    gaps = []
    for num_steps in (25, 100, 400, 1600):
        sde = gaussian_end(FlowSDE(noise_level), num_steps)
        ode = gaussian_end(ode_step, num_steps)
        gaps.append(max(abs(a - b) for a, b in zip(sde, ode, strict=True)))
    assert all(fine < 0.7 * coarse for coarse, fine in itertools.pairwise(gaps))
    assert gaps[0] > 0.005
    assert gaps[-1] < 0.0015
    assert gaussian_end(FlowSDE(noise_level), 1600) == pytest.approx((MEAN, STD), abs=1e-3)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.5, 2.0])
def test_only_the_right_drift_approaches_the_ode(factor: float) -> None:
    assert gaussian_end(scaled_drift(1.0), 800)[1] == pytest.approx(STD, abs=2e-3)
    assert abs(gaussian_end(scaled_drift(factor), 800)[1] - STD) > 0.03
