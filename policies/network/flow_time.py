"""The flow time in the network: its embedding, and the mask that keeps flow times apart.

In shapes, `before` is the number of cached tokens.
Letters: B rows, M scored flow steps, H action horizon, D width.
"""

from __future__ import annotations

import math

import torch
from einops import repeat
from torch import Tensor

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0
"""Shortest and longest period of the flow time's embedding [flow time]."""


def flow_time_embedding(flow_time: Tensor, width: int) -> Tensor:
    """Return sines and cosines of the flow time (..., width), float32.

    The periods are geometric from 4e-3 to 4, so that neighboring steps of a fine grid differ too.
    The shortest period amplifies rounding, so angles are computed in double precision as in openpi.
    """
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=flow_time.device)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    angle = flow_time.double()[..., None] * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def flow_time_mask(
    m: int,
    horizon: int,
    before: int,
    valid: Tensor | None,
    device: torch.device,
    registers: int = 0,
) -> Tensor | None:
    """Return True where an action token may attend (1 or B, 1, M * H, before + M * H).

    It attends to the blocks before without their padding, and to the tokens of its own flow time.
    None stands for a mask that is True everywhere. With registers, the tokens that attend are
    M * (H + registers).
    """
    if m == 1 and valid is None:
        return None
    index = repeat(torch.arange(m, device=device), "m -> (m h)", h=horizon)
    same_flow_time = (index[:, None] == index)[None]  # (1, M * H, M * H)
    if registers:  # which attend like the last action of their flow time
        step = torch.arange(horizon + registers, device=device).clamp(max=horizon - 1)
        like = torch.arange(m, device=device)[:, None] * horizon + step  # (M, H + registers)
        same_flow_time = same_flow_time[:, like.flatten()]
    if valid is None:
        valid = torch.ones(1, before, dtype=torch.bool, device=device)
    # (1 or B, M * (H + registers), before)
    past = valid[:, None].expand(-1, same_flow_time.shape[1], -1)
    own = same_flow_time.expand(len(valid), -1, -1)
    return torch.cat([past, own], dim=2)[:, None]
