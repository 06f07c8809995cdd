"""Gradient steps: which rows each sees, and one that may be taken in parts."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

Loss = Callable[[TensorDictBase], Tensor]
"""`batch (B,) -> scalar`, a mean over the batch's rows."""


def minibatches(num: int, size: int, num_epochs: int) -> list[Tensor]:
    """Return the rows of each gradient step of all epochs, in order.

    A ragged last minibatch is dropped; one that is larger than the batch is shrunk to it.
    """
    size = min(size, num)
    rows: list[Tensor] = []
    for _ in range(num_epochs):
        rows += [part for part in torch.randperm(num).split(size) if len(part) == size]
    return rows


def run_epochs(
    batch: TensorDictBase,
    rows: list[Tensor],
    step: Callable[[TensorDictBase], dict[str, float]],
    target_kl: float,
) -> dict[str, float]:
    """Take gradient steps until the policy is too far from the one that gathered.

    Returns the mean of each metric over the steps, but `ratio_deviation` as before the first.

    Args:
        batch: Decisions (B).
        rows: Of each gradient step.
        step: Takes one, and returns its metrics.
        target_kl: Greatest `approx_kl` after which another step is taken.
    """
    history: list[dict[str, float]] = []
    for part in rows:
        history.append(step(batch[part]))
        if history[-1].get("approx_kl", 0.0) > target_kl:
            break
    first = {key: history[0].pop(key) for key in ("ratio_deviation",) if key in history[0]}
    means = {key: fmean(taken[key] for taken in history) for key in history[0]}
    return {**first, **means, "gradient_steps": float(len(history))}


def descend(
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    batch: TensorDictBase,
    *,
    max_grad_norm: float,
    name: str,
    update: int,
    num_parts: int = 1,
) -> tuple[float, float]:
    """Take one optimizer step on a batch (B,); return the loss and the gradient's norm.

    The norm is that before scaling. In several parts the gradient is that of the whole batch, up
    to rounding, at a fraction of the memory: each part weighs what it is of the batch.

    Args:
        optimizer: Its parameters are moved.
        loss: Mean over the rows of a batch.
        batch: The rows.
        max_grad_norm: Gradients are scaled down to this norm.
        name: What is trained, for the error.
        update: Number of the update, for the error.
        num_parts: How many parts the batch is split into.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for part in batch.split(-(-len(batch) // num_parts)):
        part_loss = loss(part)
        if not torch.isfinite(part_loss):
            raise FloatingPointError(
                f"{name} loss is {part_loss.item()} in update {update}; lower the learning rate or "
                "resume from the last checkpoint"
            )
        share = len(part) / len(batch)
        (part_loss * share).backward()  # type: ignore[no-untyped-call]
        total += float(part_loss.detach()) * share
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    return total, float(norm)
