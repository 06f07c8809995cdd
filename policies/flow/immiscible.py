"""Immiscible noise: the noise of a minibatch, assigned to its chunks.

Flow matching pairs each chunk with a noise that is drawn for it. Here the same draws are dealt out
so that the sum of the squared distances between chunks and noise is least. Straighter paths are
easier to learn. Every noise is used once, so the noise of a minibatch as a whole is standard
normal.

The noise of one chunk is not: given the observation it depends on the chunk that was demonstrated
there, while sampling draws it independently. This bias grows with the minibatch. So the assignment
is an option of cloning alone, and no draws of a policy gradient are assigned.

Letters: B rows, M scored flow steps (or loss draws), H action horizon, A model action dim.
Source: Li et al. 2024 (Immiscible Diffusion).
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def assigned_noise(chunk: Tensor, noise: Tensor) -> Tensor:
    """Return the rows of a noise in the order with the least squared distances to chunks.

    Args:
        chunk: Chunks (B, H, A) [normalized action].
        noise: Noise (B, H, A), or M draws for each chunk (B, M, H, A), each of which is assigned
            within its B rows.

    Example:
        >>> chunk = torch.tensor([[[1.0]], [[-1.0]]])
        >>> assigned_noise(chunk, torch.tensor([[[-0.5]], [[0.3]]])).flatten().tolist()
        [0.30000001192092896, -0.5]
    """
    if noise.ndim == 4:
        # M assignments of B rows each
        draws = [assigned_noise(chunk, draw) for draw in noise.unbind(1)]
        return torch.stack(draws, 1)
    from scipy.optimize import linear_sum_assignment

    # |chunk - noise|^2 without the terms that no assignment changes
    cost = -chunk.flatten(1).double() @ noise.flatten(1).double().T  # (B, B)
    _, order = linear_sum_assignment(cost.cpu().numpy())
    return noise[torch.as_tensor(order, device=noise.device)]
