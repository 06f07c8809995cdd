from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from observations import observed
from pitune import policies
from pitune.policies import Actor, FlowPolicy, NetworkOptions
from pitune.policies.checkpoints.formats import load, save
from pitune.policies.flow.delay import DelayConfig, Seam
from pitune.policies.flow.real_time import RealTimeConfig
from pitune.policies.network.options.add import network_with_options
from pitune.policies.network.options.tokens.memory import MemoryConfig
from pitune.policies.real_time.delayed_actor import DelayedActor, continue_chunk

H, h, N = 8, 4, 3


@pytest.fixture
def policy() -> FlowPolicy:
    torch.manual_seed(0)
    sampler = policies.SamplerConfig(execution_horizon=h, real_time=RealTimeConfig())
    states, actions = torch.randn(50, 4), torch.randn(50, 2)
    policy = policies.small_policy(states, actions, action_horizon=H, sampler=sampler)
    with torch.no_grad():
        for parameter in policy.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


def decision(policy: FlowPolicy, number: int, elapsed: float = 0.5) -> TensorDict:
    """Return the observations of one decision, with their starting noise."""
    torch.manual_seed(100 + number)
    noise = policy.draw_noise(N)
    return observed(policy, torch.randn(N, 4), elapsed=torch.full((N, 1), elapsed), noise=noise)


def chunk(policy: FlowPolicy, td: TensorDict) -> torch.Tensor:
    with torch.no_grad():
        return policy.sample_chunk(policies.ModelInput.of(td), td["noise"])


@pytest.mark.parametrize("seam", ["plain", "real_time"])
def test_without_a_delay_and_a_seam_it_is_the_deployed_actor(
    policy: FlowPolicy, seam: Seam
) -> None:
    # real-time chunking without a remainder's weight: `zeros` weighs the delay alone
    zeros = replace(policy.sampler, real_time=RealTimeConfig(schedule="zeros"))
    policy = policy.replace(sampler=zeros)
    actor = DelayedActor(policy, DelayConfig(steps=0, seam=seam))
    for number in range(3):
        td = decision(policy, number, elapsed=float(number > 0))
        with torch.no_grad():
            expected = Actor(policy)(td.clone())["action"]
        assert torch.equal(actor(td)["action"], expected)


def test_a_late_chunk_leaves_the_first_steps_to_the_old_one(policy: FlowPolicy) -> None:
    actor = DelayedActor(policy, DelayConfig(steps=2))
    first, second = decision(policy, 0, elapsed=0.0), decision(policy, 1)
    assert torch.equal(actor(first)["action"], chunk(policy, first)[:, :h])  # the first is awaited
    executed = actor(second)["action"]
    assert torch.equal(executed[:, :2], chunk(policy, first)[:, h : h + 2])
    assert torch.equal(executed[:, 2:], chunk(policy, second)[:, 2:h])


def test_an_episode_begins_anew_in_its_environment_alone(policy: FlowPolicy) -> None:
    for seam in ("plain", "ensemble", "real_time"):
        actor = DelayedActor(policy, DelayConfig(steps=2, seam=seam))
        actor(decision(policy, 0, elapsed=0.0))
        td = decision(policy, 1)
        td["elapsed"][1] = 0.0
        executed = actor(td)["action"]
        fresh = chunk(policy, td)[:, :h]
        torch.testing.assert_close(executed[1], fresh[1])
        assert (executed[0] - fresh[0]).abs().max() > 1e-3
        assert (executed[2] - fresh[2]).abs().max() > 1e-3


def test_an_ensemble_is_the_weighted_mean_of_all_predictions_of_a_step(policy: FlowPolicy) -> None:
    policy = policy.replace(sampler=replace(policy.sampler, execution_horizon=2))
    actor = DelayedActor(policy, DelayConfig(steps=0, seam="ensemble"))
    tds = [decision(policy, number, elapsed=float(number > 0)) for number in range(3)]
    for td in tds:
        executed = actor(td.clone())["action"]
    chunks = [chunk(policy, td) for td in tds]
    weights = torch.exp(-0.01 * torch.arange(3.0))
    predictions = torch.stack([chunks[0][:, 4:6], chunks[1][:, 2:4], chunks[2][:, :2]])
    expected = (weights[:, None, None, None] * predictions).sum(0) / weights.sum()
    torch.testing.assert_close(executed, expected)


@pytest.mark.parametrize("seam", ["plain", "ensemble", "real_time"])
def test_chunks_that_are_executed_whole_have_no_seam_to_mend(
    policy: FlowPolicy, seam: Seam
) -> None:
    policy = policy.replace(sampler=replace(policy.sampler, execution_horizon=H))
    actor = DelayedActor(policy, DelayConfig(seam=seam))
    for number in range(3):
        td = decision(policy, number, elapsed=float(number > 0))
        expected = chunk(policy, td)
        torch.testing.assert_close(actor(td)["action"], expected)


