"""Compiled policies: no graph breaks, no forms per number of rows, the eager policy's numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from compiled_policies import both, forget_compiled, num_graphs
from tensordict import TensorDictBase
from torch import Tensor

from pitune.compilation import Compilation, CompileClock, check_compiler
from pitune.policies import FlowPolicy, LikelihoodActor, ModelInput, likelihoods
from pitune.policies.flow.delay import DelayConfig
from pitune.policies.flow.kernels import FlowNoise, FlowSDE
from pitune.rl.algorithms.ppo import PPOConfig, policy_loss
from pitune.rl.experience.sub_dict import sub_dict
from vision_policies import preprocessed, vision_policy


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Forget all compiled code before and after a test."""
    forget_compiled()
    yield
    forget_compiled()


def acted(policy: FlowPolicy, obs: TensorDictBase, name: str) -> tuple[Tensor, Tensor]:
    """Return chains and their log-probabilities, from the seed 1."""
    torch.manual_seed(1)
    td = LikelihoodActor(policy, likelihoods()[name])(obs.clone())
    return td["chain"], td["action_log_prob"]


@pytest.mark.parametrize(
    "name",
    [
        "flow_sde",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name, config in likelihoods().items()
            if config.trainable and config.compiled and name != "flow_sde"
        ),
    ],
)
def test_acting_and_the_loss_of_each_likelihood_are_whole_graphs(
    tiny_policy: Callable[..., FlowPolicy], name: str
) -> None:
    eager, compiled = both(tiny_policy(horizon=4))
    config = PPOConfig(likelihood=likelihoods()[name])
    losses = [policy_loss(LikelihoodActor(p, config.likelihood), config) for p in (eager, compiled)]
    obs = preprocessed(eager, 6)
    for num in (6, 4, 5):
        expected, actual = (acted(p, sub_dict(obs, slice(num)), name) for p in (eager, compiled))
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[1], expected[1])
        # acting with the eager policy, for equal draws
        torch.manual_seed(1)
        batch = LikelihoodActor(eager, config.likelihood)(obs[:num].clone())
        batch["advantage"] = torch.ones(num, 1)
        values = [loss(batch)[0] for loss in losses]
        assert torch.equal(*values)
        if num == 6:
            first = num_graphs()
    assert num_graphs() == first  # other numbers of rows compile nothing


@pytest.mark.slow
def test_the_exact_density_computes_eagerly_after_a_compiled_loop(
    tiny_policy: Callable[..., FlowPolicy],
) -> None:
    eager, compiled = both(tiny_policy())
    obs = preprocessed(eager, 3)
    for expected, actual in zip(acted(eager, obs, "ode"), acted(compiled, obs, "ode"), strict=True):
        assert torch.equal(actual, expected)
    assert num_graphs() > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_a_policy_with_pictures_and_words_has_no_graph_break(family: Any) -> None:
    eager, compiled = both(vision_policy(family))
    obs = preprocessed(eager, 3)
    inputs, noise = ModelInput.of(obs), eager.draw_noise(3)
    with torch.no_grad():
        assert torch.equal(
            compiled.sample_actions(inputs, noise), eager.sample_actions(inputs, noise)
        )
        first = num_graphs()
        few = ModelInput.of(sub_dict(obs, slice(2)))
        compiled.sample_actions(few, noise[:2])
    assert num_graphs() == first
    action, time = torch.rand(3, 4, 2), torch.rand(3)
    losses = [p.loss(inputs, action, noise, time).mean() for p in (eager, compiled)]
    assert torch.equal(*losses)
    assert num_graphs() > first


def test_a_decision_delay_still_acts(tiny_policy: Callable[..., FlowPolicy]) -> None:
    policy = tiny_policy(horizon=4).with_delay(DelayConfig(steps=1))
    eager, compiled = both(policy)
    obs = preprocessed(eager, 2)
    assert not eager.is_traceable
    assert torch.equal(acted(compiled, obs, "flow_sde")[0], acted(eager, obs, "flow_sde")[0])


def test_copies_of_a_compiled_policy_have_their_own_weights(
    tiny_policy: Callable[..., FlowPolicy],
) -> None:
    _, compiled = both(tiny_policy())
    obs, noise = ModelInput.of(preprocessed(compiled, 2)), compiled.draw_noise(2)
    with torch.no_grad():
        before = compiled.sample_actions(obs, noise)
        copy = deepcopy(compiled)
        for value in copy.parameters():
            value.add_(0.1)
        first = num_graphs()
        assert not torch.equal(copy.sample_actions(obs, noise), before)
        assert torch.equal(compiled.sample_actions(obs, noise), before)
    assert num_graphs() == first  # the copy needs no code of its own


def test_the_weights_keep_their_names(tiny_policy: Callable[..., FlowPolicy]) -> None:
    eager, compiled = both(tiny_policy())
    compiled.sample_actions(ModelInput.of(preprocessed(compiled, 2)))
    assert list(compiled.state_dict()) == list(eager.state_dict())


def test_a_policy_with_replaced_parts_is_compiled_too(
    tiny_policy: Callable[..., FlowPolicy],
) -> None:
    _, compiled = both(tiny_policy())
    assert compiled.replace().network.compilation is compiled.network.compilation is not None


def test_compilations_are_counted_and_timed() -> None:
    double = Compilation(torch.device("cpu"), "eager")(lambda x: 2 * x)
    clock = CompileClock()
    for num in (3, 4, 5):
        double(torch.zeros(num))
    assert clock.number == 1
    assert clock.seconds > 0
    double(torch.zeros(1))  # one row has a form of its own
    assert clock.number == 2
    clock.stop()
    double(torch.zeros(3, 2))
    assert clock.number == 2


def test_a_machine_without_a_compiler_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tiny_policy: Callable[..., FlowPolicy]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"no 'no-such-compiler' on the PATH; install one"):
        tiny_policy().compile_functions()


def test_a_machine_without_pythons_headers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: f"/no/{name}")
    with pytest.raises(RuntimeError, match=r"/no/include/Python.h does not exist; install them"):
        check_compiler()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow_sde", "flow_noise"])
def test_compiled_code_gives_the_eager_numbers_and_a_ratio_of_one(
    tiny_policy: Callable[..., FlowPolicy], name: str
) -> None:
    eager, compiled = both(tiny_policy(horizon=4), "inductor")
    obs = preprocessed(eager, 6)
    for expected, actual in zip(acted(eager, obs, name), acted(compiled, obs, name), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)

    # scores of the sampled chains, and gradients
    config = PPOConfig(likelihood=likelihoods()[name])
    torch.manual_seed(1)
    batch = LikelihoodActor(compiled, config.likelihood)(obs.clone())
    batch["advantage"] = torch.linspace(-1, 1, 6)[:, None]
    gradients = []
    for policy in (eager, compiled):
        value, metrics = policy_loss(LikelihoodActor(policy, config.likelihood), config)(batch)
        assert metrics["log_ratio"].abs().max() < 1e-5
        value.backward()
        gradients.append([p.grad for p in policy.parameters() if p.grad is not None])
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", [FlowSDE, FlowNoise])
def test_what_is_made_inside_of_traced_code_is_not_frozen(kernel: Any) -> None:
    """Torch 2.12, the lowest version, loses the fields of a frozen dataclass that it traces."""
    assert not kernel.__dataclass_params__.frozen
