"""Weights in the precision of the computation, converted once after each change.

A trained weight is float32, and the towers may compute in bfloat16. The converted weight is held
until the weight changes, so the ten flow steps of a chunk, the passes of a gradient step and all
decisions of a rollout share it. Each use has a gradient of its own in the precision of the weight,
as if it were converted in every call, so no number depends on this.

A change is recognized by the weight's memory and by its version, which every operation in place
raises, the steps of `pitune.rl.optimizers` included. Writing through `weight.data` does not raise
it: use `torch.no_grad` and the weight itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _Held(NamedTuple):
    source: Tensor
    """Shares the weight's memory, which is therefore not given to another tensor."""
    version: int
    converted: Tensor

    def fits(self, weight: Tensor, dtype: torch.dtype) -> bool:
        return (
            self.converted.dtype == dtype
            and self.version == weight._version
            and self.source.data_ptr() == weight.data_ptr()
            and self.source.device == weight.device
        )


class HeldCasts:
    """The converted weights of one layer, by name. They are never copied or saved.

    Attributes:
        enabled: Whether weights are held. FSDP replaces their memory without a change of version,
            so sharded layers must not hold any, see `hold_casts`.

    Example:
        >>> weight, casts = nn.Parameter(torch.ones(2)), HeldCasts()
        >>> first = casts.of("weight", weight, torch.bfloat16)
        >>> casts.of("weight", weight, torch.bfloat16).data_ptr() == first.data_ptr()
        True
        >>> with torch.no_grad():
        ...     _ = weight.add_(1)
        >>> casts.of("weight", weight, torch.bfloat16).tolist()
        [2.0, 2.0]
    """

    def __init__(self) -> None:
        self.enabled = True
        self._held: dict[str, _Held] = {}

    def of(self, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a weight in a precision, with a gradient if the weight has one.

        Args:
            name: Name of the weight in its layer.
            weight: The weight.
            dtype: Precision of the computation.
        """
        if weight.dtype == dtype:
            return weight
        if not self.enabled or torch.compiler.is_compiling():
            return weight.to(dtype)
        held = self._held.get(name)
        if held is None or not held.fits(weight, dtype):
            # outside of an inference mode, whose tensors a gradient cannot keep
            with torch.inference_mode(False), torch.no_grad():
                held = _Held(weight.detach(), weight._version, weight.to(dtype))
            self._held[name] = held
        if weight.requires_grad and torch.is_grad_enabled():
            converted: Tensor = _Cast.apply(weight, held.converted)
            return converted
        return held.converted

    def __deepcopy__(self, memo: dict[int, Any]) -> HeldCasts:
        copied = HeldCasts()
        copied.enabled = self.enabled
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {"enabled": self.enabled, "_held": {}}


class _Cast(torch.autograd.Function):
    """The conversion of a weight whose result is given."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, converted: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return converted.view_as(converted)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(ctx.dtype), None


def hold_casts(network: nn.Module, enabled: bool) -> None:
    """Set whether the layers of a network hold their converted weights.

    Args:
        network: All of its layers are set.
        enabled: False for a network whose weights are sharded.
    """
    for module in network.modules():
        casts = getattr(module, "casts", None)
        if isinstance(casts, HeldCasts):
            casts.enabled = enabled
            casts._held.clear()
