"""`epo` on π0.5: genes enter through the flow-time condition, because there is no state token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.envs import ExplorationType, set_exploration_type

from pitune import envs, policies, rl
from pitune.policies import FlowPolicy, ModelInput, likelihood_config
from pitune.policies.network.config import Family
from settings import changed
from vision_policies import ENV, vision_policy


def new_epo(family: Family, likelihood: str = "flow_sde", aggregate: float = 1.0) -> rl.EPO:
    torch.manual_seed(0)
    policy = vision_policy(family)
    with torch.no_grad():  # an untrained adaptive norm ignores its condition
        for name, value in policy.network.expert.named_parameters():
            if "dense" in name:
                value.add_(0.05 * torch.randn_like(value))
    ppo = changed(
        rl.PPOConfig(likelihood=likelihood_config(likelihood)),
        critic_warmup=0,
        minibatch_size=8,
        num_epochs=1,
    )
    return rl.EPO(rl.EPOConfig(ppo=ppo, num_members=2, aggregate=aggregate), policy)


def gather(algorithm: rl.EPO) -> TensorDictBase:
    torch.manual_seed(0)
    rollout = rl.Rollouts(envs.make(replace(ENV, num_envs=4)), algorithm, 3, seed=0).collect()
    rollout["next", "reward_steps"] += torch.rand(rollout["next", "reward_steps"].shape)
    return rollout


def tell_apart(algorithm: rl.EPO) -> None:
    with torch.no_grad():
        algorithm.actor.population.to_policy.normal_(std=0.5)


def actions(policy: FlowPolicy, rollout: TensorDictBase) -> torch.Tensor:
    rows = rollout.flatten()
    noise = torch.ones(len(rows), *policy.chunk_shape)
    with torch.no_grad():
        return policy.sample_actions(ModelInput.of(rows), noise)


def test_every_member_starts_as_the_pretrained_policy() -> None:
    algorithm = new_epo("pi05")
    rollout = gather(algorithm)
    expected = actions(vision_policy_of(algorithm), rollout)
    for member in range(2):
        assert torch.equal(actions(algorithm.actor.member_policy(member), rollout), expected)


def vision_policy_of(algorithm: rl.EPO) -> FlowPolicy:
    """Return the shared policy, without a gene."""
    return algorithm.actor.policy


@pytest.mark.parametrize("likelihood", ["flow_sde", "flow_noise", "flow_matching"])
def test_the_ratio_is_one_and_the_genes_learn(likelihood: str) -> None:
    algorithm = new_epo("pi05", likelihood)
    tell_apart(algorithm)
    before = algorithm.actor.population.to_policy.detach().clone()
    metrics = algorithm.update(gather(algorithm))
    assert metrics["ratio_deviation"] < 1e-4
    assert metrics["action_spread"] > 1e-3
    assert not torch.equal(algorithm.actor.population.to_policy, before)


def test_scoring_as_another_member_trips_the_ratio() -> None:
    """Negative control."""
    algorithm = new_epo("pi05", aggregate=0.0)
    tell_apart(algorithm)
    rollout = gather(algorithm)
    rollout["member"] = rollout["member"].roll(2, 0)
    assert algorithm.update(rollout)["ratio_deviation"] > 1e-3


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_a_folded_member_is_the_conditioned_one_and_an_ordinary_checkpoint(
    family: Family, tmp_path: Path
) -> None:
    algorithm = new_epo(family)
    tell_apart(algorithm)
    rollout = gather(algorithm)
    td = rollout.flatten().exclude("next", "action")
    noise = torch.ones(len(td), *algorithm.actor.policy.chunk_shape)
    for member in range(2):
        algorithm.actor.best = member
        with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
            acted = algorithm.actor(td.clone().set("noise", noise))["action"]
        folded = algorithm.deployed_policy()
        assert torch.allclose(actions(folded, rollout), acted, atol=1e-5)
        assert not torch.allclose(actions(algorithm.actor.policy, rollout), acted, atol=1e-3)
        assert folded.state_dict().keys() == vision_policy(family).state_dict().keys()
    policies.save(folded, tmp_path / "saved")
    assert torch.equal(
        actions(policies.load(tmp_path / "saved"), rollout), actions(folded, rollout)
    )


def test_the_state_of_a_run_is_restored_bit_for_bit() -> None:
    first, second = new_epo("pi05"), new_epo("pi05")
    tell_apart(first)
    first.update(gather(first))
    state = first.extra_state()
    assert torch.equal(state["bias"], first.actor.policy.network.time_mlp_out.bias)
    second.load_extra_state(state)
    assert torch.equal(second.actor.policy.network.time_mlp_out.bias, state["bias"])
