"""The part of an observation that critics, noise models and the noise actor read.

Letters: N rows, S model state dim, F width of the pooled features.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_STATE = 5.0
"""States are cut here [normalized]. A dimension that hardly moved in a few demonstrations reaches
3,700 where it does move, and its gradients keep Adam from fitting the rest."""


def critic_input(
    state: Tensor, features: Tensor | None = None, elapsed: Tensor | None = None
) -> Tensor:
    """Return the input of a critic (N, D); no gradient reaches the encoder.

    Args:
        state: Normalized states (N, S), cut at `LARGEST_STATE`.
        features: Pooled features of the encoded observation (N, F), if the policy sees more than
            the state.
        elapsed: Used share of the episode's time (N, 1), for a critic to whom the time limit is
            part of the task.
    """
    parts = [state.clamp(-LARGEST_STATE, LARGEST_STATE)]
    if elapsed is not None:
        parts.append(elapsed)
    if features is not None:
        parts.append(features.detach().float())
    return torch.cat(parts, dim=-1)
