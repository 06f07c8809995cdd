"""Knowledge insulation: no gradient of the flow in the vision-language model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pitune.policies import FlowPolicy, ModelInput, NetworkOptions, Pi0
from pitune.policies.network.config import LAPTOP_EXPERT, Family, Pi0Config
from pitune.policies.network.options.insulation import InsulationConfig
from pitune.policies.network.options.language_head import (
    LanguageHeadConfig,
    text_of,
    token_loss,
)
from vision_policies import vision_policy

VLM = "paligemma_with_expert.paligemma."


def policy_with(family: Family, insulated: bool) -> FlowPolicy:
    policy = vision_policy(family)
    options = NetworkOptions(
        insulation=InsulationConfig(enabled=insulated),
        language_head=LanguageHeadConfig(enabled=True),
    )
    network = Pi0(replace(policy.network.config, options=options))
    network.load_state_dict(policy.network.state_dict())
    return policy.replace(network=network)


def inputs(num: int = 3) -> ModelInput:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randint(256, (num, 3, 3, 28, 28), dtype=torch.uint8, generator=generator)
    return ModelInput(
        state=torch.rand(num, 32, generator=generator),
        robot_state=torch.rand(num, 4, generator=generator),
        images=pictures,
        tokens=torch.randint(3, 500, (num, 6), generator=generator),
        token_mask=torch.ones(num, 6, dtype=torch.bool),
    )


def sizes(policy: FlowPolicy, loss: Tensor) -> tuple[float, float]:
    """Return the sizes of a loss's gradient in the VLM and in the rest of the network."""
    policy.zero_grad()
    loss.backward()
    total = {True: 0.0, False: 0.0}
    for name, value in policy.network.named_parameters():
        if value.grad is not None:
            total[name.startswith(VLM)] += float(value.grad.square().sum())
    return total[True] ** 0.5, total[False] ** 0.5


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_the_flow_has_no_gradient_in_the_vlm_with_insulation_and_has_one_without(
    family: Family,
) -> None:
    torch.manual_seed(0)
    action = torch.rand(3, 4, 2)
    found = {}
    for insulated in (True, False):
        policy = policy_with(family, insulated)
        torch.manual_seed(2)
        loss = policy.loss(inputs(), action).mean()
        found[insulated] = (float(loss.detach()), *sizes(policy, loss))
    assert found[True][0] == found[False][0]  # the numbers are the same
    assert found[True][1] == 0.0
    assert found[False][1] > 1e-3  # the control
    assert found[True][2] == pytest.approx(found[False][2], rel=1e-5)
    assert found[True][2] > 1e-3


def test_a_policy_gradient_through_a_chain_stays_out_of_the_vlm_too() -> None:
    from pitune.policies import FlowSDEConfig, LikelihoodActor

    for insulated in (True, False):
        policy = policy_with("pi0", insulated)
        torch.manual_seed(0)
        actor = LikelihoodActor(policy, FlowSDEConfig())
        context = policy.encode(inputs())
        dist = actor.likelihood.distribution(policy, context, 3, {})
        chain, _ = dist.sample_and_log_prob(policy.draw_noise(3))
        in_vlm, in_expert = sizes(policy, dist.log_prob(chain.detach()).mean())
        assert (in_vlm == 0.0) == insulated
        assert in_expert > 0


def test_the_language_loss_trains_the_vlm_with_insulation_and_nothing_else() -> None:
    policy = policy_with("pi0", insulated=True)
    rows = inputs()
    tower = policy.network.vlm
    assert tower is not None
    loss = token_loss(
        tower.language_model,
        text_of(policy.encode(rows)),  # after the state token, whose cache is insulated
        torch.randint(3, 500, (3, 4)),
        torch.ones(3, 4, dtype=torch.bool),
    ).mean()
    in_vlm, in_expert = sizes(policy, loss)
    assert in_vlm > 1e-3
    assert in_expert == 0.0


def test_a_network_without_a_vlm_has_nothing_to_insulate() -> None:
    options = NetworkOptions(insulation=InsulationConfig(enabled=True))
    with pytest.raises(ValueError, match=r"options\.insulation\.enabled=True has no use with vlm"):
        Pi0Config(
            state_dim=4, action_dim=2, action_horizon=4, expert=LAPTOP_EXPERT, options=options
        )
