"""The memory: what a decision writes reaches the next one, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_policies import OPTIONS, memory_module, memory_policy
from torch import Tensor

from pitune import policies
from pitune.policies import DelayConfig, FlowPolicy, InferenceSession, ModelInput, infer
from pitune.policies.network.context import Context
from pitune.policies.network.options.tokens.memory import Memory, MemoryConfig
from pitune.policies.serving.config import ServerConfig
from pitune.policies.serving.server import PolicyServer


def decide(policy: FlowPolicy, state: Tensor, memory: Tensor | None) -> tuple[Tensor, Context]:
    """Return the velocity at fixed points and the context of decisions with states (N, 5)."""
    context = policy.encode(policy.model_input({"state": state}, memory=memory))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(state), 1, *policy.chunk_shape, generator=generator)
    return policy.network.velocity(context, x, torch.full((len(state), 1), 0.5)).velocity, context


def written_in(context: Context) -> Tensor:
    assert context.written is not None
    return context.written


def states(seed: int, num: int = 3) -> Tensor:
    return torch.randn(num, 5, generator=torch.Generator().manual_seed(seed))


def test_the_second_decision_depends_on_the_first_through_the_memory_alone() -> None:
    policy = memory_policy()
    empty = policy.empty_memory(3)
    with torch.no_grad():
        written = [written_in(decide(policy, states(seed), empty)[1]) for seed in (1, 2)]
        second = [decide(policy, states(3), memory)[0] for memory in written]
        assert not torch.allclose(written[0], written[1], atol=1e-3)
        assert float((second[0] - second[1]).abs().max()) > 1e-3
        # the reset is the only other input
        reset = [decide(policy, states(3), empty)[0] for _ in range(2)]
        assert torch.equal(reset[0], reset[1])
        assert empty is not None
        assert not empty.any()


def test_the_first_decision_is_independent_of_the_memory_that_it_writes() -> None:
    """The control: with other weights of the writing it acts the same."""
    policy = memory_policy()
    with torch.no_grad():
        before, context = decide(policy, states(1), policy.empty_memory(3))
        memory_module(policy).write_slots.add_(1.0)
        after, other = decide(policy, states(1), policy.empty_memory(3))
    assert torch.equal(before, after)
    assert not torch.equal(written_in(context), written_in(other))


def test_a_gradient_flows_through_two_decisions_to_the_first_observation() -> None:
    policy = memory_policy()
    first, middle = states(1).requires_grad_(), states(2).requires_grad_()
    memory = policy.empty_memory(3)
    for state in (first, middle):  # normalized
        inputs = policy.model_input({"state": state}, memory=memory)
        memory = policy.encode(replace(inputs, state=state)).written
    velocity, _ = decide(policy, states(3), memory)
    grads = torch.autograd.grad(
        velocity.square().sum(),
        [first, middle, *policy.network.options["memory"].parameters()],
        allow_unused=True,
    )
    assert all(grad is not None and float(grad.abs().max()) > 0 for grad in grads)


def test_rows_are_independent_and_the_memory_stays_in_its_bounds() -> None:
    policy = memory_policy()
    generator = torch.Generator().manual_seed(0)
    memory = torch.rand(3, 2, 16, generator=generator) * 2 - 1
    with torch.no_grad():
        _, context = decide(policy, states(1), memory)
        assert float(written_in(context).abs().max()) <= 1
        _, alone = decide(policy, states(1)[1:2], memory[1:2])
    assert torch.allclose(written_in(context)[1:2], written_in(alone), atol=1e-6)


def test_an_untrained_memory_is_the_identity_and_learns_from_the_first_step() -> None:
    policy = memory_policy(trained=False)
    random = torch.randn(3, 2, 16)
    plain, _ = decide(policy, states(1), policy.empty_memory(3))
    other, _ = decide(policy, states(1), random)
    assert torch.equal(plain, other)
    weight = memory_module(policy).o_proj.weight
    (grad,) = torch.autograd.grad(other.square().sum(), [weight])
    assert float(grad.abs().max()) > 0


def test_a_session_remembers_until_it_is_reset() -> None:
    policy = memory_policy()
    noise = np.zeros(policy.chunk_shape, np.float32)
    shown, later = {"state": states(1)[0].numpy()}, {"state": states(2)[0].numpy()}
    session, other = InferenceSession(policy), InferenceSession(policy)
    begin = session.infer(later, noise)
    session.reset()
    session.infer(shown, noise)
    assert not np.allclose(session.infer(later, noise), begin, atol=1e-4)
    np.testing.assert_array_equal(other.infer(later, noise), begin)  # sessions are independent
    session.reset()
    np.testing.assert_array_equal(session.infer(later, noise), begin)


def test_a_session_acts_as_the_policy_with_an_explicit_memory() -> None:
    policy = memory_policy()
    noise = torch.randn(1, *policy.chunk_shape)
    session, memory = InferenceSession(policy), policy.empty_memory(1)
    for number in range(3):
        state = states(number, 1)
        inputs = policy.model_input({"state": state}, memory=memory)
        with torch.no_grad():
            expected = policy.sample_chunk(inputs, noise)[0]
            memory = policy.encode(inputs).written
        found = session.infer({"state": state[0].numpy()}, noise.numpy())
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_a_failed_observation_leaves_the_memory_of_a_session() -> None:
    session = InferenceSession(memory_policy())
    session.infer({"state": states(1)[0].numpy()})
    before = session.memory
    with pytest.raises(ValueError, match="state"):
        session.infer({"state": np.zeros(3, np.float32)})
    assert session.memory is before


def test_a_checkpoint_holds_the_memory(tmp_path: Path) -> None:
    policy = memory_policy()
    policies.save(policy, tmp_path / "policy")
    loaded = policies.load(tmp_path / "policy")
    assert loaded.network.config.options == OPTIONS
    memory = torch.rand(3, 2, 16)
    with torch.no_grad():
        velocity, context = decide(loaded, states(1), memory)
        expected, other = decide(policy, states(1), memory)
    assert torch.equal(velocity, expected)
    assert torch.equal(written_in(context), written_in(other))


# Refusals


def test_observations_without_a_memory_are_refused() -> None:
    policy = memory_policy()
    inputs = policy.model_input({"state": states(1)})
    message = r"the policy has a memory \(options.memory\), but the observations have none; add"
    with pytest.raises(ValueError, match=message):
        policy.encode(inputs)
    with pytest.raises(ValueError, match=message):
        policy.critic_input(inputs, None)


def test_inference_without_a_session_and_serving_are_refused() -> None:
    policy = memory_policy()
    with pytest.raises(ValueError, match=r"each decision of an episode hands on .* take `Infere"):
        infer(policy, {"state": np.zeros(5, np.float32)})
    with pytest.raises(ValueError, match=r"openpi's protocol has no message for the beginning"):
        PolicyServer(policy, ServerConfig())


def test_a_decision_delay_is_refused() -> None:
    policy = memory_policy()
    with pytest.raises(ValueError, match=r"cannot be combined with a memory \(options.memory\)"):
        policy.replace(sampler=replace(policy.sampler, delay=DelayConfig(steps=1)))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    sizes = memory_policy().network.config
    with pytest.raises(ValueError, match=r"num_tokens=2 needs heads that divide .* width=16, and"):
        MemoryConfig(num_tokens=2).check(replace(sizes, expert=replace(sizes.expert, num_heads=3)))


def test_the_input_of_critics_holds_the_memory() -> None:
    policy = memory_policy()
    inputs = policy.model_input({"state": states(1)}, memory=torch.rand(3, 2, 16))
    found = policy.critic_input(inputs, None)
    assert found.shape[1] == policy.critic_state_dim == 5 + 2 * 16
    assert isinstance(policy.network.options["memory"], Memory)
    assert isinstance(inputs, ModelInput)
