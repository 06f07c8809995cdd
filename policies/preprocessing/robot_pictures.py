"""A robot's picture as bytes, from the layouts, ranges and types in which clients send it.

A value is converted where its meaning is certain. Elsewhere it is refused by its key's name,
because a picture in a wrong range or layout gives plausible, wrong actions.
Letters: Y, X image pixels.
Source: openpi `policies/libero_policy.py: _parse_image`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

LAYOUT = "(Y, X, 3) or (3, Y, X)"
RANGE = "uint8 in 0 .. 255, or floats in 0 .. 1"
ROUNDING = 1e-3
"""Floats may exceed 0 .. 1 by this, as resized pictures do."""


def picture_bytes(key: str, value: Any) -> Tensor:
    """Return a picture (3, Y, X) uint8.

    Args:
        key: The observation's key, for messages.
        value: An array, tensor, nested list or PIL picture, (Y, X, 3) or (3, Y, X). A leading axis
            of one is dropped. Bytes, whole numbers in 0 .. 255, or floats in 0 .. 1.

    Raises:
        ValueError: it is none of them, or its layout or range is not certain.
    """
    array = _array(key, value)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3:
        raise ValueError(
            f"{key} has shape {array.shape}; a picture must be {LAYOUT}, of one moment and in color"
        )

    # layout
    first, last = array.shape[0] == 3, array.shape[-1] == 3
    if first == last:
        problem = "may be either" if first else "has no axis of three colors"
        raise ValueError(
            f"{key} has shape {array.shape}, which {problem}; a picture must be {LAYOUT}"
        )
    if last:  # (Y, X, 3) -> (3, Y, X)
        array = array.transpose(2, 0, 1)
    if 0 in array.shape:
        raise ValueError(f"{key} has shape {array.shape} and no pixels")
    # a copy, because the arrays of a message are read-only
    return torch.from_numpy(np.array(_bytes(key, array), order="C"))


def _array(key: str, value: Any) -> np.ndarray:
    """Return a value as an array of numbers."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key} is no array of pixels ({error})") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(
            f"{key} is {type(value).__name__} of {array.dtype}, no array of pixels; a picture must "
            f"be {RANGE}, decoded and not None"
        )
    return array


def _bytes(key: str, array: np.ndarray) -> np.ndarray:
    """Return pixels as uint8."""
    if array.dtype == np.uint8:
        return array
    lowest, highest = array.min(), array.max()
    held = f"{key} is {array.dtype} in {lowest} .. {highest}"
    if array.dtype.kind in "iu":
        # 16 bits may be a scale of their own, 8 bits with a sign have wrapped, and 0 and 1 may be
        # the ends of a scale
        certain = array.dtype.itemsize >= 4 and lowest >= 0 and highest <= 255 and highest != 1
        if not certain:
            raise ValueError(f"{held}; a picture must be {RANGE}, so convert it to uint8")
        return array.astype(np.uint8)
    if not np.isfinite(array).all():
        raise ValueError(f"{key} has pixels that are not finite; check the camera")
    if lowest >= -ROUNDING and highest <= 1 + ROUNDING:
        # rounded down, as openpi does
        return (255 * array).clip(0, 255).astype(np.uint8)
    if lowest >= 0 and highest <= 255 and (array == np.floor(array)).all():
        return array.astype(np.uint8)
    raise ValueError(
        f"{held}, whose scale is not certain; a picture must be {RANGE}. Divide by 255, or map "
        "-1 .. 1 to 0 .. 1"
    )