def test_guided_chunks_continue_the_old_one(policy: FlowPolicy) -> None:
    td = decision(policy, 0)
    inputs = policies.ModelInput.of(td)
    remainder = chunk(policy, decision(policy, 5))[:, h:]
    with torch.no_grad():
        plain = policy.sample_chunk(inputs, td["noise"])
        guided = continue_chunk(policy, inputs, remainder, 2, td["noise"])
    error = (guided - plain).abs()
    assert (guided - remainder.new_zeros(1)).isfinite().all()
    before = (plain[:, :2] - remainder[:, :2]).abs().mean()
    after = (guided[:, :2] - remainder[:, :2]).abs().mean()
    assert after < 0.5 * before
    assert error.max() > 0


def test_relative_actions_are_anchored_anew_to_the_present_state() -> None:
    torch.manual_seed(0)
    stats = policies.NormStats.identity(2)
    preprocessor = policies.PreprocessorConfig(
        state=stats, action=stats, normalization="none", delta_mask=(True, True)
    )
    sampler = policies.SamplerConfig(execution_horizon=h)
    network = policies.small_policy(
        torch.randn(9, 2), torch.randn(9, 2), action_horizon=H, sampler=sampler
    ).network
    sampler = replace(sampler, real_time=RealTimeConfig(method="trained"))
    info = policies.PolicyInfo(real_time_delay=3)
    policy = FlowPolicy(network, preprocessor, sampler, info=info)
    td = observed(policy, torch.tensor([[10.0, -5.0]]))
    remainder = torch.randn(1, 4, 2) + 10  # [robot units]
    with torch.no_grad():
        new = continue_chunk(policy, policies.ModelInput.of(td), remainder, 3)
    torch.testing.assert_close(new[:, :3], remainder[:, :3], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="delay=4 is longer than real_time_delay=3"):
        continue_chunk(policy, policies.ModelInput.of(td), remainder, 4)


def test_drawn_delays_stay_in_their_range_and_follow_the_seed() -> None:
    config, seeds = DelayConfig(steps=1, max_steps=3), (0, 0, 1)
    draws = [config.draw(100, torch.Generator().manual_seed(seed)).tolist() for seed in seeds]
    assert set(draws[0]) == {1, 2, 3}
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps=-1"),
        ({"steps": 3, "max_steps": 2}, "max_steps=2"),
        ({"seam": "glue"}, "valid: 'plain', 'ensemble', 'real_time'"),
    ],
)
def test_a_wrong_setting_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DelayConfig(**changes)  # type: ignore[arg-type]


def test_a_policy_that_cannot_meet_the_delay_is_refused(policy: FlowPolicy) -> None:
    with pytest.raises(ValueError, match="delay=5 needs"):
        DelayedActor(policy, DelayConfig(steps=5))
    none = policy.replace(sampler=replace(policy.sampler, real_time=None))
    with pytest.raises(ValueError, match=r"needs the policy's settings `sampler\.real_time`"):
        DelayedActor(none, DelayConfig(seam="real_time"))
    memory = NetworkOptions(memory=MemoryConfig(num_tokens=1))
    network = network_with_options(policy.network, memory, None)
    with pytest.raises(ValueError, match=r"a delayed actor hands no memory \(options.memory\) on"):
        DelayedActor(policy.replace(network=network), DelayConfig(steps=2))
    with pytest.raises(ValueError, match="no settings for real-time chunking"):
        continue_chunk(none, policies.ModelInput.of(decision(none, 0)), torch.zeros(N, 4, 2), 1)


def test_the_settings_are_stored_with_the_checkpoint(policy: FlowPolicy, tmp_path: object) -> None:
    folder = tmp_path / "policy"  # type: ignore[operator]
    settings = RealTimeConfig(schedule="linear", max_weight=7.0, jacobian="identity")
    save(policy.replace(sampler=replace(policy.sampler, real_time=settings)), folder)
    assert load(folder).sampler.real_time == settings
    none = tmp_path / "none"  # type: ignore[operator]
    save(policy.replace(sampler=replace(policy.sampler, real_time=None)), none)
    assert load(none).sampler.real_time is None


def test_a_continued_decision_encodes_its_observations_once(
    policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    encode = FlowPolicy.encode

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(1)
        return encode(*args, **named)

    monkeypatch.setattr(FlowPolicy, "encode", counted)
    actor = DelayedActor(policy, DelayConfig(steps=2, seam="real_time"))
    actor(decision(policy, 0, elapsed=0.0))
    actor(decision(policy, 1))
    assert len(calls) == 2
