"""`reference`, `value`: divergences, cloning and the scale of returns, by hand."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Normal

from observations import observed
from pitune.policies import LikelihoodActor, ModelInput, likelihood_config
from pitune.rl.policy_gradient.loss import log_ratios
from pitune.rl.policy_gradient.reference import Reference
from pitune.rl.policy_gradient.value import ValueCritic

# The reference


@pytest.mark.parametrize("name", ["flow_sde", "flow_noise"])
@torch.no_grad()
def test_the_divergence_is_that_of_the_policy_from_the_reference(
    name: str, tiny_policy: Callable
) -> None:
    """Not the other way round, which differs once the noise is learned."""
    torch.manual_seed(0)
    policy = tiny_policy(horizon=3)
    actor = LikelihoodActor(policy, likelihood_config(name))
    reference = Reference(actor)
    batch = actor(observed(policy, torch.rand(8, 4)))
    policy.network.action_out_proj.bias += 0.2
    if name == "flow_noise":  # another noise than the reference's
        actor.likelihood.get_parameter("head.net.4.bias").add_(1.0)
    _, dist = log_ratios(actor, batch)
    old = reference.actor.get_dist(batch)
    old.log_prob(batch["chain"])
    mask = policy.executed_mask().bool()
    new, fixed = (d.scored.transition for d in (dist, old))  # type: ignore[attr-defined]
    normals = [Normal(t.mean[..., mask], t.std.expand_as(t.mean)[..., mask]) for t in (new, fixed)]
    expected = torch.distributions.kl_divergence(*normals).sum(-1)
    assert torch.allclose(reference.divergence(batch, dist, "kernel"), expected, rtol=1e-3)
    turned = torch.distributions.kl_divergence(*normals[::-1]).sum(-1)
    assert torch.allclose(turned, expected, rtol=1e-3) is (name == "flow_sde")

    difference = (dist.velocity - old.velocity).square()[..., mask]
    found = reference.divergence(batch, dist, "velocity")
    assert torch.allclose(found, difference.mean(-1), rtol=1e-4)


@torch.no_grad()
def test_cloning_the_reference_is_flow_matching_on_its_deployed_chunks(
    tiny_policy: Callable,
) -> None:
    torch.manual_seed(0)
    policy = tiny_policy()
    actor = LikelihoodActor(policy, likelihood_config("flow_sde"))
    reference, pretrained = Reference(actor), deepcopy(policy)
    batch = actor(observed(policy, torch.rand(8, 4)))
    batch.update(reference.cloning_draws(actor, 8))
    policy.network.action_out_proj.bias += 0.2
    inputs = ModelInput.of(batch)
    chunk = pretrained.sample_actions(inputs, batch["reference_noise"])
    by_hand = policy.loss(inputs, chunk, batch["cloning_noise"], batch["cloning_time"])
    found = reference.cloning_loss(actor, batch)
    assert torch.allclose(found, by_hand.mean((-2, -1)), rtol=1e-4)
    assert not torch.allclose(batch["reference_noise"], batch["cloning_noise"])


# The critic


@torch.no_grad()
def test_a_value_depends_on_the_state_and_on_the_used_time() -> None:
    torch.manual_seed(0)
    critic = ValueCritic(4)

    def value(state: float, elapsed: float) -> float:
        inputs = {"state": torch.full((1, 4), state)}
        rows = {"model_input": inputs, "elapsed": torch.full((1, 1), elapsed)}
        return float(critic.value(TensorDict(rows, [1])))

    assert value(0.1, 0.2) != value(0.1, 0.3)
    assert value(0.1, 0.2) != value(0.2, 0.2)


@torch.no_grad()
def test_the_scale_of_returns_is_that_of_all_batches_so_far() -> None:
    """Of the first twenty all weigh alike."""
    torch.manual_seed(0)
    critic = ValueCritic(4)
    inputs = {"model_input": {"state": torch.rand(6, 4)}, "elapsed": torch.rand(6, 1)}
    rows = TensorDict(inputs, [6])
    value = critic.value(rows)
    targets = 7 + 3 * torch.randn(3, 50, 1)
    targets[1] += 5
    for num, target in enumerate(targets, start=1):
        critic.rescale(target)
        seen = targets[:num]
        assert float(critic.return_mean) == pytest.approx(float(seen.mean()), rel=1e-4)
        assert float(critic.return_std) == pytest.approx(float(seen.std(correction=0)), rel=1e-3)
        assert torch.allclose(critic.value(rows), value, atol=1e-4)  # no value changes
    scaled = critic.scaled(targets)
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-4)
    assert float(scaled.std(correction=0)) == pytest.approx(1, rel=1e-3)
