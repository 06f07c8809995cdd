"""`noise_entries`, importance weights of chunks with entries that are not executed; learned means.

The controls: with noise in the executed entries alone, weights are wrong by a measured amount.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from analytic_flows import mixture_field, random_field
from pitune import rl
from pitune.policies import (
    FlowPolicy,
    FlowSDEConfig,
    LikelihoodActor,
    SamplerConfig,
    likelihood_config,
    likelihoods,
    small_policy,
)
from pitune.policies.flow.chain import sample_chain, score_chain
from pitune.policies.flow.kernels import FlowNoise, FlowSDE, Kernel, mask_at
from pitune.policies.flow.path import TimeGrid, VelocityField
from pitune.policies.likelihood.flow_steps import noise_mask
from settings import changed

STEPS, HORIZON = 4, 4
EXECUTED = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
MASKS = {
    "executed": EXECUTED,
    "all": torch.stack([torch.ones_like(EXECUTED)] * (STEPS - 1) + [EXECUTED]),
}
RANDOM = ("flow_sde", "flow_noise", "velocity_gaussian")


def kernel_of(name: str, entries: str) -> Kernel:
    mask = MASKS[entries]
    if name == "flow_sde":
        return FlowSDE(0.5, mask)
    return FlowNoise(lambda output, _: torch.full_like(output.velocity, 0.1), mask)


def shifted(executed: float, others: float) -> VelocityField:
    """Return the exact flow of two modes, moved in its executed entry and in the others."""
    means = torch.tensor([[-1.0, -1.0, -1.0, -1.0], [1.0, 0.6, 0.8, 1.2]])
    shift = torch.tensor([executed, others, others, others])
    return mixture_field(torch.tensor([0.4, 0.6]), means + shift, torch.tensor([0.3, 0.4]))


def error_of_weights(
    name: str, entries: str, executed: float, others: float
) -> tuple[float, float]:
    """Return E_old[r f] - E_new[f] of the executed entry f, and its standard error."""
    torch.manual_seed(0)
    grid, kernel = TimeGrid(STEPS), kernel_of(name, entries)
    old, new = shifted(0.0, 0.0), shifted(executed, others)
    num = 40_000
    chain, log_prob = sample_chain(old, torch.randn(num, HORIZON, 1), grid, kernel)
    truth = sample_chain(new, torch.randn(num, HORIZON, 1), grid, kernel)[0][:, -1, 0, 0]
    log_ratio = (score_chain(new, chain, grid, kernel).log_prob - log_prob).sum((1, 2, 3))
    weighted = log_ratio.exp() * chain[:, -1, 0, 0]
    error = math.sqrt(float(weighted.var() + truth.var()) / num)
    return float(weighted.mean() - truth.mean()), error


@pytest.mark.parametrize("shift", [(0.05, 0.0), (0.0, 0.06), (0.03, 0.03)])
@pytest.mark.parametrize("name", ["flow_sde", "flow_noise"])
def test_noise_in_all_entries_gives_importance_weights(
    name: str, shift: tuple[float, float]
) -> None:
    difference, error = error_of_weights(name, "all", *shift)
    assert abs(difference) < 3.5 * error


@pytest.mark.parametrize("name", ["flow_sde", "flow_noise"])
def test_noise_in_executed_entries_alone_gives_wrong_weights(name: str) -> None:
    """The measured size of the bias, where only the other entries of the policy move."""
    difference, error = error_of_weights(name, "executed", 0.0, 0.1)
    assert difference < -4 * error


# The setting


def policy_of(horizon: int = 4, executed: int = 1, flow_steps: int = 3) -> FlowPolicy:
    torch.manual_seed(0)
    return small_policy(
        torch.rand(64, 4),
        2 * torch.rand(64, 2) - 1,
        action_horizon=horizon,
        sampler=SamplerConfig(flow_steps=flow_steps, execution_horizon=executed),
    )


def decisions(actor: LikelihoodActor, num: int = 6) -> Any:
    td = TensorDict({"state": torch.rand(num, 4)}, batch_size=[num])
    return actor(actor.policy.observation_preprocessor(())(td))


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("steps", ["all", "one"])
def test_without_other_entries_both_settings_are_equal_bit_for_bit(
    name: str, reduction: str, steps: str
) -> None:
    found = []
    for entries in ("executed", "all"):
        config = likelihood_config(
            name, noise_entries=entries, reduction=reduction, stochastic_steps=steps
        )
        actor = LikelihoodActor(policy_of(executed=4), config)
        torch.manual_seed(1)
        found.append(decisions(actor))
    assert torch.equal(found[0]["chain"], found[1]["chain"])
    assert torch.equal(found[0]["action_log_prob"], found[1]["action_log_prob"])


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("steps", ["all", "one"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("ratio", ["step", "joint"])
def test_all_entries_are_sampled_and_scored_alike(
    name: str, steps: str, reduction: str, ratio: str
) -> None:
    config = likelihood_config(
        name, noise_entries="all", stochastic_steps=steps, reduction=reduction, ratio=ratio
    )
    actor = LikelihoodActor(policy_of(), config)
    td = decisions(actor)
    log_prob = actor.get_dist(td).log_prob(td["chain"])
    assert torch.allclose(log_prob, td["action_log_prob"], atol=1e-4)


def test_noise_is_everywhere_but_in_the_last_step_s_other_entries() -> None:
    policy = policy_of()
    mask = noise_mask(policy, FlowSDEConfig(noise_entries="all"))
    assert mask.shape == (3, 4, 2)
    assert mask[:-1].all()
    assert torch.equal(mask[-1], policy.executed_mask())
    step = torch.tensor([[0, 2], [2, 1]])
    assert torch.equal(mask_at(mask, step), mask[step])
    executed = noise_mask(policy, FlowSDEConfig())
    assert torch.equal(executed, policy.executed_mask())
    assert torch.equal(mask_at(executed, step), executed)

    actor = LikelihoodActor(policy, FlowSDEConfig(noise_entries="all"))
    td = decisions(actor)
    dist = actor.get_dist(td)
    dist.log_prob(td["chain"])
    assert torch.equal(dist.scored_std > 0, mask.bool().expand(6, -1, -1, -1))  # type: ignore[attr-defined]


def test_a_mean_over_entries_divides_by_those_of_the_step() -> None:
    found = {}
    for reduction in ("sum", "mean"):
        config = FlowSDEConfig(noise_entries="all", reduction=reduction)
        actor = LikelihoodActor(policy_of(), config)
        torch.manual_seed(1)
        found[reduction] = decisions(actor)["action_log_prob"]
    assert torch.allclose(found["mean"] * torch.tensor([8.0, 8.0, 2.0]), found["sum"], atol=1e-4)


def test_a_mean_over_the_entries_of_a_random_step_divides_by_those_of_this_step() -> None:
    found = {}
    for reduction in ("sum", "mean"):
        config = FlowSDEConfig(noise_entries="all", stochastic_steps="one", reduction=reduction)
        actor = LikelihoodActor(policy_of(), config)
        torch.manual_seed(1)
        found[reduction] = decisions(actor, 32)
    step = found["sum"]["stochastic_step"]
    assert set(step.tolist()) == {0, 1, 2}
    num_entries = torch.tensor([8.0, 8.0, 2.0])[step]
    sums, means = (found[name]["action_log_prob"].flatten() for name in ("sum", "mean"))
    assert torch.allclose(means * num_entries, sums, atol=1e-4)


def test_the_note_of_a_clip_counts_the_entries_with_noise() -> None:
    for entries, words in (("executed", "2 entries x"), ("all", "8 entries x")):
        config = changed(rl.PPOConfig(), likelihood=FlowSDEConfig(noise_entries=entries))  # type: ignore[arg-type]
        assert words in rl.PPO(config, policy_of()).notes()[0]


def test_unknown_entries_are_refused() -> None:
    with pytest.raises(
        ValueError, match="noise_entries='some' is unknown; valid: 'executed', 'all'"
    ):
        FlowSDEConfig(noise_entries="some")  # type: ignore[arg-type]


def test_other_entries_reach_the_executed_ones() -> None:
    """Otherwise the two settings would not differ."""
    field = random_field(HORIZON, 1)
    x = torch.randn(1, 1, HORIZON, 1)
    moved = x.clone()
    moved[..., 1:, :] += 0.5
    time = torch.full((1, 1), 0.5)
    assert (field(x, time).velocity - field(moved, time).velocity)[..., 0, :].abs() > 1e-3


# Learned means


# the likelihood of FAST tokens has a policy and a test of its own
OF_FLOWS = [n for n, c in likelihoods().items() if c.trainable and c.decoder == "flow"]


@pytest.mark.parametrize("name", OF_FLOWS)
def test_every_likelihood_moves_the_deployed_action_towards_the_better_ones(name: str) -> None:
    """On advantages of both signs, which grow with the action, the mean is learned."""
    policy = policy_of(executed=2)
    config = changed(rl.PPOConfig(), likelihood=likelihood_config(name), critic_warmup=0)
    if name == "flow_matching":
        config = replace(config, likelihood=likelihood_config(name, action_noise=0.1))
    algorithm = rl.PPO(config, policy)
    td = TensorDict({"state": torch.zeros(400, 4)}, batch_size=[400])
    td = policy.observation_preprocessor(())(td)
    torch.manual_seed(0)
    noise = torch.randn(200, *policy.chunk_shape)

    def deployed() -> Tensor:
        inputs = policy.model_input({"state": torch.zeros(200, 4)})
        with torch.no_grad():
            return policy.sample_actions(inputs, noise)[:, 0, 0].mean()

    start = deployed()
    for _ in range(3):
        batch = algorithm.actor(td.copy())
        action = batch["action"][:, 0, 0]
        batch["advantage"] = ((action - action.mean()) / action.std())[:, None]
        algorithm.actor_step(batch)
    assert deployed() - start > 0.01
