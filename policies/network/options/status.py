"""The task-status head: is the task going on, done, or not the one in this scene.

    status = softmax(W mean_h(hidden state of action token h) + b)

In cloning, the instruction of some rows is replaced by another row's. Such a row is *invalid*, and
it has no flow loss, because its actions do not follow the words. The head learns with the flow and
adds no token, so the flow's numbers do not change.

Letters: B rows, M scored flow steps, H action horizon, D width of the action expert.
Source: Cheang et al. 2025 (GR-3). There, invalid is -1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from pitune.policies.network.extensions import Extension
from pitune.policies.network.layers import Linear
from pitune.policies.network.options.option import OptionConfig

if TYPE_CHECKING:
    from pitune.policies.network.config import Pi0Config

STATUSES = ("ongoing", "done", "invalid")
"""Names of the classes, in their order."""
ONGOING, DONE, INVALID = range(3)


@dataclass(frozen=True, kw_only=True)
class StatusConfig(OptionConfig):
    """Settings of the task-status head.

    Example:
        >>> StatusConfig(enabled=True).group
        'status'
    """

    group: ClassVar[str | None] = "status"

    enabled: bool = False
    """Whether the network classifies each decision: ongoing, done or invalid."""

    def module(self, network: Pi0Config) -> StatusHead:
        return StatusHead(network.expert.width)


class StatusHead(Extension):
    """Logits of the status from the action tokens, all 0 before training.

    Args:
        width: D.

    Example:
        >>> StatusHead(8)(torch.zeros(2, 1, 4, 8)).shape  # (B, M, H, D) -> (B, M, 3)
        torch.Size([2, 1, 3])
    """

    group = "status"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = Linear(width, len(STATUSES))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        # (B, M, H, D) -> (B, M, D) -> (B, M, 3)
        pooled: Tensor = self.linear(hidden.mean(dim=-2).to(torch.float32))
        return pooled
