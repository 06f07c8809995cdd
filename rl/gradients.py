"""Gradients of the rows of all ranks, also of parameters that FSDP has sharded.

Letters: N rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pitune.rl import ranks

BUCKET_BYTES = 2**26
"""Size of a copy of gradients for one reduction [bytes]."""


def row_weight(num: int) -> float:
    """Return the weight of the mean over this rank's rows (N) in the mean over those of all."""
    return 1.0 if ranks.world() == 1 else num * ranks.world() / max(1, ranks.total(num))


def leaves(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter] | None:
    """Return the `inputs` of a backward pass for these parameters.

    None stands for all leaves. FSDP computes with gathered copies of its parameters.
    """
    return None if any(isinstance(p, DTensor) for p in parameters) else list(parameters)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the ranks.

    A parameter without a gradient on all ranks keeps none. Those of sharded parameters are left
    alone, because FSDP has averaged them already.
    """
    if ranks.world() == 1:
        return
    own = [p for p in parameters if not isinstance(p, DTensor)]
    if not own:
        return
    # a parameter that some rank has a gradient for gets zeros on the others
    has = torch.tensor([p.grad is not None for p in own], dtype=torch.int32)
    wanted = [p for p, num in zip(own, ranks.total(has).tolist(), strict=True) if num]
    for p in wanted:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    # few large reductions in place of one per parameter
    for bucket in _buckets([p.grad for p in wanted if p.grad is not None]):
        flat = torch.cat([grad.flatten() for grad in bucket])
        dist.all_reduce(flat)
        flat /= ranks.world()
        for grad, mean_grad in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            grad.copy_(mean_grad.view_as(grad))


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients, of which some may be sharded (scalar)."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not any(isinstance(grad, DTensor) for grad in grads):
        return nn.utils.get_total_norm(grads)
    # PyTorch's function takes gradients of one kind
    kinds = [[g for g in grads if isinstance(g, DTensor) == sharded] for sharded in (True, False)]
    norms = [nn.utils.get_total_norm(kind) for kind in kinds if kind]
    return torch.stack([n.full_tensor() if isinstance(n, DTensor) else n for n in norms]).norm()


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float, norm: Tensor) -> None:
    """Scale gradients with a norm down to `max_norm`."""
    if not any(isinstance(p, DTensor) for p in parameters):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return
    # each rank scales its own part, by the norm of the whole gradient
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as PyTorch's
    for p in parameters:
        if p.grad is not None:
            (p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad).mul_(factor)


def _buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return tensors in groups of one precision that are small enough to be copied."""
    buckets: dict[torch.dtype, list[list[Tensor]]] = {}
    for tensor in tensors:
        groups = buckets.setdefault(tensor.dtype, [[]])
        if groups[-1] and sum(t.nbytes for t in groups[-1]) + tensor.nbytes > BUCKET_BYTES:
            groups.append([])
        groups[-1].append(tensor)
    return [group for groups in buckets.values() for group in groups]
