"""On CUDA the numbers are those of the host, of openpi, and of an uninterrupted run."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from device_runs import HORIZON, policy_of
from safetensors.torch import load_file
from small_runs import rows, small_run

from openpi_fixtures import FIXTURES
from pitune import rl
from pitune.experiments.train import train
from pitune.experiments.verify_checkpoint import compute, encoder_inputs
from pitune.policies import FlowPolicy, LikelihoodActor, likelihoods
from pitune.policies.checkpoints.formats import load_network
from vision_policies import preprocessed

pytestmark = pytest.mark.gpu
TIGHT = 2e-5
LIKELIHOODS = [
    name for name, config in likelihoods().items() if config.trainable and name != "fast"
]


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_loss_velocity_and_samples_are_openpis(family: str, cuda: torch.device) -> None:
    folder = FIXTURES / "openpi" / f"{family}_tiny"
    network = load_network(folder / "checkpoint", action_horizon=10).to(cuda)
    inputs = {k: v.to(cuda) for k, v in load_file(folder / "inputs.safetensors").items()}
    outputs = load_file(folder / "outputs.safetensors")
    wanted = ["v_t_joint", "v_t_cached", "traj_x", "sample_actions_10"]
    computed = compute(network, inputs, encoder_inputs(inputs), wanted, accumulated=True)
    assert computed.keys() == set(wanted)
    for key, value in computed.items():
        assert (value.cpu() - outputs[key]).abs().max() < TIGHT, key


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_scores_are_those_of_acting_and_of_the_host(
    name: str, tiny_policy: Callable[..., FlowPolicy], cuda: torch.device
) -> None:
    host = tiny_policy(horizon=HORIZON, executed=HORIZON)
    policy = deepcopy(host).to(cuda)
    actor = LikelihoodActor(policy, likelihoods()[name])
    with torch.no_grad():
        decision = actor(preprocessed(policy, 16).to(cuda))
        score = actor.get_dist(decision).log_prob(decision["chain"])
    assert torch.allclose(score, decision["action_log_prob"], atol=1e-4)
    other = LikelihoodActor(host, likelihoods()[name])
    decision = decision.cpu()
    with torch.no_grad():
        expected = other.get_dist(decision).log_prob(decision["chain"])
    assert torch.allclose(score.cpu(), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", ["pi0 frozen bf16", "pi05 lora bf16"])
def test_bfloat16_scores_are_those_of_acting(
    kind: str, tiny_policy: Callable[..., FlowPolicy], cuda: torch.device
) -> None:
    policy = policy_of(kind, tiny_policy(), cuda)
    actor = LikelihoodActor(policy, likelihoods()["flow_sde"])
    with torch.no_grad():
        decision = actor(preprocessed(policy, 8).to(cuda))
        score = actor.get_dist(decision).log_prob(decision["chain"])
    ratio = (score - decision["action_log_prob"]).exp()
    assert (ratio - 1).abs().max() < 0.05, ratio


@pytest.mark.parametrize("name", ["ppo", "dsrl", "grpo"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_resumed_run_continues_bit_for_bit(
    name: str,
    compiled: bool,
    small_preset: Callable[[str], rl.AlgorithmConfig],
    half_trained: Path,
    tmp_path: Path,
    cuda: torch.device,
) -> None:
    config = small_run(small_preset(name), half_trained, tmp_path / "whole", num_iterations=4)
    config = replace(config, device="cuda", compile=compiled)
    train(config)
    parts = replace(config, out=tmp_path / "parts")
    train(replace(parts, num_iterations=2))
    train(replace(parts, resume=True))
    assert rows(parts.out) == rows(config.out)
    files = sorted(file.relative_to(config.out) for file in config.out.rglob("policy.safetensors"))
    assert files
    for file in files:
        whole, resumed = load_file(config.out / file), load_file(parts.out / file)
        assert all(torch.equal(value, resumed[key]) for key, value in whole.items()), file
