"""Decisions and cloning do without the pooled features of an observation, which critics read."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from network_options import perturb
from pitune.policies import FlowPolicy, ModelInput, NetworkOptions
from pitune.policies.flow.guidance import GuidanceConfig
from pitune.policies.network.config import Family
from pitune.policies.network.options.add import network_with_options
from pitune.policies.network.options.language_head import LanguageHeadConfig
from pitune.policies.network.options.tokens.conditioning import ConditioningConfig
from pitune.policies.network.options.value_residual import ValueResidualConfig
from vision_policies import preprocessed, vision_policy

NUM = 3
OPTIONS = {
    "none": NetworkOptions(),
    "value_residual": NetworkOptions(value_residual=ValueResidualConfig(mode="dynamic")),
    "guidance": NetworkOptions(conditioning=ConditioningConfig(instruction=True)),
}
"""Options of the network. With the last one guidance drops the words."""


def policy_with(family: Family, name: str) -> FlowPolicy:
    """Return a policy with pictures, words and options, perturbed as if they had been trained."""
    policy = vision_policy(family)
    network = network_with_options(policy.network, OPTIONS[name], None)
    perturb(network)
    guidance = GuidanceConfig(scale=0.5 if name == "guidance" else 0.0)
    return policy.replace(network=network, sampler=replace(policy.sampler, guidance=guidance))


def with_features_always(policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a policy compute the features in each encoding, as before."""
    original = FlowPolicy.encode

    def encode(self: FlowPolicy, *args: Any, **named: Any) -> Any:
        return original(self, *args, **{**named, "with_features": True})

    monkeypatch.setattr(policy, "encode", partial(encode, policy))


def results(policy: FlowPolicy) -> list[Tensor]:
    """Return chunks, the loss of cloning and its gradients."""
    inputs = ModelInput.of(preprocessed(policy, NUM))
    torch.manual_seed(0)
    with torch.no_grad():
        chunk = policy.decide(inputs).chunk
    loss = policy.loss(inputs, torch.rand(NUM, 4, 2), flow_time=torch.full((NUM,), 0.3))
    policy.zero_grad()
    loss.mean().backward()
    return [chunk, loss, *(p.grad for p in policy.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    ("family", "name"),
    [("pi0", "none"), ("pi05", "none"), ("pi0", "value_residual"), ("pi0", "guidance")],
)
def test_numbers_and_gradients_are_those_of_an_encoding_with_features(
    family: Family, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_with(family, name)
    without = results(policy)
    with_features_always(policy, monkeypatch)
    expected = results(policy)
    assert len(without) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(without, expected, strict=True))


def test_the_last_layer_of_the_language_model_computes_its_keys_and_values_alone() -> None:
    policy = policy_with("pi0", "none")
    vlm, calls = policy.network.vlm, []
    assert vlm is not None
    layers = list(vlm.language_model.layers)
    for i, layer in enumerate(layers):
        layer.get_submodule("mlp").register_forward_hook(lambda *_, i=i: calls.append(i))
    inputs, last = ModelInput.of(preprocessed(policy, NUM)), len(layers) - 1
    policy.decide(inputs)
    assert calls == list(range(last))
    calls.clear()
    policy.encode(inputs)
    assert calls == list(range(last + 1))


def test_a_critic_refuses_an_observation_without_features() -> None:
    policy = policy_with("pi0", "none")
    inputs = ModelInput.of(preprocessed(policy, NUM))
    context = policy.encode(inputs, with_features=False)
    assert context.features.shape == (NUM, 0)
    with pytest.raises(ValueError, match="encoded without features, and a critic reads them"):
        policy.critic_input(inputs, context)


def test_a_language_head_keeps_the_end_of_the_prompt() -> None:
    policy = vision_policy("pi0")
    options = NetworkOptions(language_head=LanguageHeadConfig(enabled=True))
    policy = policy.replace(network=network_with_options(policy.network, options, None))
    inputs = ModelInput.of(preprocessed(policy, NUM))
    found = [policy.encode(inputs, with_features=value).last for value in (False, True)]
    assert found[0] is not None
    assert found[1] is not None
    assert torch.equal(found[0], found[1])
