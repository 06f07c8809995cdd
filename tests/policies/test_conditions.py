"""Conditions of a policy: their null, what it acts with, guidance, and the two prefixes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from network_options import perturb
from pitune import policies, rl
from pitune.policies import (
    Actor,
    FlowPolicy,
    LikelihoodActor,
    ModelInput,
    NetworkOptions,
    Pi0,
    RealTimeConfig,
    likelihood_config,
    likelihoods,
)
from pitune.policies.finetuning.trainable import FinetuneConfig, apply_finetuning
from pitune.policies.flow.guidance import GuidanceConfig
from pitune.policies.network.context import pack, unpack
from pitune.policies.network.options.add import network_with_options
from pitune.policies.network.options.language_head import LanguageHeadConfig, text_of
from pitune.policies.network.options.tokens.conditioning import (
    ConditioningConfig,
    condition_of,
    drop_conditions,
)
from pitune.policies.network.options.tokens.registers import RegistersConfig
from pitune.rl.algorithms.bc import CloningStep
from vision_policies import vision_policy

ADVANTAGE = ConditioningConfig(advantage=True)
WORDS = ConditioningConfig(instruction=True)


def conditioned(policy: FlowPolicy, option: ConditioningConfig, **guidance: Any) -> FlowPolicy:
    """Return the policy with conditions, perturbed as if they had been trained."""
    network = network_with_options(policy.network, NetworkOptions(conditioning=option), None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in network.options.parameters():
            value.add_(0.5 * torch.randn(value.shape, generator=generator))
    sampler = replace(policy.sampler, guidance=GuidanceConfig(**guidance))
    return policy.replace(network=network, sampler=sampler)


def with_guidance(policy: FlowPolicy, **guidance: Any) -> FlowPolicy:
    return policy.replace(sampler=replace(policy.sampler, guidance=GuidanceConfig(**guidance)))


def state_rows(policy: FlowPolicy, num: int = 5) -> ModelInput:
    state = torch.rand(num, 4, generator=torch.Generator().manual_seed(0))
    return policy.model_input({"state": state})


def seen_rows(policy: FlowPolicy, num: int = 3) -> ModelInput:
    generator = torch.Generator().manual_seed(2)
    obs = {"state": torch.rand(num, 4, generator=generator), "task_id": torch.arange(num) % 2}
    for camera in ("front", "wrist"):
        shape = (num, 3, 20, 20)
        obs[f"image/{camera}"] = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return policy.model_input(obs, ("reach the goal", "go away from the goal and stop there"))


def noise_of(policy: FlowPolicy, num: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num, *policy.chunk_shape, generator=generator)


@torch.no_grad()
def actions(policy: FlowPolicy, inputs: ModelInput) -> Tensor:
    return policy.sample_actions(inputs, noise_of(policy, len(inputs)))


# What a policy acts with


def test_a_policy_acts_with_the_advantage_of_its_settings(tiny_policy: Callable) -> None:
    policy = conditioned(tiny_policy(), ADVANTAGE)
    inputs = state_rows(policy)
    for word, index in (("positive", 1), ("negative", 0), ("dropped", -1)):
        own = with_guidance(policy, advantage=word)
        given = replace(inputs, condition=torch.full((5, 1), index))
        assert torch.equal(actions(own, inputs), actions(policy, given))
    positive, negative = (
        actions(with_guidance(policy, advantage=word), inputs) for word in ("positive", "negative")
    )
    assert not torch.allclose(positive, negative, atol=1e-2)


def test_a_policy_acts_with_the_highest_return(tiny_policy: Callable) -> None:
    policy = conditioned(tiny_policy(), ConditioningConfig(advantage=True, return_bins=7))
    inputs = state_rows(policy)
    given = replace(inputs, condition=torch.tensor([[1, 6]]).expand(5, -1))
    assert torch.equal(actions(policy, inputs), actions(policy, given))
    lower = replace(inputs, condition=torch.tensor([[1, 2]]).expand(5, -1))
    assert not torch.allclose(actions(policy, inputs), actions(policy, lower), atol=1e-2)


def test_conditions_have_a_column_for_each_kind() -> None:
    option = ConditioningConfig(advantage=True, return_bins=5)
    found = condition_of(option.kinds, 2, {"return": torch.tensor([3, 4])})
    assert found.tolist() == [[-1, 3], [-1, 4]]
    assert condition_of(WORDS.kinds, 2, {}).tolist() == [[0], [0]]


def test_a_condition_for_a_network_without_any_is_refused(tiny_policy: Callable) -> None:
    policy = tiny_policy()
    inputs = replace(state_rows(policy), condition=torch.ones(5, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="observations have a condition, but the network has none"):
        policy.encode(inputs)
    wide = replace(inputs, condition=torch.ones(5, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"condition has shape \(5, 3\); it must be \(B, 1\)"):
        actions(conditioned(policy, ADVANTAGE), wide)


# Guidance


@pytest.mark.parametrize("option", [ADVANTAGE, WORDS], ids=["advantage", "instruction"])
def test_guidance_is_the_combination_of_both_velocities(option: ConditioningConfig) -> None:
    policy = conditioned(vision_policy(), option, scale=2.0)
    inputs = seen_rows(policy)
    x, time = torch.randn(3, 2, *policy.chunk_shape), torch.rand(3, 2)
    dropped = replace(inputs, condition=torch.full((3, 1), -1))
    with torch.no_grad():
        found = policy.field(policy.encode(inputs))(x, time).velocity
        plain = with_guidance(policy)
        v, u = (plain.field(plain.encode(i))(x, time).velocity for i in (inputs, dropped))
    assert not torch.allclose(v, u, atol=1e-3)
    assert torch.allclose(found, v + 2 * (v - u), atol=1e-5)


def test_scale_zero_evaluates_the_condition_alone(
    tiny_policy: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = conditioned(tiny_policy(), ADVANTAGE, scale=0.0)
    inputs, calls = state_rows(policy), list[int]()
    original = Pi0.velocity

    def counted(self: Pi0, *given: Any) -> Any:
        calls.append(1)
        return original(self, *given)

    monkeypatch.setattr(Pi0, "velocity", counted)
    actions(policy, inputs)
    assert len(calls) == policy.sampler.flow_steps
    actions(with_guidance(policy, scale=1.0), inputs)
    assert len(calls) == 3 * policy.sampler.flow_steps


@pytest.mark.parametrize("option", [ADVANTAGE, WORDS], ids=["advantage", "instruction"])
@pytest.mark.parametrize("form", ["cfg", "apg"])
def test_the_ratio_of_every_likelihood_is_one_with_guidance(
    option: ConditioningConfig, form: Any
) -> None:
    policy = conditioned(vision_policy(), option, scale=1.5, form=form)
    td = TensorDict({"model_input": seen_rows(policy).tensordict()}, [3])
    for name in likelihoods():
        if name in ("ode", "fast"):  # of the whole chunk, and of tokens without a flow
            continue
        torch.manual_seed(0)
        actor = LikelihoodActor(policy, likelihood_config(name))
        decided = actor(td.copy())
        dist = actor.get_dist(decided)
        ratio = dist.log_prob(decided["chain"]) - decided["action_log_prob"]
        assert float(ratio.abs().max()) < 1e-4, name
        # the control: a scorer without the guidance of the sampler
        other = LikelihoodActor(with_guidance(policy), likelihood_config(name))
        other.likelihood = actor.likelihood
        off = other.get_dist(decided).log_prob(decided["chain"]) - decided["action_log_prob"]
        assert float(off.abs().max()) > 1e-3, name


def test_momentum_is_for_deployed_policies_alone(tiny_policy: Callable) -> None:
    policy = conditioned(tiny_policy(), ADVANTAGE, scale=1.0, form="apg", momentum=-0.5)
    inputs = state_rows(policy)
    assert torch.equal(actions(policy, inputs), actions(policy, inputs))  # no state is left over
    plain = with_guidance(policy, scale=1.0, form="apg")
    assert not torch.allclose(actions(policy, inputs), actions(plain, inputs), atol=1e-4)
    with pytest.raises(ValueError, match=r"momentum=-0.5 makes a flow step depend on the earlier"):
        LikelihoodActor(policy, likelihood_config("flow_sde"))
    guided = replace(policy.sampler, real_time=RealTimeConfig(method="guided"))
    with pytest.raises(ValueError, match=r"real_time.method='guided' evaluates several"):
        policy.replace(sampler=guided)
    for solver in ("midpoint", "heun"):
        with pytest.raises(ValueError, match=rf"solver='{solver}' evaluates several"):
            policy.replace(sampler=replace(policy.sampler, solver=solver))


def test_an_advantage_needs_a_network_with_one(tiny_policy: Callable) -> None:
    for policy in (tiny_policy(), conditioned(tiny_policy(), ConditioningConfig(return_bins=3))):
        with pytest.raises(ValueError, match=r"advantage='negative' chooses an advantage, and"):
            with_guidance(policy, advantage="negative")


def test_guidance_needs_a_condition(tiny_policy: Callable) -> None:
    with pytest.raises(ValueError, match=r"guidance.scale=1.0 drops a condition, and this network"):
        with_guidance(tiny_policy(), scale=1.0)


# Two prefixes


def test_a_kept_prefix_keeps_both(encoded: list[int]) -> None:
    policy = conditioned(vision_policy(), WORDS, scale=1.0)
    inputs = seen_rows(policy)
    with torch.no_grad():
        prefix = policy.encode_prefix(inputs)
        stored = unpack(pack(prefix))
        encoded.clear()
        again = policy.solve(policy.encode(inputs, stored), noise_of(policy, 3))
        assert encoded == []
        fresh = policy.solve(policy.encode(inputs), noise_of(policy, 3))
        assert encoded == [3, 3]  # with the words, and without them
    assert torch.equal(again, fresh)
    assert stored.null is not None
    assert not torch.allclose(stored.null.cache[0][1], stored.cache[0][1], atol=1e-3)


@torch.no_grad()
def test_both_prefixes_share_one_pass_of_the_vision_tower() -> None:
    policy = conditioned(vision_policy(), WORDS, scale=1.0)
    inputs, passes = seen_rows(policy), []
    vlm: Any = policy.network.vlm
    tower = vlm.vision_tower["vision_model"]
    tower.register_forward_hook(lambda *_: passes.append(1))
    prefix = policy.encode_prefix(inputs)
    assert len(passes) == 1
    # the same numbers as two passes
    apart = replace(inputs, condition=torch.full((3, 1), -1))
    null = with_guidance(policy).encode_prefix(apart)
    assert prefix.null is not None
    assert torch.equal(prefix.null.features, null.features)
    plain = with_guidance(policy).encode_prefix(inputs)
    assert torch.equal(prefix.features, plain.features)
    assert len(passes) == 3


def test_the_loss_of_a_guided_policy_encodes_no_null(encoded: list[int]) -> None:
    policy = conditioned(vision_policy(), WORDS, scale=1.0)
    inputs, noise, time = seen_rows(policy), noise_of(policy, 3), torch.rand(3)
    action = torch.rand(3, 4, 2)
    loss = policy.loss(inputs, action, noise, time)
    assert encoded == [3]  # the velocity that is trained is that without guidance
    assert torch.equal(loss, with_guidance(policy).loss(inputs, action, noise, time))
    kept = policy.loss(inputs, action, noise, time, policy.encode_prefix(inputs))
    assert torch.allclose(kept, loss, atol=1e-6)


@torch.no_grad()
def test_rows_of_a_kept_prefix_can_drop_their_words() -> None:
    policy = conditioned(vision_policy(), WORDS, scale=1.0)
    inputs = replace(seen_rows(policy), condition=torch.tensor([[0], [-1], [0]]))
    prefix = policy.encode_prefix(seen_rows(policy))
    kept, fresh = policy.encode(inputs, prefix), policy.encode(inputs)
    for (key, value), (other_key, other_value) in zip(kept.cache, fresh.cache, strict=True):
        assert torch.allclose(key, other_key, atol=1e-5)
        assert torch.allclose(value, other_value, atol=1e-5)
    assert torch.allclose(kept.features, fresh.features, atol=1e-5)
    plain = with_guidance(policy)
    with pytest.raises(ValueError, match="stored prefixes have no null"):
        plain.encode(inputs, plain.encode_prefix(seen_rows(plain)))
    with pytest.raises(ValueError, match="encoded without its null, which guidance"):
        policy.field(plain.encode(seen_rows(plain)))


@torch.no_grad()
def test_a_prefix_that_was_encoded_without_some_words_is_taken_as_it_is(encoded: list[int]) -> None:
    policy = conditioned(vision_policy(), WORDS)
    inputs = replace(seen_rows(policy), condition=torch.tensor([[0], [-1], [0]]))
    for prefix in (policy.encode_prefix(inputs), unpack(pack(policy.encode_prefix(inputs)))):
        encoded.clear()
        given = policy.encode(inputs, prefix)
        assert encoded == []
        assert torch.equal(given.features, policy.encode(inputs).features)


@torch.no_grad()
def test_a_dropped_row_of_a_kept_prefix_predicts_tokens_without_its_words() -> None:
    policy = conditioned(vision_policy(), WORDS, scale=1.0)
    head = NetworkOptions(
        language_head=LanguageHeadConfig(enabled=True), registers=RegistersConfig(prefix=2)
    )
    policy = policy.replace(network=network_with_options(policy.network, head, None))
    perturb(policy.network)  # so that registers differ between rows
    inputs = replace(seen_rows(policy), condition=torch.tensor([[0], [-1], [0]]))
    kept = text_of(policy.encode(inputs, policy.encode_prefix(seen_rows(policy))))
    fresh = text_of(policy.encode(inputs))
    assert torch.allclose(kept.last, fresh.last, atol=1e-5)
    assert torch.allclose(kept.cache[0][1], fresh.cache[0][1], atol=1e-5)
    assert kept.registers is not None
    assert fresh.registers is not None
    assert torch.allclose(kept.registers[1][1], fresh.registers[1][1], atol=1e-5)


def test_a_trained_null_of_the_words_is_no_frozen_prefix() -> None:
    policy = conditioned(vision_policy(), WORDS)
    apply_finetuning(policy, FinetuneConfig(trainable=("action_expert",)))
    assert policy.prefix_is_frozen
    policy.network.options.requires_grad_(True)
    assert not policy.prefix_is_frozen


def test_the_words_of_a_dropped_row_have_no_influence() -> None:
    policy = conditioned(vision_policy(), WORDS)
    inputs = seen_rows(policy, 2)
    assert inputs.tokens is not None
    assert inputs.token_mask is not None
    words = inputs.tokens.flip(0) * 0 + 7
    for index, same in ((-1, True), (0, False)):
        given = replace(inputs, condition=torch.full((2, 1), index))
        other = replace(given, tokens=words)
        assert torch.equal(actions(policy, given), actions(policy, other)) == same


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="instruction=True, but the network reads no instruction"):
        NetworkOptions(conditioning=WORDS).check(
            policies.Pi0Config(
                state_dim=4, action_dim=2, action_horizon=2, expert=policies.LAPTOP_EXPERT
            )
        )
    with pytest.raises(ValueError, match=r"drops the whole prompt, and π0\.5 has its state there"):
        NetworkOptions(conditioning=WORDS).check(vision_policy("pi05").network.config)


# Training


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("option", [ADVANTAGE, WORDS], ids=["advantage", "instruction"])
def test_the_null_is_trained_exactly_where_conditions_are_dropped(
    option: ConditioningConfig, dropout: float
) -> None:
    policy = conditioned(vision_policy(), option)
    nulls = [p for name, p in policy.network.named_parameters() if ".nulls." in name]
    before = [value.detach().clone() for value in nulls]
    config = rl.BCConfig(minibatch_size=6, weight_decay=0.0, condition_dropout=dropout)
    step = CloningStep(policy, config)
    inputs = seen_rows(policy, 6).tensordict()
    torch.manual_seed(0)
    step(TensorDict({"model_input": inputs, "action": torch.rand(6, 4, 2)}, [6]))
    moved = [not torch.equal(old, new) for old, new in zip(before, nulls, strict=True)]
    assert moved == [dropout > 0]


def test_a_share_of_each_kind_is_dropped() -> None:
    torch.manual_seed(0)
    kept = torch.tensor([[1, 4]]).expand(20_000, -1)
    dropped = drop_conditions(kept, 0.3) == -1
    assert dropped.float().mean(0).tolist() == pytest.approx([0.3, 0.3], abs=0.01)
    both = float(dropped.all(1).float().mean())
    assert both == pytest.approx(0.09, abs=0.01)  # separately
    assert torch.equal(drop_conditions(kept, 0.0), kept)


def test_dropping_needs_conditions(tiny_policy: Callable) -> None:
    message = r"condition_dropout=0.1 drops conditions, and this network has none; set it to 0"
    with pytest.raises(ValueError, match=message):
        CloningStep(tiny_policy(), rl.BCConfig(condition_dropout=0.1))


# Checkpoints and deployment


def test_a_checkpoint_holds_conditions_and_guidance(tmp_path: Path, tiny_policy: Callable) -> None:
    policy = conditioned(tiny_policy(), ADVANTAGE, scale=1.5, form="apg", norm_limit=3.0)
    policies.save(policy, tmp_path / "policy")
    again = policies.load(tmp_path / "policy")
    assert again.sampler == policy.sampler
    assert again.network.config.options == policy.network.config.options
    inputs = state_rows(policy)
    assert torch.equal(actions(again, inputs), actions(policy, inputs))


def test_deployment_uses_the_guidance(tiny_policy: Callable) -> None:
    """For a robot's observation and behind the actor's interface too."""
    policy = conditioned(tiny_policy(), ADVANTAGE, scale=1.5)
    inputs = state_rows(policy, 1)
    noise = noise_of(policy, 1)
    raw = {"observation/state": inputs.robot_state[0].numpy()}
    expected = policy.sample_chunk(inputs, noise)[0].detach().numpy()
    assert policies.infer(policy, raw, noise[0].numpy()) == pytest.approx(expected)
    plain = policies.infer(with_guidance(policy), raw, noise[0].numpy())
    assert plain != pytest.approx(expected, abs=1e-3)
    td = TensorDict({"model_input": inputs.tensordict(), "noise": noise}, [1])
    acted = Actor(policy)(td)["action"]
    assert torch.equal(acted, actions_from(policy, inputs, noise))


@torch.no_grad()
def actions_from(policy: FlowPolicy, inputs: ModelInput, noise: Tensor) -> Tensor:
    return policy.sample_actions(inputs, noise)
