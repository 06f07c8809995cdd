"""Likelihoods under a decision delay: the old chunk's actions have no density."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from observations import observed
from pitune import policies
from pitune.policies import (
    DelayConfig,
    ExactFlowConfig,
    FlowChain,
    FlowMatchingConfig,
    FlowNoiseConfig,
    FlowPolicy,
    FlowSDEConfig,
    LikelihoodActor,
    LikelihoodConfig,
    RealTimeConfig,
)
from pitune.policies.likelihood.distributions import ExactFlow
from pitune.policies.network.context import pack, unpack

H, h, D, N = 8, 4, 2, 5
DELAYS = torch.tensor([-1, 0, 1, 2, 2])
SEAMS = ("plain", "trained", "guided")
LIKELIHOODS: dict[str, LikelihoodConfig] = {
    **{n: c for n, c in policies.likelihoods().items() if c.trainable and c.decoder == "flow"},
    "one step": FlowSDEConfig(stochastic_steps="one"),
    "all entries": FlowSDEConfig(noise_entries="all"),
    "one step, all entries": FlowNoiseConfig(stochastic_steps="one", noise_entries="all"),
    "mean of all entries": FlowSDEConfig(noise_entries="all", reduction="mean"),
    "mean of draws": FlowMatchingConfig(reduction="mean", ratio="step", action_noise=0.1),
}


def late_policy(seam: str, **sampler: Any) -> FlowPolicy:
    """Return a policy under drawn delays of 0 to 2 steps."""
    torch.manual_seed(0)
    states, actions = torch.randn(50, 4), torch.randn(50, 2)
    config = policies.SamplerConfig(flow_steps=3, execution_horizon=h, **sampler)
    policy = policies.small_policy(states, actions, action_horizon=H, sampler=config)
    with torch.no_grad():
        for parameter in policy.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    delay = DelayConfig(steps=0, max_steps=D)
    if seam == "plain":
        return policy.with_delay(delay)
    policy = policy.replace(info=replace(policy.info, real_time_delay=D))
    real_time = RealTimeConfig(method=seam)  # type: ignore[arg-type]
    policy = policy.replace(sampler=replace(policy.sampler, real_time=real_time))
    return policy.with_delay(replace(delay, seam="real_time"))


def decisions(policy: FlowPolicy) -> TensorDict:
    torch.manual_seed(1)
    remainder = 2 * torch.randn(N, policy.remainder_steps, 2)
    return observed(policy, torch.randn(N, 4), remainder=remainder, delay=DELAYS)


def other_old_chunk(policy: FlowPolicy, td: TensorDict) -> TensorDict:
    """Return the same decisions after another old chunk."""
    other = td.select("state", "remainder", "delay", *td.keys(), strict=False).clone()
    inputs = observed(policy, td["state"], remainder=td["remainder"] + 1, delay=td["delay"])
    return other.set("model_input", inputs["model_input"])


@pytest.mark.parametrize("seam", SEAMS)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_ratio_is_one_before_an_update(name: str, seam: str) -> None:
    policy = late_policy(seam)
    actor = LikelihoodActor(policy, LIKELIHOODS[name])
    td = actor(decisions(policy))
    with torch.no_grad():
        log_prob = actor.get_dist(td).log_prob(td["chain"])
    torch.testing.assert_close(log_prob, td["action_log_prob"], atol=2e-4, rtol=1e-5)

    # negative control: the old chunk is a part of the observation
    if seam != "plain":
        with torch.no_grad():
            other = actor.get_dist(other_old_chunk(policy, td)).log_prob(td["chain"])
        difference = (other - td["action_log_prob"]).abs().flatten(1).sum(1)
        is_late = DELAYS > 0
        assert difference[is_late].min() > 1e-3
        assert difference[DELAYS == -1].max() < 1e-4


@pytest.mark.parametrize("seam", SEAMS)
@pytest.mark.parametrize("entries", ["executed", "all"])
def test_noise_enters_the_actions_of_the_decision_alone(entries: str, seam: str) -> None:
    policy = late_policy(seam)
    actor = LikelihoodActor(policy, FlowSDEConfig(noise_entries=entries))  # type: ignore[arg-type]
    td = actor(decisions(policy))
    dist = actor.get_dist(td)
    assert isinstance(dist, FlowChain)
    with torch.no_grad():
        dist.log_prob(td["chain"])
    is_random = dist.scored_std > 0  # (N, K, H, A)
    step = torch.arange(H)
    is_old = step < DELAYS[:, None]  # (N, H)
    executed = (step < h + D) & ~is_old
    assert torch.equal(is_random[:, -1].any(-1), executed)
    before = executed if entries == "executed" else ~is_old
    assert torch.equal(is_random[:, 0].all(-1), before)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_old_chunks_actions_have_no_density(name: str) -> None:
    """Other numbers in the place of a trained prefix do not change the log-probability."""
    policy = late_policy("trained")
    actor = LikelihoodActor(policy, LIKELIHOODS[name])
    td = actor(decisions(policy))
    is_old = torch.arange(H) < DELAYS[:, None]  # (N, H)
    changed = td["chain"] + 3 * is_old[:, None, :, None]
    with torch.no_grad():
        log_prob = actor.get_dist(td).log_prob(changed)
        later = actor.get_dist(td).log_prob(td["chain"] + 3 * ~is_old[:, None, :, None])
    torch.testing.assert_close(log_prob, td["action_log_prob"], atol=2e-4, rtol=1e-5)
    assert (later - td["action_log_prob"]).abs().max() > 1  # negative control


@pytest.mark.parametrize("seam", SEAMS)
def test_the_first_actions_are_those_of_the_old_chunk(seam: str) -> None:
    policy = late_policy(seam)
    td = decisions(policy)
    plan = LikelihoodActor(policy, FlowSDEConfig())(td)["action"]
    assert plan.shape == (N, h + policy.remainder_steps, 2)
    for row, delay in enumerate(DELAYS.tolist()):
        num = max(delay, 0)
        torch.testing.assert_close(plan[row, :num], td["remainder"][row, :num])
        if len(td["remainder"][row]) > num:
            assert (plan[row, num] - td["remainder"][row, num]).abs().max() > 1e-3


def test_a_given_prefix_has_no_exact_density() -> None:
    """The density of the rest is that of a flow of the rest alone, by hand."""
    policy = late_policy("trained")
    actor = LikelihoodActor(policy, ExactFlowConfig())
    td = decisions(policy)
    chain = LikelihoodActor(policy, FlowSDEConfig())(td.clone())["chain"]
    dist = actor.get_dist(td)
    assert isinstance(dist, ExactFlow)
    log_prob = dist.log_prob(chain)
    is_old = torch.arange(H) < DELAYS[:, None]
    changed = chain + 5 * is_old[:, None, :, None]
    torch.testing.assert_close(dist.log_prob(changed)[DELAYS < 1], log_prob[DELAYS < 1])
    given = dist.given
    assert given is not None
    assert torch.equal(given.expand(N, H), is_old)
    dist.given = None  # negative control: the given entries would count
    assert (dist.log_prob(chain) - log_prob)[DELAYS > 0].abs().min() > 0.5

    guided = late_policy("guided")
    with pytest.raises(ValueError, match="'guided' has no exact density"):
        LikelihoodActor(guided, ExactFlowConfig()).get_dist(decisions(guided))


def test_critics_read_the_old_chunk() -> None:
    policy = late_policy("trained")
    td = decisions(policy)
    inputs = policies.ModelInput.of(td)
    row = policy.critic_input(inputs, None)
    assert row.shape == (N, policy.critic_state_dim) == (N, 4 + 2 * D + 1)
    torch.testing.assert_close(row[:, -1], DELAYS / D)
    torch.testing.assert_close(row[:, 4:-1], inputs.remainder.flatten(1).clamp(-5, 5))  # type: ignore[union-attr]

    # without an entry there is no old chunk
    none = policy.critic_input(policies.ModelInput.of(observed(policy, td["state"])), None)
    assert torch.equal(none[:, 4:-1], torch.zeros(N, 2 * D))
    assert (none[:, -1] < 0).all()


def test_a_context_keeps_the_old_chunk_when_it_is_stored() -> None:
    policy = late_policy("trained")
    context = policy.encode(policies.ModelInput.of(decisions(policy)))
    kept = unpack(pack(context))
    noise = policy.draw_noise(N)
    with torch.no_grad():
        assert torch.equal(policy.solve(kept, noise), policy.solve(context, noise))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delay": DelayConfig(steps=5)}, "delay=5 needs delay <= execution_horizon=4"),
        ({"delay": DelayConfig(steps=1, seam="ensemble")}, r"sampler\.delay\.seam='ensemble'"),
        (
            {"delay": DelayConfig(steps=1, seam="real_time")},
            r"needs the policy's settings `sampler\.real_time`",
        ),
    ],
)
def test_a_delay_that_the_policy_cannot_act_under_is_refused(
    changes: dict[str, DelayConfig], message: str
) -> None:
    policy = late_policy("plain")
    with pytest.raises(ValueError, match=message):
        policy.with_delay(**changes)


def test_a_delay_beyond_the_clean_beginnings_is_refused() -> None:
    policy = late_policy("trained")
    with pytest.raises(ValueError, match="delay=3 is longer than real_time_delay=2"):
        policy.with_delay(DelayConfig(steps=3, seam="real_time"))
