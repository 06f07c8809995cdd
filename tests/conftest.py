"""What many tests share: small policies, small settings of every algorithm, demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pitune import envs, rl
from pitune.experiments.benchmarks.update import with_settings
from pitune.policies import FlowPolicy, GemmaConfig, Pi0, SamplerConfig, save, small_policy
from pitune.rl.algorithms.bc import CloningStep, clone

EXPERT = GemmaConfig(width=16, depth=1, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and the numbers are those of every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _tiny_policy(
    state_dim: int = 4,
    action_dim: int = 2,
    *,
    horizon: int = 2,
    executed: int = 2,
    flow_steps: int = 2,
    seed: int = 0,
) -> FlowPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return small_policy(
            torch.rand(64, state_dim),
            2 * torch.rand(64, action_dim) - 1,
            action_horizon=horizon,
            sampler=SamplerConfig(flow_steps=flow_steps, execution_horizon=executed),
            expert=EXPERT,
        )


@pytest.fixture(scope="session")
def tiny_policy() -> Callable[..., FlowPolicy]:
    """Make an untrained policy; its sizes are those of `mock/Reach` by default."""
    return _tiny_policy


@pytest.fixture(scope="session")
def small_preset(demonstrations_file: Path) -> Callable[[str], rl.AlgorithmConfig]:
    """Return the preset of an algorithm by name, with settings that take no time."""
    values = {
        "minibatch_size": 8,
        "gradient_steps": 2,
        "num_epochs": 2,
        "critic_warmup": 1,
        "group_size": 2,
        "num_pairs": 2,
        "hidden": (16, 16),
        "value_steps": 2,
        "warmup_decisions": 16,
        "warmup_rounds": 2,
        "initial_fit_steps": 2,
        "fit_steps": 2,
        "fit_every": 16,
    }

    def preset(name: str) -> rl.AlgorithmConfig:
        # the file of the algorithm itself, not of losses that are off
        small: rl.AlgorithmConfig = with_settings(rl.preset(name), values)
        return small.with_demonstrations(demonstrations_file)

    return preset


@pytest.fixture(scope="session")
def demonstrations_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with thirty episodes of the expert of `mock/Reach`."""
    file = tmp_path_factory.mktemp("demonstrations") / "demonstrations.safetensors"
    env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=10, num_workers=0))
    rl.collect_demonstrations(env, 30, seed=0).save(file)
    return file


@pytest.fixture(scope="session")
def half_trained(demonstrations_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a tiny policy that reaches about every second goal in 7 steps."""
    folder = tmp_path_factory.mktemp("half_trained") / "policy"
    policy = _tiny_policy()
    demonstrations = rl.Demonstrations.load(demonstrations_file).preprocess(policy)
    config = rl.BCConfig(learning_rate=3e-3, decay_steps=80, minibatch_size=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clone(CloningStep(policy, config), demonstrations.chunks(policy.chunk_shape[0]), 80)
    save(policy, folder)
    return folder


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list that every encoding of pictures and prompts adds its rows to."""
    counts: list[int] = []
    original = Pi0.embed_prefix

    def counted(self: Pi0, *inputs: Any) -> Any:
        result = original(self, *inputs)
        counts.append(len(result[0]))
        return result

    monkeypatch.setattr(Pi0, "embed_prefix", counted)
    return counts
