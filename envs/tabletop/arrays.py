"""The functions by which the task logic works on numpy arrays and on torch tensors alike.

The physics in C keeps its scenes in numpy, because a call of numpy takes a fraction of the time of
a call of torch, and a single scene is stepped by many small calls. The physics in Warp keeps them
in torch on its device. Tasks, experts and observations have one definition for both.
"""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Array: TypeAlias = Any
"""A numpy array or a torch tensor. All arrays of a call are of the same library and device."""


def library_of(array: Array) -> Any:
    """Return the module whose functions work on an array.

    The functions in use have the same name and meaning in both: `where`, `tanh`, `concatenate`.

    Example:
        >>> library_of(np.zeros(2)).__name__, library_of(torch.zeros(2)).__name__
        ('numpy', 'torch')
    """
    return torch if isinstance(array, Tensor) else np


def norm(vectors: Array) -> Array:
    """Return the lengths (...) of vectors (..., n).

    Example:
        >>> float(norm(np.array([3.0, 4.0])))
        5.0
    """
    return library_of(vectors).sqrt((vectors * vectors).sum(-1))


def upward(like: Array) -> Array:
    """Return the unit vector (3,) along z, in the library and on the device of an array.

    Example:
        >>> upward(np.zeros(2))
        array([0., 0., 1.])
    """
    return _upward_tensor(like.device) if isinstance(like, Tensor) else _UPWARD


def choose(condition: Array, value: float, other: float) -> Array:
    """Return `value` where a condition holds and `other` elsewhere, in float64.

    `torch.where` of two numbers would round them to float32.

    Example:
        >>> choose(torch.tensor([True, False]), 0.1, 0.2)
        tensor([0.1000, 0.2000], dtype=torch.float64)
    """
    if not isinstance(condition, Tensor):
        return np.where(condition, value, other)
    others = torch.full_like(condition, other, dtype=torch.float64)
    return others.masked_fill(condition, value)


def as_tensor(array: Array, dtype: torch.dtype) -> Tensor:
    """Return an array as a tensor on its own device, without a copy where the type fits.

    Example:
        >>> as_tensor(np.zeros(2), torch.float32)
        tensor([0., 0.])
    """
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(array)
    return tensor.to(dtype)


_UPWARD = np.array([0.0, 0.0, 1.0])


@functools.cache
def _upward_tensor(device: torch.device) -> Tensor:
    """Return the tensor of `upward`, made once, because making it copies from the host."""
    return torch.tensor(_UPWARD, device=device)
