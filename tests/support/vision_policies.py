"""A tiny π0 or π0.5 with cameras and a prompt, and an environment that has what it sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune import envs, policies
from pitune.policies import FlowPolicy, NormStats, Pi0
from pitune.policies.network.config import Family, tiny
from pitune.policies.preprocessing.images import PicturesConfig
from pitune.policies.preprocessing.preprocessor import PreprocessorConfig
from pitune.policies.preprocessing.prompt import PromptConfig
from pitune.policies.preprocessing.tokenizer import Tokenizer

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tiny_tokenizer" / "paligemma_tokenizer.model"
ENV = envs.EnvConfig(
    id="mock/Reach",
    num_envs=4,
    num_workers=0,
    max_episode_steps=6,
    cameras=("front", "wrist"),
    image_size=20,
)
SLOTS = {"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"}


def vision_policy(family: Family = "pi0", **changes: Any) -> FlowPolicy:
    """An untrained policy with two cameras and a prompt, of 4 state and 2 action dimensions."""
    torch.manual_seed(0)
    network = tiny(family, action_horizon=4, image_size=28)
    preprocessor = PreprocessorConfig(
        state=NormStats.identity(4),
        action=NormStats.identity(2),
        normalization="quantile" if family == "pi05" else "zscore",
        epsilon=0.0 if family == "pi05" else 1e-8,
        epsilon_out=0.0,
        min_scale=1e-4,
        loss_dims="robot",
        pictures=PicturesConfig(
            cameras=SLOTS,
            missing=("empty_camera_0",),
            size=28,
            resize="torch",
        ),
        prompt=PromptConfig(
            max_tokens=48 if family == "pi0" else 80,
            clean=family == "pi05",
            discrete_state=family == "pi05",
        ),
        **changes,
    )
    sampler = policies.SamplerConfig(flow_steps=2, execution_horizon=2)
    info = policies.PolicyInfo(tokenizer=Tokenizer.load(TOKENIZER))
    return FlowPolicy(Pi0(network), preprocessor, sampler, info=info)


def preprocessed(policy: FlowPolicy, num: int) -> TensorDictBase:
    """Return preprocessed observations (N) of this policy, or of a small one of the state."""
    generator = torch.Generator().manual_seed(3)
    rows: dict[str, Tensor] = {"state": torch.rand(num, 4, generator=generator)}
    for key in policy.obs_keys:
        if key.startswith("image/"):
            pictures = torch.randint(0, 255, (num, 3, 20, 20), generator=generator)
            rows[key] = pictures.to(torch.uint8)
    rows["task_id"] = torch.zeros(num, dtype=torch.int64)
    preprocess = policy.observation_preprocessor(("push the block",))
    return preprocess(TensorDict(rows, batch_size=[num]))
