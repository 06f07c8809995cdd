"""The π0 network: an observation encoded once, a velocity of action tokens asked many times.

Tokens, in blocks that see themselves and the blocks before: `[state] [actions]`. A policy
without cameras and without a prompt is π0 with an empty prefix. The expert's hidden width carries
`MLP(concat(action, flow time))` per action token, as in openpi's π0.

Parameter names are openpi's. Letters: N rows, M points of flow time per row, H action horizon,
A action dim, S state dim, D width of the action expert.
Source: Black et al. 2024; openpi `models/pi0.py` and `models_pytorch/pi0_pytorch.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from policies.flow import FlowOutput
from policies.gemma import Cache, Gemma, GemmaConfig

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0
"""Shortest and longest period of the flow time's embedding [flow time]."""


@dataclass(frozen=True, kw_only=True)
class Pi0Config:
    """Sizes of the network, in normalised model space."""

    state_dim: int
    """S, the width of the state token's input."""
    action_dim: int
    """A, the model's action width; a robot with fewer dimensions is padded."""
    action_horizon: int
    """H, how many actions one chunk has."""
    expert: GemmaConfig
    """The action expert."""


LAPTOP_EXPERT = GemmaConfig(
    width=64, depth=2, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16
)
"""The small preset: an expert that two CPU cores fine-tune in minutes."""


class Context(NamedTuple):
    """An encoded observation: all that the flow steps and the critics need of it."""

    cache: Cache
    """Keys and values of the blocks before the actions."""
    features: Tensor
    """Pooled features of the observation (N, D)."""


class Experts(nn.Module):
    """The towers, under openpi's name for them."""

    def __init__(self, config: Pi0Config) -> None:
        super().__init__()
        self.gemma_expert = nn.ModuleDict({"model": Gemma(config.expert)})


class Pi0(nn.Module):
    """Velocity field of action chunks, conditioned on an observation.

    Args:
        config: Sizes.
    """

    def __init__(self, config: Pi0Config) -> None:
        super().__init__()
        self.config = config
        width = config.expert.width
        self.paligemma_with_expert = Experts(config)
        self.state_proj = nn.Linear(config.state_dim, width)
        self.action_in_proj = nn.Linear(config.action_dim, width)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)
        self.action_out_proj = nn.Linear(width, config.action_dim)

    @property
    def expert(self) -> Gemma:
        """The action expert's tower."""
        expert: Gemma = self.paligemma_with_expert.gemma_expert["model"]  # type: ignore[assignment]
        return expert

    def encode(self, state: Tensor) -> Context:
        """Return the context of normalised states (N, S); no flow step changes it.

        The state token is a block of its own: it cannot see the actions.
        """
        tokens = self.state_proj(state)[:, None]
        positions = torch.zeros(tokens.shape[:2], dtype=torch.int64, device=state.device)
        hidden, cache = self.expert(tokens, positions)
        return Context(cache, hidden[:, -1])

    def velocity(self, context: Context, x: Tensor, flow_time: Tensor) -> FlowOutput:
        """Return the velocity and the expert's features at M points per row, in one pass.

        The M points share their row's cache: their tokens stand side by side, and a mask keeps
        the points from seeing each other.

        Args:
            context: Encoded observations of N rows.
            x: Noisy action chunks (N, M, H, A) [normalised action].
            flow_time: (N, M).
        """
        n, m, horizon, _ = x.shape
        width = self.config.expert.width
        time = flow_time_embedding(flow_time, width).to(x.dtype)  # (N, M, D)
        action = self.action_in_proj(x)
        tokens = torch.cat([action, time[:, :, None].expand_as(action)], dim=-1)
        tokens = self.action_time_mlp_out(silu(self.action_time_mlp_in(tokens)))
        before = context.cache[0][0].shape[2]
        positions = (before + torch.arange(horizon, device=x.device)).repeat(m).expand(n, -1)
        mask = _points_mask(m, horizon, before, x.device) if m > 1 else None
        hidden, _ = self.expert(tokens.flatten(1, 2), positions, mask, context.cache)
        hidden = hidden.unflatten(1, (m, horizon))
        return FlowOutput(self.action_out_proj(hidden), hidden)


def flow_time_embedding(flow_time: Tensor, width: int) -> Tensor:
    """Return sines and cosines of the flow time (..., width), float32.

    Periods are geometric from 4e-3 to 4, so that neighbouring steps of a fine grid differ too.
    Computed in double precision, as the reference does: the shortest period amplifies rounding.
    """
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=flow_time.device)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    angle = flow_time.double()[..., None] * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def _points_mask(m: int, horizon: int, before: int, device: torch.device) -> Tensor:
    """Return which keys each action token sees (1, 1, M * H, before + M * H).

    They are the blocks before, and the tokens of its own point of flow time.
    """
    point = torch.arange(m, device=device).repeat_interleave(horizon)
    own = point[:, None] == point
    past = torch.ones(len(point), before, dtype=torch.bool, device=device)
    return torch.cat([past, own], dim=1)[None, None]
