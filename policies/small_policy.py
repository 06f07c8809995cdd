"""An untrained policy for robots without pictures and prompts.

Letters: N rows, H action horizon, s robot state dim, d robot action dim.
"""

from __future__ import annotations

from torch import Tensor

from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config
from pitune.policies.network.gemma import GemmaConfig
from pitune.policies.policy import FlowPolicy
from pitune.policies.policy_config import SamplerConfig
from pitune.policies.preprocessing.norm_stats import NormStats
from pitune.policies.preprocessing.preprocessor import PreprocessorConfig


def small_policy(
    state: Tensor,
    action: Tensor,
    *,
    action_horizon: int,
    sampler: SamplerConfig,
    expert: GemmaConfig = LAPTOP_EXPERT,
) -> FlowPolicy:
    """Build an untrained state-only policy with the norm stats of demonstrations.

    Args:
        state: All demonstrated states (N, s) [robot units].
        action: All demonstrated actions (N, d) [robot units].
        action_horizon: H.
        sampler: Flow steps and execution horizon.
        expert: Sizes of the transformer.

    Example:
        >>> import torch
        >>> states, actions = torch.randn(50, 4), torch.randn(50, 2)
        >>> policy = small_policy(states, actions, action_horizon=4, sampler=SamplerConfig())
        >>> policy.chunk_shape
        (4, 2)
    """
    network = Pi0Config(
        state_dim=state.shape[-1],
        action_dim=action.shape[-1],
        action_horizon=action_horizon,
        expert=expert,
    )
    stats = PreprocessorConfig(state=NormStats.of(state), action=NormStats.of(action))
    return FlowPolicy(network, stats, sampler)
