"""`policies.flow`: the mathematics against targets whose velocity and density are known exactly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from policies.chain import sample_chain, score_chain
from policies.flow import (
    FlowNoise,
    FlowOutput,
    FlowSDE,
    Kernel,
    TimeGrid,
    Transition,
    VelocityField,
    interpolate,
    log_prob,
    ode_step,
    predicted_action,
    predicted_noise,
    sample_flow_time,
    score,
    target_velocity,
)
from policies.ode import integrate

MEAN, STD = 0.6, 0.5
"""Of the Gaussian target."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def gaussian_variance(t: Tensor) -> Tensor:
    """Return the variance of x_t when actions are N(MEAN, STD^2)."""
    return (1 - t) ** 2 * STD**2 + t**2


def gaussian_field(x: Tensor, flow_time: Tensor) -> FlowOutput:
    """E[noise - action | x_t = x] when actions are N(MEAN, STD^2)."""
    t = flow_time[..., None, None]
    centred = x - (1 - t) * MEAN
    return FlowOutput((t - (1 - t) * STD**2) / gaussian_variance(t) * centred - MEAN)


def mixture_field(weights: Tensor, means: Tensor, stds: Tensor) -> VelocityField:
    """The exact velocity of a mixture of round Gaussians: weights (C,), means (C, D), stds (C,)."""

    def field(x: Tensor, flow_time: Tensor) -> FlowOutput:
        t = flow_time[..., None, None]  # (B, M, 1, 1)
        std = stds[:, None]
        variance = (1 - t) ** 2 * std**2 + t**2  # (B, M, C, 1)
        centred = x.flatten(2)[:, :, None] - (1 - t) * means  # (B, M, C, D)
        distance = centred.square().sum(-1, keepdim=True) / variance
        logits = weights.log()[:, None] - 0.5 * (distance + means.shape[1] * variance.log())
        noise = t / variance * centred
        action = means + (1 - t) * std**2 / variance * centred
        velocity = (logits.softmax(-2) * (noise - action)).sum(-2)
        return FlowOutput(velocity.unflatten(-1, x.shape[2:]))

    return field


def mixture_samples(weights: Tensor, means: Tensor, stds: Tensor, num: int) -> Tensor:
    """Exact samples (num, D)."""
    component = torch.multinomial(weights, num, replacement=True)
    return means[component] + stds[component, None] * torch.randn(num, means.shape[1])


def random_field(horizon: int, action_dim: int) -> VelocityField:
    """A fixed random network that couples all entries, bends, and reads the time; with features."""
    generator = torch.Generator().manual_seed(1)
    width = horizon * action_dim
    inner = torch.randn(width + 1, 16, generator=generator) / math.sqrt(width)
    outer = torch.randn(16, width, generator=generator) / 4
    features = torch.randn(16, horizon * 3, generator=generator)

    def field(x: Tensor, flow_time: Tensor) -> FlowOutput:
        middle = torch.cat([x.flatten(2), flow_time[..., None]], -1).matmul(inner).tanh()
        hidden = (middle @ features).unflatten(-1, (horizon, 3))
        return FlowOutput((middle @ outer).unflatten(-1, (horizon, action_dim)), hidden)

    return field


def learned_std(output: FlowOutput, flow_time: Tensor) -> Tensor:
    """A standard deviation that depends on the features and on the time."""
    assert output.hidden is not None
    size = 0.05 + 0.2 * output.hidden[..., :2].sigmoid()
    return size * (1 + flow_time[..., None, None])


def constant_std(output: FlowOutput, flow_time: Tensor) -> Tensor:
    return torch.full_like(output.velocity, 0.1)


MASK = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
"""Two executed steps of three, one robot dimension of two."""
KERNELS: dict[str, Kernel] = {
    "flow_sde": FlowSDE(0.5),
    "flow_sde_masked": FlowSDE(0.5, MASK),
    "flow_noise_learned": FlowNoise(learned_std),
    "flow_noise_learned_masked": FlowNoise(learned_std, MASK),
    "flow_noise_constant": FlowNoise(constant_std),
    "flow_noise_constant_masked": FlowNoise(constant_std, MASK),
}


def scaled_drift(factor: float, noise_level: float = 0.5, mask: Tensor | None = None) -> Kernel:
    """Flow-SDE with its drift correction multiplied: 1 is right, 0 lacks it, -1 has it reversed."""
    right = FlowSDE(noise_level, mask)

    def kernel(x: Tensor, output: FlowOutput, step: Tensor, grid: TimeGrid) -> Transition:
        mean, std = right(x, output, step, grid)
        straight = ode_step(x, output, step, grid).mean
        return Transition(straight + factor * (mean - straight), std)

    return kernel


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
    centred = x - s * MEAN
    return MEAN + (s * STD**2 - (1 - s)) / variance * centred


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
