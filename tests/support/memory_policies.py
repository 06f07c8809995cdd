"""Small policies with a memory, and an environment that needs it."""

from __future__ import annotations

from pathlib import Path

import torch

from pitune import envs, rl
from pitune.policies import FlowPolicy, NetworkOptions, SamplerConfig, small_policy
from pitune.policies.network.options.tokens.memory import Memory, MemoryConfig
from pitune.policies.network.sizes import GemmaConfig

EXPERT = GemmaConfig(width=16, depth=1, mlp_dim=32, num_heads=2, num_kv_heads=1, head_dim=8)
OPTIONS = NetworkOptions(memory=MemoryConfig(num_tokens=2))


def memory_policy(trained: bool = True, options: NetworkOptions = OPTIONS) -> FlowPolicy:
    """Return a tiny policy for `mock/Recall`, whose reading has a weight as if it were trained."""
    torch.manual_seed(0)
    state, action = torch.randn(64, 5), torch.rand(64, 2) * 2 - 1
    sampler = SamplerConfig(flow_steps=2, execution_horizon=2)
    policy = small_policy(
        state, action, action_horizon=2, sampler=sampler, expert=EXPERT, options=options
    )
    if trained and policy.has_memory:
        torch.nn.init.normal_(memory_module(policy).o_proj.weight)
    return policy


def memory_module(policy: FlowPolicy) -> Memory:
    """Return the module of a policy's memory."""
    module = policy.network.options["memory"]
    assert isinstance(module, Memory)
    return module


def recall(num_envs: int = 4) -> envs.CheckedEnv:
    """Return the environment, whose episodes last at most 14 steps here."""
    config = envs.EnvConfig(id="mock/Recall", num_envs=num_envs, max_episode_steps=14)
    return envs.make(config)


def demonstrations_file(folder: Path, num: int = 4) -> Path:
    """Write demonstrations of the expert of `mock/Recall`."""
    file = folder / "recall.safetensors"
    rl.collect_demonstrations(recall(), num, seed=0).save(file)
    return file
