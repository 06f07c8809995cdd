"""Real-time chunking against lerobot's numbers and on flows with a closed form."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from openpi_fixtures import FAMILIES, openpi_folder
from pitune.experiments.verify_checkpoint import encoder_inputs
from pitune.policies.checkpoints.formats import load_network
from pitune.policies.flow.ode import integrate
from pitune.policies.flow.path import FlowOutput, TimeGrid, VelocityField, predicted_action
from pitune.policies.flow.real_time import (
    RealTimeConfig,
    Remainder,
    check_delay,
    guidance_weight,
    guided_field,
    prefixed_field,
    soft_mask,
    with_prefix,
)
from pitune.policies.network.config import Family
from vision_policies import vision_policy

FIXTURES = Path(__file__).parents[2] / "fixtures"
SCHEDULES = ("linear", "exp", "ones", "zeros")
H, A = 8, 2
GRID = TimeGrid(10)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_identity_jacobian_gives_lerobots_weights_and_actions(
    family: str, schedule: str
) -> None:
    outputs = load_file(FIXTURES / "lerobot" / f"{family}_tiny" / "rtc.safetensors")
    weights = outputs[f"{schedule.upper()}.weights_d2_s6_H10"]
    torch.testing.assert_close(soft_mask(2, 6, 10, schedule), weights)  # type: ignore[arg-type]

    inputs = load_file(FIXTURES / "openpi" / f"{family}_tiny" / "inputs.safetensors")
    network = load_network(openpi_folder(family), action_horizon=10)
    config = RealTimeConfig(schedule=schedule, max_weight=10.0, jacobian="identity")  # type: ignore[arg-type]
    remainder = Remainder(outputs["prev_chunk_left_over"], delay=2)
    with torch.no_grad():
        context = network.encode(inputs["state"], **encoder_inputs(inputs))
        field = partial(network.velocity, context)
        guided = guided_field(field, remainder, config, overlap=6)
        actions = integrate(guided, inputs["noise"], GRID)
        plain = integrate(field, inputs["noise"], GRID)
    expected = outputs[f"{schedule.upper()}.actions_d2"]
    assert (actions - expected).abs().max() < 1e-5
    assert (plain - expected).abs().max() > 1e-2  # negative control


def test_the_exponential_mask_is_the_papers() -> None:
    # Kinetix and the paper's equation (5): H = 8, d = 1, s = 3
    expected = torch.tensor([1, 0.571, 0.287, 0.114, 0.026, 0, 0, 0])
    torch.testing.assert_close(soft_mask(1, 5, 8, "exp"), expected, atol=5e-4, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("delay", "end"), [(0, 0), (0, 8), (3, 3), (5, 3), (2, 20)])
def test_a_mask_is_one_in_the_delay_zero_after_the_end_and_never_rises(
    schedule: str, delay: int, end: int
) -> None:
    weights = soft_mask(delay, end, H, schedule)  # type: ignore[arg-type]
    assert weights.shape == (H,)
    assert (weights[: min(delay, end)] == 1).all()
    assert (weights[min(end, H) :] == 0).all()
    assert (weights.diff() <= 0).all()


def test_the_guidance_weight_is_that_of_the_paper_in_our_flow_time() -> None:
    t = torch.tensor([[1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0]])
    expected = torch.tensor([[5.0, 5.0, 2.762, 2.0, 2.762, 5.0, 5.0]])
    torch.testing.assert_close(guidance_weight(t, 5.0), expected, atol=5e-4, rtol=0)


def correlated_field(correlation: float = 0.95, std: float = 0.4) -> VelocityField:
    """Return the exact velocity of Gaussian chunks whose steps are an AR(1) process."""
    steps = torch.arange(H, dtype=torch.float64)
    covariance = std**2 * correlation ** (steps[:, None] - steps).abs()

    def field(x: Tensor, flow_time: Tensor) -> FlowOutput:
        t = flow_time.double()[..., None, None]  # (N, M, 1, 1)
        eye = torch.eye(H, dtype=torch.float64)
        total = (1 - t).square() * covariance + t.square() * eye
        # E[noise - action | x]
        gain = (t * eye - (1 - t) * covariance) @ torch.linalg.inv(total)
        return FlowOutput((gain @ x.double()).to(x.dtype))

    return field


def chunks(num: int, seed: int = 0) -> Tensor:
    """Return own samples of the process (N, H, A)."""
    torch.manual_seed(seed)
    return integrate(correlated_field(), torch.randn(num, H, A), GRID)


def prefix_error(config: RealTimeConfig | None, delay: int = 2) -> float:
    """Return the mean distance of new chunks from the remainder in the delay."""
    field, remainder = correlated_field(), Remainder(chunks(1).expand(2000, -1, -1), delay)
    if config is not None:
        field = guided_field(field, remainder, config, overlap=5)
    torch.manual_seed(1)
    new = integrate(field, torch.randn(2000, H, A), GRID)
    return float((new - remainder.actions)[:, :delay].abs().mean())


@pytest.mark.parametrize("jacobian", ["full", "identity"])
def test_guidance_brings_the_delay_to_the_remainder_and_more_weight_brings_it_closer(
    jacobian: str,
) -> None:
    plain = prefix_error(None)
    weak = prefix_error(RealTimeConfig(jacobian=jacobian, max_weight=5.0))  # type: ignore[arg-type]
    strong = prefix_error(RealTimeConfig(jacobian=jacobian, max_weight=10.0))  # type: ignore[arg-type]
    assert weak < 0.4 * plain
    assert strong < weak


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_delay_and_overlap_nothing_changes_bit_for_bit(schedule: str) -> None:
    config = RealTimeConfig(schedule=schedule)  # type: ignore[arg-type]
    noise = torch.randn(3, H, A)
    for remainder in (Remainder(torch.randn(3, 0, A), 0), Remainder(torch.randn(3, 0, A), 4)):
        guided = guided_field(correlated_field(), remainder, config)
        torch.testing.assert_close(
            integrate(guided, noise, GRID),
            integrate(correlated_field(), noise, GRID),
            rtol=0,
            atol=0,
        )


def test_with_weight_one_everywhere_an_own_sample_is_repeated() -> None:
    own = chunks(400)
    config = RealTimeConfig(schedule="ones", max_weight=10.0, jacobian="identity")
    guided = guided_field(correlated_field(), Remainder(own, delay=H), config)
    new = integrate(guided, torch.randn_like(own), TimeGrid(50))
    assert (new - own).abs().mean() < 0.05
    assert (chunks(400, seed=2) - own).abs().mean() > 0.3  # negative control


def test_the_full_jacobian_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    mix = torch.randn(H * A, H * A, dtype=torch.float64) / 4

    def field(x: Tensor, flow_time: Tensor) -> FlowOutput:
        return FlowOutput(torch.tanh(x.flatten(2) @ mix).view_as(x) * flow_time[..., None, None])

    x, time = torch.randn(1, 1, H, A, dtype=torch.float64), torch.full((1, 1), 0.6).double()
    target = torch.randn(1, H, A, dtype=torch.float64)
    weights = soft_mask(2, 6, H, "exp").double()[:, None]

    def predicted(point: Tensor) -> Tensor:
        return predicted_action(point, field(point, time).velocity, time[..., None, None])

    error = weights * (target[:, None] - predicted(x))
    expected = torch.zeros(H * A, dtype=torch.float64)
    for i in range(H * A):
        shift = torch.zeros(H * A, dtype=torch.float64)
        shift[i] = 1e-6
        shift = shift.view_as(x)
        expected[i] = ((predicted(x + shift) - predicted(x - shift)) / 2e-6 * error).sum()

    for jacobian, same in (("full", True), ("identity", False)):
        config = RealTimeConfig(jacobian=jacobian)  # type: ignore[arg-type]
        guided = guided_field(field, Remainder(target, delay=2), config, overlap=6)
        change = field(x, time).velocity - guided(x, time).velocity
        change = change / guidance_weight(time, config.max_weight)
        assert torch.allclose(change.flatten(), expected, atol=1e-7) == same


def test_guidance_works_inside_no_grad_and_gives_parameters_no_gradient() -> None:
    weight = torch.tensor(0.7, requires_grad=True)

    def field(x: Tensor, flow_time: Tensor) -> FlowOutput:
        return FlowOutput(weight * x)

    x, time = torch.randn(2, 3, H, A), torch.full((2, 3), 0.5)
    guided = guided_field(field, Remainder(torch.randn(2, 4, A), 2), RealTimeConfig())
    with torch.no_grad():
        assert not guided(x, time).velocity.requires_grad
    # the gradient is that of the plain velocity
    guided(x, time).velocity.sum().backward()
    torch.testing.assert_close(weight.grad, x.sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_prefix_is_kept_and_its_flow_time_matters(family: Family) -> None:
    policy = vision_policy(family)
    obs = {
        "state": torch.randn(2, 4),
        "image/front": torch.zeros(2, 3, 20, 20, dtype=torch.uint8),
        "image/wrist": torch.zeros(2, 3, 20, 20, dtype=torch.uint8),
    }
    with torch.no_grad():
        for parameter in policy.network.parameters():  # gates and modulations begin at 0
            parameter.add_(0.05 * torch.randn_like(parameter))
        field = policy.field(policy.encode(policy.model_input(obs, ("push",))))
        noise = policy.draw_noise(2)
        remainder = Remainder(torch.randn(2, 3, policy.chunk_shape[1]), delay=2)
        start = with_prefix(noise, remainder)
        new = integrate(prefixed_field(field, remainder), start, GRID)
        assert torch.equal(new[:, :2], remainder.actions[:, :2])

        # the same points with one flow time give another velocity
        x, time = start[:, None], torch.full((2, 1), 0.7)
        per_token = torch.full((2, 1, policy.chunk_shape[0]), 0.7)
        torch.testing.assert_close(field(x, per_token).velocity, field(x, time).velocity)
        per_token[..., :2] = 0
        difference = (field(x, per_token).velocity - field(x, time).velocity)[:, :, 2:]
        assert difference.abs().max() > 1e-4

        # no delay, no change
        none = Remainder(remainder.actions, delay=0)
        same = integrate(prefixed_field(field, none), with_prefix(noise, none), GRID)
        assert torch.equal(same, integrate(field, noise, GRID))


@pytest.mark.parametrize(
    ("delay", "executed", "valid"),
    [(0, 4, True), (2, 4, True), (4, 4, True), (3, 2, False), (3, 6, False)],
)
def test_a_chunk_must_arrive_before_the_old_one_ends(
    delay: int, executed: int, valid: bool
) -> None:
    if valid:
        check_delay(delay, executed, H)
        return
    with pytest.raises(ValueError, match=f"delay={delay} needs"):
        check_delay(delay, executed, H)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "magic"),
        ("schedule", "cubic"),
        ("jacobian", "half"),
        ("max_weight", 0.0),
        ("max_weight", float("nan")),
        ("max_weight", float("inf")),
    ],
)
def test_a_wrong_setting_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}="):
        RealTimeConfig(**{name: value})  # type: ignore[arg-type]
