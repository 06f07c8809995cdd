"""Small policies with a language head and FAST tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pitune import envs, policies
from pitune.policies import FastDecodingConfig, FastTokenizer, FlowPolicy, NetworkOptions
from pitune.policies.by_tokens import fast_vocabulary
from pitune.policies.network.options.language_head import LanguageHeadConfig
from pitune.policies.preprocessing.own_tokenizer import make_tokenizer

REACH = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=8)
WORDS = ("reach the green goal", "reach the red goal")


def fitted(horizon: int, dim: int, num: int = 200, size: int = 128) -> FastTokenizer:
    """Return a FAST tokenizer of smooth random chunks."""
    generator = torch.Generator().manual_seed(0)
    ends = 2 * torch.rand(num, 2, dim, generator=generator) - 1
    share = torch.linspace(0, 1, horizon)[:, None]
    chunks = ends[:, :1] * (1 - share) + ends[:, 1:] * share
    return FastTokenizer.fit(chunks, vocab_size=size, skip_tokens=0)


def with_fast_tokens(policy: FlowPolicy, **decoding: Any) -> FlowPolicy:
    """Return a policy that acts by FAST tokens."""
    fast = fitted(policy.chunk_shape[0], policy.preprocessor.action_dim)
    sampler = replace(policy.sampler, decoder="fast", fast=FastDecodingConfig(**decoding))
    changed = policy.replace(info=replace(policy.info, fast=fast))
    fast_vocabulary(changed)
    return changed.replace(sampler=sampler)


def fast_policy(
    folder: Path,
    *,
    tasks: tuple[str, ...] = WORDS[:1],
    options: NetworkOptions | None = None,
    **decoding: Any,
) -> FlowPolicy:
    """Return an untrained policy for `mock/Reach` that acts by FAST tokens.

    Args:
        folder: Place for its tokenizer.
        tasks: Its instructions.
        options: Of the network, besides the language head.
        **decoding: Settings of the decoding.
    """
    torch.manual_seed(0)
    vlm = policies.SmallVLMConfig(
        width=32, mlp_dim=48, max_tokens=40, discrete_state=True, fast_tokens=128
    )
    tokenizer = make_tokenizer(
        tasks, folder / "tokenizer.json", max_vocabulary=900, max_tokens=40, numbers=True
    )
    head = NetworkOptions(language_head=LanguageHeadConfig(enabled=True))
    policy = policies.small_policy(
        torch.rand(200, 2 + 2 * len(tasks)),
        2 * torch.rand(200, 2) - 1,
        action_horizon=4,
        sampler=policies.SamplerConfig(flow_steps=2),
        tokenizer=tokenizer,
        vlm=vlm,
        options=head if options is None else head.merged(options),
    )
    return with_fast_tokens(policy, **decoding)
