"""The gradient step of all algorithms, and the minibatches of an update.

Letters: B minibatch rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from pitune.policies.host_prefixes import minibatches as with_prefixes
from pitune.rl import gradients, ranks
from pitune.rl.experience.sub_dict import sub_dict

Metrics = dict[str, Tensor]
"""Detached tensors: scalars that are means over rows, or a value per row (B, ...)."""
Loss = Callable[[TensorDictBase], tuple[Tensor, Metrics]]
"""`batch (B,) -> (loss, metrics)`. The loss is a scalar, the mean over the batch's rows. The
function draws no random numbers and has no state, so that a batch can be passed in parts."""
Summary = Callable[[Metrics], Metrics]
"""Returns scalar metrics of the metrics of a whole batch."""


def minibatches(
    num: int, size: int, num_epochs: int, device: torch.device | None = None
) -> list[Tensor]:
    """Return the rows of each gradient step of all epochs, in order.

    A ragged last minibatch is dropped. A `size` above `num` is reduced to `num`. An empty batch has
    no gradient step. The order is drawn on the host, so it is the same for every device, and moved
    once. Several ranks take the same number of steps, with equal shares of each.

    Args:
        num: Rows of the batch of this rank.
        size: Rows of a minibatch of all ranks.
        num_epochs: Passes over the batch.
        device: Device of the batch.
    """
    size = min(ranks.share(size), ranks.least(num))
    if not size:
        return []
    steps = ranks.least(num // size)
    # (epochs * steps, size)
    rows = torch.stack([torch.randperm(num)[: steps * size] for _ in range(num_epochs)])
    return list(rows.to(device).view(-1, size))


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
    for minibatch in with_prefixes(batch, rows):
        history.append(step(minibatch))
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
    summarize: Summary | None = None,
) -> tuple[Metrics, float]:
    """Take one optimizer step on a batch (B,). Return the metrics and the norm of the gradient.

    Only the optimizer's parameters get a gradient. A batch in several parts needs less memory and
    gives the same gradient up to rounding, because each part is weighted by its share of the rows.
    Scalar metrics are averaged with these weights, and metrics per row are concatenated. The norm
    is that before scaling. Several ranks apply the mean gradient of the rows of all ranks, but the
    metrics are those of this rank's rows. The host reads all its numbers together before the step,
    so it waits for an accelerator once.

    Args:
        optimizer: Optimizer of the trained parameters.
        loss: Mean over the rows of a batch.
        batch: The rows of this rank, with all random draws that the loss needs.
        name: Name of the trained network, for the error.
        step: Number of the update or round, for the error.
        max_grad_norm: Gradients are scaled down to this norm if it is finite.
        num_parts: Number of parts of the batch.
        group: Key of an integer index (B,). Rows with the same index stay in one part.
        summarize: Returns further scalar metrics of those of the whole batch.

    Returns:
        The scalar metrics on the host, those per row on the batch's device, and the norm.

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

    # gradient of the rows of all ranks
    losses, history = _accumulate(loss, parts, shares, parameters)
    gradients.average_gradients(parameters)
    norm = gradients.gradient_norm(parameters)

    # numbers for the host
    merged = _summarized(merge_metrics(history, shares), summarize)
    merged, (norm_read, *losses_read) = read_scalars(merged, [norm, *losses])
    _check_finite(losses_read, optimizer, name, step)

    # step
    if not math.isinf(max_grad_norm):
        gradients.clip_gradients(parameters, max_grad_norm, norm)
    optimizer.step()
    return merged, norm_read


def _accumulate(
    loss: Loss,
    parts: Sequence[TensorDictBase],
    shares: Sequence[float],
    parameters: Sequence[nn.Parameter],
) -> tuple[list[Tensor], list[Metrics]]:
    """Add up the gradients of the parts of a batch, and return their losses and metrics."""
    weight = gradients.row_weight(sum(map(len, parts)))
    losses, history = [], []
    for part, share in zip(parts, shares, strict=True):
        part_loss, metrics = loss(part)
        (part_loss * (share * weight)).backward(inputs=gradients.leaves(parameters))
        losses.append(part_loss.detach())
        history.append({key: value.detach() for key, value in metrics.items()})
    return losses, history


def _check_finite(
    losses: list[float], optimizer: torch.optim.Optimizer, name: str, step: str
) -> None:
    """Raise FloatingPointError if the loss of a part is not finite, on any rank."""
    if not ranks.on_any(not all(map(math.isfinite, losses))):
        return
    for number, loss in enumerate(ranks.gathered_numbers(losses)):
        if not math.isfinite(loss):
            where = f" on rank {number // len(losses)}" if ranks.world() > 1 else ""
            # before the first step no learning rate can be the cause
            advice = (
                "lower its learning rate, check the scale of rewards and actions, or resume from "
                "the last checkpoint"
                if optimizer.state
                else "no step was taken before, so check the norm stats, the observations and the "
                "rewards for values that are huge or not finite"
            )
            raise FloatingPointError(f"{name} loss is {loss} in {step}{where}; {advice}")


@torch.no_grad()
def loss_metrics(
    loss: Loss, batch: TensorDictBase, num_parts: int = 1, summarize: Summary | None = None
) -> Metrics:
    """Return the metrics of a loss on a batch (B,), without a gradient step.

    They are read as in `gradient_step`.
    """
    parts = split_rows(batch, num_parts)
    metrics = merge_metrics(
        [loss(part)[1] for part in parts], [len(part) / len(batch) for part in parts]
    )
    return read_scalars(_summarized(metrics, summarize))[0]


def _summarized(metrics: Metrics, summarize: Summary | None) -> Metrics:
    return metrics if summarize is None else metrics | summarize(metrics)


def read_scalars(metrics: Metrics, others: Sequence[Tensor] = ()) -> tuple[Metrics, list[float]]:
    """Return metrics with their scalars on the host, and further scalars, in one read.

    Args:
        metrics: Scalars, or tensors with a row axis, which stay on their device.
        others: Further scalars.

    Example:
        >>> read_scalars({"loss": torch.tensor(0.5)}, [torch.tensor(2.0)])
        ({'loss': tensor(0.5000)}, [2.0])
    """
    scalars = [value for value in metrics.values() if not value.ndim]
    # the host has its own scalars already
    away = [value for value in (*scalars, *others) if value.device.type != "cpu"]
    if not away:
        return metrics, [float(value) for value in others]
    host = dict(zip(map(id, away), torch.stack([x.double() for x in away]).cpu(), strict=True))
    read = {key: host.get(id(value), value).to(value.dtype) for key, value in metrics.items()}
    return read, [float(host.get(id(value), value)) for value in others]


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
            # the shares are numbers of the host, which a product takes without a transfer
            weighed = [value * share for value, share in zip(values, shares, strict=True)]
            merged[key] = torch.stack(weighed).sum()
    return merged


def to_floats(metrics: Metrics) -> dict[str, float]:
    """Return the scalar metrics of a gradient step, which are on the host, as Python floats."""
    return {key: float(value.detach()) for key, value in metrics.items() if not value.ndim}
