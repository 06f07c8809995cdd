"""The gradient step of all algorithms, and the minibatches of an update.

Letters: B minibatch rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.rl import ranks
from pitune.rl.experience.sub_dict import sub_dict

Metrics = dict[str, Tensor]
"""Detached tensors: scalars that are means over rows, or a value per row (B, ...)."""
Loss = Callable[[TensorDictBase], tuple[Tensor, Metrics]]
"""`batch (B,) -> (loss, metrics)`. The loss is a scalar, the mean over the batch's rows. The
function draws no random numbers and has no state, so that a batch can be passed in parts."""


def minibatches(num: int, size: int, num_epochs: int) -> list[Tensor]:
    """Return the rows of each gradient step of all epochs, in order.

    A ragged last minibatch is dropped. A `size` above `num` is reduced to `num`. An empty batch has
    no gradient step. Several ranks take the same number of steps, with equal shares of each.

    Args:
        num: Rows of the batch of this rank.
        size: Rows of a minibatch of all ranks.
        num_epochs: Passes over the batch.
    """
    size = min(ranks.share(size), ranks.least(num))
    if not size:
        return []
    num_steps = ranks.least(num // size)
    rows: list[Tensor] = []
    for _ in range(num_epochs):
        rows += torch.randperm(num).split(size)[:num_steps]
    return rows


def run_epochs(
    batch: TensorDictBase,
    rows: list[Tensor],
    step: Callable[[TensorDictBase], dict[str, float]],
    target_kl: float,
) -> dict[str, float]:
    """Take gradient steps until the policy is too far from the one that collected the batch.

    Returns the mean of each metric over the steps. `ratio_deviation` is that of the first step.

    Args:
        batch: Decisions (B).
        rows: Row indices of each gradient step.
        step: Takes one gradient step and returns its metrics.
        target_kl: The steps end when `approx_kl` exceeds this.
    """
    # gradient steps
    history: list[dict[str, float]] = []
    for part in rows:
        history.append(step(sub_dict(batch, part)))
        # of all ranks, because one that stops alone would leave the others waiting
        if ranks.mean_number(history[-1].get("approx_kl", 0.0)) > target_kl:
            break

    # means over the steps, of which some may lack a metric of others
    if not history:
        return {"gradient_steps": 0.0}
    first = {key: value for key, value in history[0].items() if key == "ratio_deviation"}
    keys = {key: None for metrics in history for key in metrics if key != "ratio_deviation"}
    means = {key: fmean(step[key] for step in history if key in step) for key in keys}
    return {**first, **means, "gradient_steps": float(len(history))}


def gradient_step(
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    batch: TensorDictBase,
    *,
    name: str,
    step: str,
    max_grad_norm: float = math.inf,
    num_parts: int = 1,
    group: str | None = None,
) -> tuple[Metrics, float]:
    """Take one optimizer step on a batch (B,). Return the metrics and the norm of the gradient.

    Only the optimizer's parameters get a gradient. A batch in several parts needs less memory and
    gives the same gradient up to rounding, because each part is weighted by its share of the rows.
    Scalar metrics are averaged with these weights, and metrics per row are concatenated. The
    returned norm is that before scaling.

    Several ranks apply the mean gradient of the rows of all ranks, to the same parameters. The
    metrics are those of this rank's rows.

    Args:
        optimizer: Optimizer of the trained parameters.
        loss: Mean over the rows of a batch.
        batch: The rows of this rank, with all random draws that the loss needs.
        name: Name of the trained network, for the error.
        step: Number of the update or round, for the error.
        max_grad_norm: Gradients are scaled down to this norm, or left alone if it is infinite.
        num_parts: Number of parts of the batch.
        group: Key of an integer index (B,). Rows with the same index stay in one part.

    Raises:
        FloatingPointError: the loss is not finite, on any rank. No parameter has changed.

    Example:
        >>> from tensordict import TensorDict
        >>> weight = torch.nn.Parameter(torch.zeros(()))
        >>> batch = TensorDict({"x": torch.ones(4)}, [4])
        >>> def loss(batch):
        ...     value = (weight - batch["x"]).square().mean()
        ...     return value, {"loss": value}
        >>> optimizer = torch.optim.SGD([weight], lr=0.5)
        >>> metrics, norm = gradient_step(
        ...     optimizer, loss, batch, name="weight", step="update 0", num_parts=2
        ... )
        >>> float(weight), float(metrics["loss"]), norm
        (1.0, 1.0, 2.0)
    """
    parameters = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
    optimizer.zero_grad(set_to_none=True)
    parts = split_rows(batch, num_parts, group)
    shares = [len(part) / len(batch) for part in parts]
    weight = ranks.row_weight(len(batch))

    # gradient, accumulated over the parts
    history: list[Metrics] = []
    fault = 0.0
    for part, share in zip(parts, shares, strict=True):
        part_loss, metrics = loss(part)
        if not torch.isfinite(part_loss):
            fault = part_loss.item()
            if ranks.world() == 1:
                raise _not_finite(optimizer, name, step, str(fault))
        (part_loss * (share * weight)).backward(inputs=ranks.leaves(parameters))
        history.append({key: value.detach() for key, value in metrics.items()})

    # of all ranks, after the work that all of them take part in
    if ranks.on_any(fault != 0):
        faults = [f"{value} on rank {i}" for i, value in enumerate(ranks.gathered(fault)) if value]
        raise _not_finite(optimizer, name, step, ", ".join(faults))
    ranks.average_gradients(parameters)

    # step
    norm = ranks.clip_gradients(parameters, max_grad_norm)
    optimizer.step()
    return merge_metrics(history, shares), float(norm)


def _not_finite(
    optimizer: torch.optim.Optimizer, name: str, step: str, loss: str
) -> FloatingPointError:
    """Return the error of a loss that is not finite."""
    # before the first step no learning rate can be the cause
    advice = (
        "lower its learning rate, check the scale of rewards and actions, or resume from "
        "the last checkpoint"
        if optimizer.state
        else "no step was taken before, so check the norm stats, the observations and the "
        "rewards for values that are huge or not finite"
    )
    return FloatingPointError(f"{name} loss is {loss} in {step}; {advice}")


@torch.no_grad()
def loss_metrics(loss: Loss, batch: TensorDictBase, num_parts: int = 1) -> Metrics:
    """Return the metrics of a loss on a batch (B,), without a gradient step."""
    parts = split_rows(batch, num_parts)
    return merge_metrics(
        [loss(part)[1] for part in parts], [len(part) / len(batch) for part in parts]
    )


def split_rows(
    batch: TensorDictBase, num_parts: int, group: str | None = None
) -> Sequence[TensorDictBase]:
    """Return a batch (B,) in at most `num_parts` parts of about the same number of rows.

    Args:
        batch: The rows.
        num_parts: Number of parts.
        group: Key of an integer index (B,). Rows with the same index stay in one part.
    """
    if num_parts == 1:
        return [batch]
    if group is None:
        parts: Sequence[TensorDictBase] = batch.split(-(-len(batch) // num_parts))
        return parts
    index = batch[group].unique(return_inverse=True)[1]  # (B,), from 0 without gaps
    part_of_row = index * num_parts // (int(index.max()) + 1)
    return [sub_dict(batch, part_of_row == part) for part in part_of_row.unique()]


def merge_metrics(history: Sequence[Metrics], shares: Sequence[float]) -> Metrics:
    """Return the metrics of a whole batch from those of its parts.

    Args:
        history: Metrics of each part: scalars, or tensors with a row axis first.
        shares: Share of the rows of each part, with sum 1.
    """
    merged: Metrics = {}
    for key, first in history[0].items():
        values = [metrics[key] for metrics in history]
        if first.ndim:
            merged[key] = torch.cat(values)
        else:
            merged[key] = (torch.stack(values) * first.new_tensor(shares)).sum()
    return merged


def to_floats(metrics: Metrics) -> dict[str, float]:
    """Return scalar metrics as Python floats."""
    return {key: float(value.detach()) for key, value in metrics.items()}
