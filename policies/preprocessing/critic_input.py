"""The input of critics, noise models and the noise actor.

Letters: N rows, S model state dim, F feature width, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_STATE = 5.0
"""States are clamped to this [normalized]. A dimension that hardly moves in a few demonstrations
can reach 3,700 when it does move, and its gradients then keep Adam from fitting the others."""


def critic_input(
    state: Tensor, features: Tensor | None = None, elapsed: Tensor | None = None
) -> Tensor:
    """Return the input of a critic (N, D). No gradient reaches the encoder.

    Args:
        state: Normalized states (N, S), clamped to `LARGEST_STATE`.
        features: Pooled features of the encoded observation (N, F).
        elapsed: Used share of the episode's time (N, 1), for a critic whose task includes the time
            limit.
    """
    parts = [state.clamp(-LARGEST_STATE, LARGEST_STATE)]
    if elapsed is not None:
        parts.append(elapsed)
    if features is not None:
        parts.append(features.detach().float())
    return torch.cat(parts, dim=-1)
