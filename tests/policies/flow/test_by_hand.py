"""`path`, `ode`, `kernels`: single numbers by hand, for steps that the chains' tests leave open."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from analytic_flows import MASK
from pitune.policies.flow.chain import sample_chain
from pitune.policies.flow.kernels import FlowNoise, Transition, kl_divergence
from pitune.policies.flow.ode import ode_log_likelihood
from pitune.policies.flow.path import FlowOutput, TimeGrid


@pytest.mark.parametrize("flow_steps", [1, 3, 10])
def test_accumulated_times_are_sums_of_rounded_steps(flow_steps: int) -> None:
    times = TimeGrid(flow_steps, accumulated=True).times()
    step, t = torch.tensor(-1 / flow_steps), torch.tensor(1.0)
    for k in range(flow_steps):
        assert times[k] == t
        t = t + step
    assert times[-1] == 0
    assert len(times) == flow_steps + 1
    assert torch.allclose(times, TimeGrid(flow_steps).times(), atol=1e-6)


@pytest.mark.parametrize("num_probes", [1, 2, 5])
def test_random_probes_are_exact_for_a_field_without_coupling(num_probes: int) -> None:
    """The divergence of a diagonal field is the same for every vector of signs."""
    rates = torch.tensor([[0.3, -0.2], [0.5, 0.1]], dtype=torch.float64)

    def field(x: Tensor, flow_time: Tensor) -> FlowOutput:
        return FlowOutput(rates * x)

    torch.manual_seed(0)
    action = torch.randn(3, 2, 2, dtype=torch.float64)
    exact, noise = ode_log_likelihood(field, action, flow_steps=50)
    found, same = ode_log_likelihood(field, action, flow_steps=50, num_probes=num_probes)
    assert torch.allclose(found, exact)
    assert torch.allclose(same, noise)
    # x grows by exp(rate) from action to noise, so log p(a) = log N(noise) + sum of the rates
    expected = Normal(0.0, 1.0).log_prob(action * rates.exp()).sum((1, 2)) + rates.sum()
    assert torch.allclose(exact, expected, atol=1e-4)


def test_the_learned_noise_is_asked_at_the_time_of_its_step() -> None:
    def std(output: FlowOutput, flow_time: Tensor) -> Tensor:
        return flow_time[..., None, None].expand_as(output.velocity)

    grid, x = TimeGrid(4), torch.zeros(1, 4, 3, 2)
    for mask in (None, MASK):
        found = FlowNoise(std, mask)(x, FlowOutput(x), torch.arange(4)[None], grid).std
        expected = grid.times()[:4, None, None] * (1 if mask is None else mask)
        assert torch.equal(found[0], expected.expand(4, 3, 2))


def test_the_divergence_of_two_steps_is_that_of_normals_and_0_where_neither_is_random() -> None:
    torch.manual_seed(0)
    mean = torch.randn(2, 1, 1, 3, 2)
    std = 0.1 + torch.rand(2, 1, 1, 3, 2)
    first, second = (Transition(m, s) for m, s in zip(mean, std, strict=True))
    for new, old in ((first, second), (second, first)):
        expected = torch.distributions.kl_divergence(Normal(*new), Normal(*old))
        assert torch.allclose(kl_divergence(new, old), expected)
        masked = [Transition(t.mean, t.std * MASK) for t in (new, old)]
        assert torch.allclose(kl_divergence(*masked), expected * MASK)
    assert float(kl_divergence(first, second).min()) > 0


def test_a_network_in_half_precision_gives_float32_chains() -> None:
    def field(x: Tensor, flow_time: Tensor) -> FlowOutput:
        return FlowOutput(x.bfloat16())

    chain, log_density = sample_chain(field, torch.ones(1, 1, 1), TimeGrid(2))
    assert chain.dtype == log_density.dtype == torch.float32
    assert chain.flatten().tolist() == [1.0, 0.5, 0.25]


def test_a_network_in_half_precision_moves_by_a_float32_step() -> None:
    """The step 1 / 3 itself must not be rounded to bfloat16."""

    def field(x: Tensor, flow_time: Tensor) -> FlowOutput:
        return FlowOutput(torch.ones_like(x).bfloat16())

    chain, _ = sample_chain(field, torch.ones(1, 1, 1), TimeGrid(3))
    assert chain.flatten().tolist() == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0], abs=1e-6)
