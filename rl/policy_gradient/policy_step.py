"""The gradient step of a policy, which is left out where the advantages have no information.

Letters: B minibatch rows, M scored flow steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.rl import ranks
from pitune.rl.gradient_step import Loss, gradient_step, loss_metrics, to_floats
from pitune.rl.policy_gradient.config import ClipConfig, UpdateConfig
from pitune.rl.policy_gradient.loss import policy_metrics


def learns_from(advantage: Tensor, rows: Sequence[Tensor]) -> list[bool]:
    """Return whether each gradient step has an advantage other than 0 on any rank, in one read.

    Args:
        advantage: Advantages (B, 1) of a batch.
        rows: Row indices of each gradient step, on the device of the advantages.

    Example:
        >>> advantage = torch.tensor([[0.0], [0.0], [1.0]])
        >>> learns_from(advantage, [torch.tensor([0, 1]), torch.arange(3)])
        [False, True]
    """
    if not rows:
        return []
    differs = (advantage != 0).flatten()  # (B,)
    # one flag per gradient step, summed over the ranks, so that all take the same steps
    flags = torch.stack([differs[part].any() for part in rows])
    found: list[bool] = (ranks.total(flags.int()) > 0).tolist()
    return found


def has_advantage(batch: TensorDictBase) -> bool:
    """Return whether a minibatch (B) has an advantage other than 0 on any rank."""
    rows = torch.arange(len(batch), device=batch["advantage"].device)
    return learns_from(batch["advantage"], [rows])[0]


def policy_step(
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    batch: TensorDictBase,
    *,
    learns: bool,
    clip: ClipConfig,
    update: UpdateConfig,
    step: str,
    group: str | None = None,
) -> dict[str, float]:
    """Take one gradient step on the policy and return its metrics, with those of its ratios.

    Args:
        optimizer: Optimizer of the policy.
        loss: Loss with the metric `log_ratio` (B, M), see `PolicyLoss`.
        batch: Decisions (B) with all random draws that the loss needs.
        learns: Whether to take the step. Without any advantage there is none, because Adam would go
            on with its last ones.
        clip: Clip of the ratios.
        update: Parts of the minibatch, and the greatest norm of the gradient.
        step: Number of the update, for the error.
        group: Key of an integer index (B,). Rows with the same index stay in one part.
    """
    summarize = partial(policy_metrics, clip=clip)
    if not learns:
        # the same metrics, without a step
        metrics = loss_metrics(loss, batch, update.num_parts, summarize)
        return {**to_floats(metrics), "grad_norm": 0.0}
    metrics, grad_norm = gradient_step(
        optimizer,
        loss,
        batch,
        name="actor",
        step=step,
        max_grad_norm=update.max_grad_norm,
        num_parts=update.num_parts,
        group=group,
        summarize=summarize,
    )
    return {**to_floats(metrics), "grad_norm": grad_norm}
