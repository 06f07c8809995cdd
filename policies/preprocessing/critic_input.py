"""The input of critics, noise models and the noise actor.

Letters: N rows, S model state dim, R steps of a remainder, A model action dim, d robot action
dim, F feature width, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_STATE = 5.0
"""States are clamped to this [normalized]. A dimension that hardly moves in a few demonstrations
can reach 3,700 when it does move, and its gradients then keep Adam from fitting the others."""


def critic_input(
    state: Tensor,
    features: Tensor | None = None,
    elapsed: Tensor | None = None,
    old_chunk: Tensor | None = None,
    memory: Tensor | None = None,
) -> Tensor:
    """Return the input of a critic (N, D). No gradient reaches the encoder.

    Args:
        state: Normalized states (N, S), clamped to `LARGEST_STATE`.
        features: Pooled features of the encoded observation (N, F).
        elapsed: Used share of the episode's time (N, 1), for a critic whose task includes the time
            limit.
        old_chunk: Rest of the old chunk under a delay (N, R * d + 1), see `old_chunk`.
        memory: Memory that the decision reads (N, memory, D), of a policy with one.

    Raises:
        ValueError: the observation was encoded without features.
    """
    if features is not None and not features.shape[-1]:
        raise ValueError(
            "the observation was encoded without features, and a critic reads them; encode it with "
            "with_features=True"
        )
    parts = [state.clamp(-LARGEST_STATE, LARGEST_STATE)]
    if old_chunk is not None:
        parts.append(old_chunk.clamp(-LARGEST_STATE, LARGEST_STATE))
    if elapsed is not None:
        parts.append(elapsed)
    if memory is not None:
        parts.append(memory.detach().flatten(-2).to(state))
    if features is not None:
        parts.append(features.detach().float())
    return torch.cat(parts, dim=-1)


def critic_state(
    state: Tensor, last_action: Tensor | None, reads_last_action: bool = False
) -> Tensor:
    """Return the states (N, S) of a critic's input, or (N, S + d) with the last action.

    Args:
        state: Normalized states (N, S).
        last_action: The last executed actions (N, d), `ModelInput.last_action`.
        reads_last_action: Whether the critics read it.

    Raises:
        ValueError: they read it, and the rows do not have it.
    """
    if not reads_last_action:
        return state
    if last_action is None:
        raise ValueError(
            "options.critic_input.last_action=True, but the rows have no last_action; take rows of "
            "an environment or demonstrations, or leave the option out"
        )
    return torch.cat([state, last_action.to(state)], dim=-1)


def old_chunk_dim(num_steps: int, action_dim: int) -> int:
    """Return the width of `old_chunk`.

    Example:
        >>> old_chunk_dim(2, action_dim=4), old_chunk_dim(0, action_dim=4)
        (9, 0)
    """
    return num_steps * action_dim + 1 if num_steps else 0


def old_chunk(
    remainder: Tensor | None, delay: Tensor | None, state: Tensor, shape: tuple[int, int]
) -> Tensor | None:
    """Return the part of a critic's input that a decision delay adds (N, R * d + 1).

    It is the remainder of the old chunk and the delay as a share of R. Rows without an old chunk
    have zeros and a negative share. Without steps there is no such part.

    Args:
        remainder: Rest of the old chunk (N, any number of steps, A) [normalized action].
        delay: (N,) int64.
        state: Normalized states (N, S), which give the device.
        shape: (R, d).
    """
    num_steps, action_dim = shape
    if not num_steps:
        return None
    if remainder is None or delay is None:
        part = state.new_zeros(*state.shape[:-1], num_steps * action_dim + 1)
        part[..., -1] = -1 / num_steps
        return part
    steps = remainder[..., :num_steps, :action_dim].to(state)
    steps = torch.nn.functional.pad(steps, (0, 0, 0, num_steps - steps.shape[-2]))
    share = delay[..., None].to(state) / num_steps
    return torch.cat([steps.flatten(-2), share], dim=-1)
