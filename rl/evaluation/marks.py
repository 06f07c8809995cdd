"""The marks of a policy's decisions, counted over the episodes of an evaluation.

Letters: E envs.
"""

from __future__ import annotations

from typing import TypedDict

from tensordict import TensorDictBase

from pitune.policies.network.options.status import DONE


class EpisodeMarks(TypedDict):
    """The marks of one episode, None where the policy makes none.

    Example:
        >>> EpisodeMarks(status_done=True, undecoded=None)
        {'status_done': True, 'undecoded': None}
    """

    status_done: bool | None
    undecoded: int | None


class Marks:
    """Marks of the episodes that are being played.

    Args:
        num_envs: E.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> marks = Marks(2)
        >>> marks.add(TensorDict({"status": torch.tensor([0, 1])}, batch_size=[2]))
        >>> marks.taken(1)
        {'status_done': True, 'undecoded': None}
    """

    def __init__(self, num_envs: int) -> None:
        self._done: list[bool | None] = [None] * num_envs
        self._undecoded: list[int | None] = [None] * num_envs

    def add(self, decisions: TensorDictBase) -> None:
        """Count the marks of a decision in each environment (E)."""
        if "status" in decisions.keys():
            for i, status in enumerate(decisions["status"].tolist()):
                self._done[i] = bool(self._done[i]) or status == DONE
        if "fast_failed" in decisions.keys():
            for i, failed in enumerate(decisions["fast_failed"].tolist()):
                self._undecoded[i] = (self._undecoded[i] or 0) + bool(failed)

    def taken(self, env: int) -> EpisodeMarks:
        """Return the marks of an environment's episode, and begin the next one."""
        marks = EpisodeMarks(status_done=self._done[env], undecoded=self._undecoded[env])
        self._done[env] = self._undecoded[env] = None
        return marks
