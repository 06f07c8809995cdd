"""Compiled policies with guidance or options of the network: no graph breaks, the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
import torch
from compiled_policies import both, forget_compiled, num_graphs
from tensordict import TensorDict
from torch import Tensor

from network_options import CASES, OptionCase, perturb
from pitune.policies import (
    FlowPolicy,
    FlowSDEConfig,
    LikelihoodActor,
    ModelInput,
    NetworkOptions,
    Pi0,
)
from pitune.policies.flow.guidance import GuidanceConfig
from pitune.policies.network.options.add import network_with_options
from pitune.policies.network.options.tokens.conditioning import ConditioningConfig
from pitune.rl.algorithms.ppo import PPOConfig, policy_loss
from vision_policies import vision_policy

ADVANTAGE = NetworkOptions(conditioning=ConditioningConfig(advantage=True))
WORDS = NetworkOptions(conditioning=ConditioningConfig(instruction=True))
NUM = 3
GUIDED: dict[str, dict[str, Any]] = {
    "cfg": {"scale": 1.5},
    "without_the_condition": {"scale": -1.0},
    "one_gradient": {"scale": 0.7, "gradient": "conditional"},
    "apg": {"scale": 1.5, "form": "apg", "parallel": 0.2, "norm_limit": 0.1},
    "apg_flow": {"scale": 1.5, "form": "apg", "apg_space": "flow"},
    "momentum": {"scale": 1.5, "form": "apg", "momentum": -0.5, "norm_limit": 0.3},
}
"""Settings of guidance."""
FAST = ("cfg", "momentum")
SLOW = [pytest.mark.slow]
TOGETHER = ("value_residual", "memory", "registers", "hyper_connections", "linear_norms")
"""Options that one policy of the state can have at once."""
NEED_WORDS = ("instruction", "language_head", "insulation", "status", "prefix_registers")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Forget all compiled code before and after a test."""
    forget_compiled()
    yield
    forget_compiled()


def with_options(policy: FlowPolicy, options: NetworkOptions, **guidance: Any) -> FlowPolicy:
    """Return the policy with options of its network, perturbed as if they had been trained."""
    network = network_with_options(policy.network, options, None)
    perturb(network)
    sampler = replace(policy.sampler, guidance=GuidanceConfig(**guidance))
    return policy.replace(network=network, sampler=sampler)


def observations(policy: FlowPolicy) -> TensorDict:
    """Return preprocessed observations (N)."""
    generator = torch.Generator().manual_seed(3)
    rows: dict[str, Tensor] = {"state": torch.rand(NUM, 4, generator=generator)}
    for key in policy.obs_keys:
        if key.startswith("image/"):
            shape = (NUM, 3, 20, 20)
            rows[key] = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    rows["task_id"] = torch.zeros(NUM, dtype=torch.int64)
    if policy.reads_last_action:
        rows |= {"last_action": torch.zeros(NUM, 2), "has_acted": torch.ones(NUM).bool()}
    tasks = policy.condition_tasks[:1] or ("push the block",)
    td = policy.observation_preprocessor(tasks)(TensorDict(rows, [NUM]))
    if policy.has_memory:
        memory = torch.randn(NUM, *policy.memory_shape, generator=generator)
        td["model_input", "memory"] = memory
    return td


def results(policy: FlowPolicy, obs: TensorDict, noise: Tensor, can_score: bool) -> list[Tensor]:
    """Return chunks and the loss of cloning, and those of PPO if the policy can score."""
    inputs = ModelInput.of(obs)
    action, flow_time = torch.linspace(-1, 1, NUM * 8).reshape(NUM, 4, 2), torch.full((NUM,), 0.4)
    with torch.no_grad():
        found = [policy.decide(inputs, noise).chunk]
    found.append(policy.loss(inputs, action, noise, flow_time))
    if can_score:
        config = PPOConfig(likelihood=FlowSDEConfig())
        torch.manual_seed(1)
        batch = LikelihoodActor(policy, config.likelihood)(obs.clone())
        batch["advantage"] = torch.linspace(-1, 1, NUM)[:, None]
        loss, metrics = policy_loss(LikelihoodActor(policy, config.likelihood), config)(batch)
        found += [batch["chain"], batch["action_log_prob"], loss, metrics["log_ratio"]]
        loss.backward()
        found.append(
            torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        )
    return found


def check(eager: FlowPolicy, backend: str, can_score: bool) -> None:
    """Compare a policy with its compiled copy."""
    eager, compiled = both(eager, backend)
    obs, noise = observations(eager), eager.draw_noise(NUM)
    expected, actual = (results(policy, obs, noise, can_score) for policy in (eager, compiled))
    assert num_graphs() > 0
    assert len(actual) == len(expected)
    tolerance = 0.0 if backend == "eager" else 1e-5
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(other, one, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(name, backend, marks=[] if name in FAST and backend == "eager" else SLOW)
        for backend in ("eager", "inductor")
        for name in GUIDED
    ],
)
def test_guidance_has_no_graph_break_and_the_eager_numbers(
    tiny_policy: Callable[..., FlowPolicy], name: str, backend: str
) -> None:
    policy = with_options(tiny_policy(horizon=4), ADVANTAGE, **GUIDED[name])
    check(policy, backend, can_score=name != "momentum")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_guidance_of_words_has_no_graph_break_and_the_eager_numbers(backend: str) -> None:
    check(with_options(vision_policy("pi0"), WORDS, scale=1.0), backend, can_score=True)


def test_several_options_of_the_network_at_once_have_no_graph_break(
    tiny_policy: Callable[..., FlowPolicy],
) -> None:
    cases = [case for case in CASES if case.name in TOGETHER]
    options = reduce(NetworkOptions.merged, (case.options for case in cases))
    check(with_options(tiny_policy(horizon=4), options), "eager", can_score=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_option_of_the_network_has_no_graph_break(
    tiny_policy: Callable[..., FlowPolicy], case: OptionCase
) -> None:
    policy = vision_policy("pi0") if case.name in NEED_WORDS else tiny_policy(horizon=4)
    if not case.identity:  # refused for weights that exist, so the network is a new one
        sizes = replace(policy.network.config, options=case.options)
        policy = policy.replace(network=Pi0(sizes))
        check(policy, "eager", can_score=not case.refused_likelihoods)
        return
    check(with_options(policy, case.options), "eager", can_score=not case.refused_likelihoods)
