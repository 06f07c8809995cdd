"""`prediction`: a network that predicts the clean action, and the loss in the action's space."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune import policies, rl
from pitune.policies import FlowPolicy, NetworkOptions, SamplerConfig
from pitune.policies.flow.path import (
    interpolate,
    predicted_action,
    sample_flow_time,
    target_velocity,
    velocity_towards,
)
from pitune.policies.flow.real_time import RealTimeConfig
from pitune.policies.network.options.prediction import PredictionConfig
from pitune.rl.algorithms.bc import CloningStep
from pitune.rl.experience.sub_dict import sub_dict

ACTION = NetworkOptions(prediction=PredictionConfig(output="action", loss="action"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def policy(options: NetworkOptions, **sampler: object) -> FlowPolicy:
    settings = SamplerConfig(**{"flow_steps": 4, "execution_horizon": 2, **sampler})  # type: ignore[arg-type]
    torch.manual_seed(0)
    states, actions = torch.randn(50, 4), torch.randn(50, 2)
    return policies.small_policy(
        states, actions, action_horizon=3, sampler=settings, options=options
    )


def test_the_conversion_is_exact_at_all_flow_times_of_training() -> None:
    time = sample_flow_time(5000)[:, None, None, None].double()
    action, noise = torch.randn(2, 5000, 1, 3, 2, dtype=torch.float64)
    x = interpolate(action, noise, time)
    velocity = velocity_towards(x, action, time)
    assert torch.allclose(velocity, target_velocity(action, noise), atol=1e-9)
    assert torch.allclose(predicted_action(x, velocity, time), action, atol=1e-12)


@pytest.mark.parametrize("per_token", [False, True])
def test_the_velocity_is_that_towards_the_last_layers_output(per_token: bool) -> None:
    torch.manual_seed(0)
    plain, towards = (policy(options).network for options in (NetworkOptions(), ACTION))
    towards.load_state_dict(plain.state_dict())
    x = torch.randn(5, 2, 3, 2)
    time = 0.1 + 0.9 * torch.rand(5, 2, *([3] if per_token else []))
    context = plain.encode(torch.randn(5, 4))
    output = plain.velocity(context, x, time).velocity  # of the same last layer
    found = towards.velocity(context, x, time).velocity
    each = time[..., None] if per_token else time[..., None, None]
    assert torch.allclose(predicted_action(x, found, each), output, atol=1e-5)
    assert not torch.allclose(found, output, atol=1e-2)


def test_one_flow_step_lands_on_the_predicted_action() -> None:
    one = policy(ACTION, flow_steps=1)
    noise, state = torch.randn(5, 3, 2), torch.randn(5, 4)
    inputs = one.model_input({"state": state})
    context = one.encode(inputs)
    chunk = one.solve(context, noise)
    hidden = one.network.velocity(context, noise[:, None], torch.ones(5, 1)).hidden
    assert hidden is not None
    assert torch.allclose(chunk, one.network.action_out_proj(hidden)[:, 0], atol=1e-5)


@pytest.mark.parametrize("output", ["velocity", "action"])
def test_the_loss_is_the_error_of_the_action(output: str) -> None:
    made = policy(NetworkOptions(prediction=PredictionConfig(output=output, loss="action")))  # type: ignore[arg-type]
    state, action = torch.randn(6, 4), torch.randn(6, 3, 2)
    inputs = made.model_input({"state": state})
    noise, time = torch.randn(6, 3, 2), 0.05 + 0.9 * torch.rand(6)
    loss = made.loss(inputs, action, noise, time)
    target = made.preprocessor.normalize_action(action, inputs.robot_state)
    x = interpolate(target, noise, time[:, None, None])
    velocity = made.network.velocity(made.encode(inputs), x[:, None], time[:, None]).velocity[:, 0]
    end = predicted_action(x, velocity, time[:, None, None])
    assert torch.allclose(loss, (end - target).square(), atol=1e-5)
    # the velocity's loss is that over t^2
    options = NetworkOptions(prediction=PredictionConfig(output=output))  # type: ignore[arg-type]
    of_velocity = policy(options)
    of_velocity.load_state_dict(made.state_dict())
    assert torch.allclose(
        of_velocity.loss(inputs, action, noise, time) * time[:, None, None].square(),
        loss,
        atol=1e-5,
    )


def rows_of(made: FlowPolicy, state: Tensor, action: Tensor) -> TensorDictBase:
    """Return training examples (N) of states (N, 4) and chunks (N, 3, 2)."""
    rows = TensorDict({"state": state, "action": action}, batch_size=[len(state)])
    return made.observation_preprocessor(())(rows)


@pytest.mark.slow
def test_a_network_that_predicts_actions_learns_to_act() -> None:
    made, states = policy(ACTION), torch.randn(400, 4)
    rows = rows_of(made, states, torch.stack([states[:, :2].tanh()] * 3, 1))
    config = rl.BCConfig(
        learning_rate=3e-3, warmup_steps=0, decay_steps=300, ema_decay=0.0, minibatch_size=64
    )
    step = CloningStep(made, config)
    losses = [step(sub_dict(rows, torch.randint(400, (64,)))) for _ in range(300)]
    assert sum(losses[-20:]) / 20 < 0.1
    states = torch.randn(200, 4)
    with torch.no_grad():
        acted = made.sample_actions(made.model_input({"state": states}))
    assert float((acted[:, 0] - states[:, :2].tanh()).abs().mean()) < 0.2


def test_clean_beginnings_at_flow_time_zero_have_a_finite_loss() -> None:
    made = policy(ACTION, real_time=RealTimeConfig(method="guided"))
    rows = rows_of(made, torch.randn(32, 4), torch.randn(32, 3, 2))
    config = rl.BCConfig(minibatch_size=32, real_time_delay=2, ema_decay=0.0)
    assert CloningStep(made, config)(rows) < 10


def test_solvers_and_likelihoods_that_need_flow_time_zero_are_refused() -> None:
    message = r"sampler\.solver='heun' needs the velocity at flow time 0, and a network with optio"
    with pytest.raises(ValueError, match=message):
        policy(ACTION, solver="heun")
    policy(ACTION, solver="midpoint")
    message = r"the exact density needs the velocity at flow time 0, and a network with options\.p"
    with pytest.raises(ValueError, match=message):
        policies.LikelihoodActor(policy(ACTION), policies.ExactFlowConfig())
