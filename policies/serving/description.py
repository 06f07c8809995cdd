"""Facts about a served policy for its clients, and an observation to warm it up."""

from __future__ import annotations

from typing import Any

import torch

from pitune.policies.policy import FlowPolicy


def policy_metadata(policy: FlowPolicy) -> dict[str, Any]:
    """Return the facts that a client needs: shapes, cameras, and whether there is a prompt.

    Example:
        >>> from pitune.policies import SamplerConfig, small_policy
        >>> states, actions = torch.randn(50, 4), torch.randn(50, 2)
        >>> policy = small_policy(states, actions, action_horizon=8, sampler=SamplerConfig())
        >>> policy_metadata(policy)["action_horizon"]
        8
    """
    preprocessor = policy.preprocessor
    cameras = [key.removeprefix("image/") for key in policy.obs_keys if key.startswith("image/")]
    return {
        "server": "pitune",
        "action_horizon": policy.chunk_shape[0],
        "execution_horizon": policy.sampler.execution_horizon,
        "action_dim": preprocessor.action_dim,
        "state_dim": preprocessor.state_dim,
        "cameras": cameras,
        "prompt": preprocessor.config.prompt is not None,
    }


def blank_observation(policy: FlowPolicy) -> dict[str, Any]:
    """Return an observation of zeros in the form of `policies.infer`.

    Args:
        policy: Decides the state's width, the cameras and whether there is a prompt.
    """
    config = policy.preprocessor.config
    raw: dict[str, Any] = {"observation/state": torch.zeros(config.state.dim).numpy()}
    if config.pictures is not None:
        blank = torch.zeros(224, 224, 3, dtype=torch.uint8).numpy()
        raw |= {f"observation/{camera}": blank for camera in config.pictures.cameras.values()}
    if config.prompt is not None:
        raw["prompt"] = "warm up"
    return raw
