"""`policy`: the loss it was pretrained with, and the chunk that it executes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pitune.policies import (
    FlowPolicy,
    GemmaConfig,
    ModelInput,
    NormStats,
    Pi0Config,
    PreprocessorConfig,
    SamplerConfig,
    small_policy,
)
from pitune.policies.flow.ode import Solver, integrate
from pitune.policies.flow.path import FlowOutput
from pitune.policies.network.context import Context

EXPERT = GemmaConfig(width=16, depth=1, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_policy(
    model_dim: int = 3, execution_horizon: int = 2, solver: Solver = "euler", flow_steps: int = 4
) -> FlowPolicy:
    """A policy of a robot with two action dimensions, of mean (1, -1) and spread (2, 0.5)."""
    network = Pi0Config(state_dim=3, action_dim=model_dim, action_horizon=4, expert=EXPERT)
    action = NormStats(mean=(1.0, -1.0), std=(2.0, 0.5), q01=(-1.0, -1.0), q99=(1.0, 1.0))
    stats = PreprocessorConfig(state=NormStats.identity(3), action=action, epsilon=0.0)
    sampler = SamplerConfig(
        flow_steps=flow_steps, execution_horizon=execution_horizon, solver=solver
    )
    return FlowPolicy(network, stats, sampler)


def observations(num: int = 8) -> ModelInput:
    """Inputs of any of these policies."""
    state = torch.randn(num, 3)
    return ModelInput(state=state, robot_state=state)


def normal_velocity(context: Context, x: Tensor, flow_time: Tensor) -> FlowOutput:
    """The exact velocity when normalized actions are N(0, 1): E[noise - action | x_t = x]."""
    t = flow_time[..., None, None]
    return FlowOutput((2 * t - 1) / ((1 - t) ** 2 + t**2) * x)


def test_loss_of_the_exact_velocity_is_the_irreducible_variance() -> None:
    policy, num = make_policy(model_dim=2), 6000
    policy.network.velocity = normal_velocity  # type: ignore[method-assign]
    action = torch.tensor([1.0, -1.0]) + torch.tensor([2.0, 0.5]) * torch.randn(num, 4, 2)
    flow_time = torch.linspace(0.05, 0.95, num)
    loss = policy.loss(observations(num), action, flow_time=flow_time)
    assert loss.shape == (num, 4, 2)
    # Var(noise - action | x_t) = 1 / ((1 - t)^2 + t^2) for unit variances
    irreducible = 1 / ((1 - flow_time) ** 2 + flow_time**2)
    for part, expected in zip(loss.split(1000), irreducible.split(1000), strict=True):
        assert float(part.mean()) == pytest.approx(float(expected.mean()), rel=0.06)


def test_loss_draws_its_times_from_the_training_law() -> None:
    policy, times = make_policy(), []

    def recorded(context: Context, x: Tensor, flow_time: Tensor) -> FlowOutput:
        times.append(flow_time)
        return FlowOutput(torch.zeros_like(x))

    policy.network.velocity = recorded  # type: ignore[method-assign]
    policy.loss(observations(20_000), torch.zeros(20_000, 4, 2))
    assert times[0].shape == (20_000, 1)
    assert float(times[0].mean()) == pytest.approx(0.6004, abs=0.01)  # 0.4 is the mirror image


def test_loss_of_given_draws_matches_numbers_worked_by_hand() -> None:
    policy, seen = make_policy(), []

    def half(context: Context, x: Tensor, flow_time: Tensor) -> FlowOutput:
        seen.append(x)
        return FlowOutput(torch.full_like(x, 0.5))

    policy.network.velocity = half  # type: ignore[method-assign]
    action = torch.tensor([3.0, -1.5]).expand(1, 4, 2)  # normalized (1, -1), padded with 0
    noise = torch.tensor([2.0, 1.0, 4.0]).expand(1, 4, 3)
    loss = policy.loss(observations(1), action, noise, torch.tensor([0.25]))
    # noise - action = (1, 2, 4); the padded dimension counts, as in openpi
    assert torch.allclose(loss[0, 0], torch.tensor([0.25, 2.25, 12.25]))
    # 0.25 * noise + 0.75 * action
    assert torch.allclose(seen[0][0, 0, 0], torch.tensor([1.25, -0.5, 1.0]))


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_actions_are_the_solvers_first_steps_in_robot_units(solver: Solver) -> None:
    policy, obs = make_policy(solver=solver), observations()
    noise = torch.randn(8, 4, 3)
    with torch.no_grad():
        field = policy.field(policy.encode(obs))
        chunk = integrate(field, noise, policy.grid, solver)
        action = policy.sample_actions(obs, noise)
        by_hand = chunk[:, :2, :2] * torch.tensor([2.0, 0.5]) + torch.tensor([1.0, -1.0])
        assert torch.allclose(action, by_hand, atol=1e-5)
        others = {name: integrate(field, noise, policy.grid, name) for name in ("euler", "heun")}
    assert sum(torch.equal(chunk, other) for other in others.values()) == (solver != "midpoint")


def test_actions_of_the_exact_velocity_have_the_robots_mean_and_spread() -> None:
    policy = make_policy(model_dim=2, flow_steps=50)
    policy.network.velocity = normal_velocity  # type: ignore[method-assign]
    action = policy.sample_actions(observations(5000)).flatten(0, 1)
    assert torch.allclose(action.mean(0), torch.tensor([1.0, -1.0]), atol=0.1)
    assert torch.allclose(action.std(0), torch.tensor([2.0, 0.5]), rtol=0.05)


def test_executed_entries_are_the_first_steps_and_the_robots_dimensions() -> None:
    by_hand = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0] * 3, [0.0] * 3])
    assert torch.equal(make_policy().executed_mask(), by_hand)
    assert make_policy().executed(torch.zeros(5, 4, 3), observations(5)).shape == (5, 2, 2)
    assert make_policy(execution_horizon=4).executed_mask().sum() == 8


@pytest.mark.parametrize("execution_horizon", [5, 100])
def test_executing_more_than_is_predicted_is_refused(execution_horizon: int) -> None:
    message = f"execution_horizon={execution_horizon} must be between 1 and action_horizon=4"
    with pytest.raises(ValueError, match=message):
        make_policy(execution_horizon=execution_horizon)


def test_a_policy_without_flow_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="flow_steps=0 must be at least 1"):
        make_policy(flow_steps=0).sample_actions(observations())


def test_small_policy_carries_the_statistics_of_its_demonstrations() -> None:
    state, action = torch.randn(50, 3), 5 + torch.randn(50, 2)
    sampler = SamplerConfig(execution_horizon=3)
    policy = small_policy(state, action, action_horizon=6, sampler=sampler, expert=EXPERT)
    assert policy.preprocessor.config.state == NormStats.of(state)
    assert policy.preprocessor.config.action == NormStats.of(action)
    assert policy.chunk_shape == (6, 2)
    assert policy.sample_actions(observations()).shape == (8, 3, 2)
    normalized = policy.preprocessor.normalize_action(action)
    assert torch.allclose(normalized.mean(0), torch.zeros(2), atol=1e-4)
