"""The decisions before each decision of an episode, for the gradient of a policy's memory.

In shapes, `past` is the number of decisions in a history.
Letters: N rows, B minibatch rows, E envs, T chunk decisions, h executed actions.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy
from pitune.policies.preprocessing.model_input import MODEL_INPUT
from pitune.policies.recurrence import HISTORY, IN_EPISODE
from pitune.rl.experience.demonstrations import Demonstrations
from pitune.rl.experience.sub_dict import sub_dict


def with_history(
    rollout: TensorDictBase, policy: FlowPolicy, memory_decisions: int
) -> TensorDictBase:
    """Return a rollout (E, T) with the decisions before each one, for a policy with a memory.

    Args:
        rollout: Decisions, which hold the memory that they read.
        policy: Without a memory, the rollout is returned as it is.
        memory_decisions: Decisions that a gradient flows through, with the present one.
    """
    past = memory_decisions - 1
    if not policy.has_memory or not past:
        return rollout
    num = rollout.batch_size[1]
    time = torch.arange(num, device=rollout.device)
    ended = rollout["next", "done"].squeeze(-1).long()  # (E, T)
    episode = ended.cumsum(1) - ended  # number of each decision's episode in its environment
    # (T, past), the oldest first
    before = time[:, None] - torch.arange(past, 0, -1, device=rollout.device)
    # decisions of the same episode. Places before the rollout read decision 0 and are masked
    there = before.clamp(min=0)
    same = (episode[:, there] == episode[..., None]) & (before >= 0)  # (E, T, past)
    names = [name for name in (MODEL_INPUT, "prefix") if name in rollout.keys()]
    decisions = rollout.select(*names)
    history = sub_dict(decisions, (slice(None), there))  # (E, T, past)
    history[IN_EPISODE] = same
    return rollout.copy().set(HISTORY, history)


def decisions_before(episode: Tensor, horizon: int, burn_in: int | None) -> tuple[Tensor, Tensor]:
    """Return the steps of the decisions before each step of demonstrations (N, past), and a mask.

    A policy decides at every h-th step. The first decision is always that of the episode's first
    step, also where it is less than h steps from the second one.

    Args:
        episode: Episode of each step (N,), in ascending order.
        horizon: h.
        burn_in: Greatest number of decisions, None for all from the episode's beginning on.

    Example:
        >>> steps, there = decisions_before(torch.tensor([0, 0, 0, 1]), 2, None)
        >>> steps.tolist(), there.tolist()
        ([[0], [0], [0], [3]], [[False], [True], [True], [False]])
    """
    step = torch.arange(len(episode))
    first = torch.searchsorted(episode, episode)  # (N,)
    num = -(-(step - first) // horizon)  # decisions before each step
    past = int(num.max()) if burn_in is None else min(int(num.max()), burn_in)
    back = torch.arange(past, 0, -1)  # the oldest first
    # (N, past). Steps before the episode read its first step and are masked
    steps = torch.maximum(step[:, None] - back * horizon, first[:, None])
    return steps, back <= num[:, None]


class ChunksWithHistory:
    """Chunks in memory (N), drawn with replacement, with the decisions before each.

    For cloning a policy with a memory. The memory of a chunk's decision is written again by the
    decisions before it, in the order of the episode.

    Args:
        chunks: The chunk of each step.
        demonstrations: The steps.
        policy: Gives h.
        burn_in: Greatest number of decisions before a chunk, None for all of them.

    Example:
        >>> source = ChunksWithHistory(table.chunks(4), table, policy)  # doctest: +SKIP
        >>> source.draw(32)["history"].batch_size  # doctest: +SKIP
        torch.Size([32, 7])
    """

    def __init__(
        self,
        chunks: TensorDictBase,
        demonstrations: Demonstrations,
        policy: FlowPolicy,
        burn_in: int | None = None,
    ) -> None:
        self.chunks, self.fps = chunks, demonstrations.fps
        horizon = policy.sampler.execution_horizon
        self._steps, self._there = decisions_before(demonstrations.episode, horizon, burn_in)

    @property
    def entries(self) -> set[str]:
        """Names of the entries of a chunk."""
        return set(self.chunks.keys())

    def __len__(self) -> int:
        return len(self.chunks)

    def draw(self, size: int) -> TensorDictBase:
        """Return the next minibatch (B), each chunk with its `history`."""
        index = torch.randint(len(self), (min(size, len(self)),))
        rows = sub_dict(self.chunks, index)
        there = self._there[index]
        # no longer than the longest history of this minibatch
        longest = int(there.sum(1).max()) if there.numel() else 0
        if not longest:
            return rows
        there = there[:, -longest:]
        steps = self._steps[index][:, -longest:]  # (B, past)
        history = sub_dict(self.chunks.select(MODEL_INPUT), steps)
        history[IN_EPISODE] = there
        return rows.set(HISTORY, history)

    def state(self) -> dict[str, Any]:
        """Return the place in the order, of which PyTorch's generator holds everything."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state`."""
