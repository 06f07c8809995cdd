"""Compiled code on CUDA, with CUDA graphs, gives the numbers of eager code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import pytest
import torch

from pitune.compilation import CompileClock
from pitune.policies import FlowPolicy, LikelihoodActor, ModelInput, likelihoods
from pitune.rl.algorithms.ppo import PPOConfig, policy_loss
from vision_policies import preprocessed, vision_policy

pytestmark = pytest.mark.gpu
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Forget all compiled code before and after a test."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def both(policy: FlowPolicy, device: torch.device) -> tuple[FlowPolicy, FlowPolicy]:
    """Return a policy on the device, and a copy that is compiled."""
    eager = policy.to(device)
    compiled = deepcopy(eager)
    compiled.compile_functions()
    return eager, compiled


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_sampling_and_the_loss_of_cloning(family: str, cuda: torch.device) -> None:
    eager, compiled = both(vision_policy(family), cuda)  # type: ignore[arg-type]
    for num in (4, 3, 1, 4):
        inputs, noise = ModelInput.of(preprocessed(eager, num).to(cuda)), eager.draw_noise(num)
        with torch.no_grad():
            expected = eager.sample_actions(inputs, noise)
            actual = compiled.sample_actions(inputs, noise)
        assert (actual - expected).abs().max() < TOLERANCE
    inputs, noise = ModelInput.of(preprocessed(eager, 4).to(cuda)), eager.draw_noise(4)
    action, time = torch.rand(4, 4, 2, device=cuda), torch.rand(4, device=cuda)
    losses = [p.loss(inputs, action, noise, time).mean() for p in (eager, compiled)]
    assert (losses[1] - losses[0]).abs() < TOLERANCE
    for loss in losses:
        loss.backward()
    for left, right in zip(eager.parameters(), compiled.parameters(), strict=True):
        if left.grad is not None:
            assert right.grad is not None
            torch.testing.assert_close(right.grad, left.grad, atol=TOLERANCE, rtol=1e-3)


def test_other_numbers_of_rows_compile_nothing(
    tiny_policy: Callable[..., FlowPolicy], cuda: torch.device
) -> None:
    _, compiled = both(tiny_policy(), cuda)

    def sample(num: int) -> None:
        inputs = ModelInput.of(preprocessed(compiled, num).to(cuda))
        with torch.no_grad():
            compiled.sample_actions(inputs, compiled.draw_noise(num))

    sample(4)
    clock = CompileClock()
    for num in (6, 5, 9):
        sample(num)
    clock.stop()
    assert clock.number == 0


@pytest.mark.parametrize("name", ["flow_sde", "flow_noise", "flow_matching"])
def test_a_ratio_is_one_before_the_first_update(
    name: str, tiny_policy: Callable[..., FlowPolicy], cuda: torch.device
) -> None:
    eager, compiled = both(tiny_policy(horizon=4), cuda)
    config = PPOConfig(likelihood=likelihoods()[name])
    with torch.no_grad():
        batch = LikelihoodActor(compiled, config.likelihood)(preprocessed(eager, 6).to(cuda))
    batch["advantage"] = torch.linspace(-1, 1, 6, device=cuda)[:, None]
    gradients = []
    for policy in (eager, compiled):
        value, metrics = policy_loss(LikelihoodActor(policy, config.likelihood), config)(batch)
        assert metrics["log_ratio"].abs().max() < TOLERANCE
        value.backward()
        gradients.append([p.grad for p in policy.parameters() if p.grad is not None])
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=1e-3)
