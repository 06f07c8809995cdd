"""Conditions on the environments that are read from an accelerator together.

Letters: E envs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MOST_WAITING = 256
"""Conditions that wait at most before they are read."""


class DeferredChecks:
    """Conditions that must hold in every environment.

    On the host a condition is checked at once. To read one from an accelerator, the host waits for
    all work before it, so the conditions of several steps are read together by `confirm`.

    Args:
        device: Device of the conditions.

    Example:
        >>> checks = DeferredChecks(torch.device("cpu"))
        >>> checks.require(torch.tensor([True, True]), lambda rows: f"rows {rows}")
        >>> checks.confirm(torch.tensor(3))
        [3]
    """

    def __init__(self, device: torch.device) -> None:
        self.at_once = device.type == "cpu"
        self._waiting: list[tuple[Tensor, Callable[[list[int]], str]]] = []

    def require(self, holds: Tensor, message: Callable[[list[int]], str]) -> None:
        """Add a condition.

        Args:
            holds: Whether it holds in each environment (E,).
            message: Returns the error for the environments in which it does not.

        Raises:
            ValueError: a condition does not hold.
        """
        self._waiting.append((holds, message))
        if self.at_once or len(self._waiting) >= MOST_WAITING:
            self.confirm()

    def confirm(self, *numbers: Tensor) -> list[int]:
        """Read the waiting conditions and further integers in one read, and return these.

        Args:
            *numbers: Integers () or lists of them (N,), which are returned one after the other.

        Raises:
            ValueError: a condition does not hold.
        """
        waiting, self._waiting = self._waiting, []
        # one transfer from the device for all conditions and numbers
        values = [*(holds.all() for holds, _ in waiting), *numbers]
        if not values:
            return []
        read: list[int] = torch.cat([value.long().view(-1) for value in values]).tolist()
        for (holds, message), is_fine in zip(waiting, read, strict=False):
            if not is_fine:
                raise ValueError(message((~holds).nonzero().flatten().tolist()))
        return read[len(waiting) :]
