"""Pillow's bilinear filter in whole numbers, so that a device gives Pillow's bytes.

Pillow resizes bytes with weights that are rounded to 22 bits after the point. It adds up products
of whole numbers along one axis, rounds to bytes, and goes on with the other axis. Sums of whole
numbers do not depend on their order, so every device computes the same bytes. The first axis
depends on the version of Pillow and on the sizes, so it is found by a picture of noise, once for
each pair of sizes.

Letters: N rows, Y, X image pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Axis = Literal["rows", "columns"]
BITS = 22
"""Bits of a weight after the point (`PRECISION_BITS` of Pillow's Resample.c)."""


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Return pictures (N, 3, Y, X) uint8 at another size, as `Image.resize` with `BILINEAR` does.

    Args:
        image: Pictures on any device.
        height: Of the result [pixels].
        width: Of the result [pixels].

    Example:
        >>> picture = torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 2, 2)
        >>> resize(picture, 2, 4)[0, 0, 0].tolist()
        [0, 64, 191, 255]
    """
    order = first_axis(image.shape[-2], image.shape[-1], height, width)
    if order is None:
        return resize_on_host(image, height, width).to(image.device)
    return _resize(image, height, width, order)


def resize_on_host(image: Tensor, height: int, width: int) -> Tensor:
    """Return pictures (N, 3, Y, X) uint8 at another size on the host, by Pillow itself."""
    pixels = image.permute(0, 2, 3, 1).cpu().numpy()  # (N, Y, X, 3)
    size = (width, height)
    resized = [Image.fromarray(one).resize(size, Image.Resampling.BILINEAR) for one in pixels]
    return torch.from_numpy(np.stack([np.asarray(one) for one in resized])).permute(0, 3, 1, 2)


@lru_cache(maxsize=128)
def first_axis(old_height: int, old_width: int, height: int, width: int) -> Axis | None:
    """Return the axis that the installed Pillow resizes first, None if neither gives its bytes."""
    generator = torch.Generator().manual_seed(0)  # leaves the program's random numbers alone
    noise = torch.randint(
        256, (1, 3, old_height, old_width), dtype=torch.uint8, generator=generator
    )
    expected = resize_on_host(noise, height, width)
    orders: tuple[Axis, ...] = ("rows", "columns")
    fitting = (order for order in orders if _resize(noise, height, width, order).equal(expected))
    return next(fitting, None)


def _resize(image: Tensor, height: int, width: int, first: Axis) -> Tensor:
    """Return pictures (N, 3, Y, X) at another size, along one axis first."""
    if first == "rows":
        return _along_rows(_along_rows(image, width).mT, height).mT.contiguous()
    return _along_rows(_along_rows(image.mT, height).mT, width)


def _along_rows(image: Tensor, size: int) -> Tensor:
    """Return pictures (..., Y, X) with rows of another size (..., Y, size)."""
    if image.shape[-1] == size:
        return image
    first, weights = _weights(image.shape[-1], size, image.device)
    last = image.shape[-1] - 1
    total = torch.full((), 1 << (BITS - 1), dtype=torch.int32, device=image.device)
    for step in range(weights.shape[1]):
        # (..., Y, size), where pixels outside have the weight 0
        pixels = image.index_select(-1, (first + step).clamp(max=last))
        total = total + pixels.int() * weights[:, step]
    return (total >> BITS).clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=32)
def _weights(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first pixel of each new one (new,) and the weights from it on (new, pixels).

    The order of the operations is Pillow's, in double precision.
    """
    scale = old / new
    reach = max(scale, 1.0)  # [pixels] to either side
    firsts, rows = [], []
    for index in range(new):
        center = (index + 0.5) * scale
        first = max(0, int(center - reach + 0.5))
        num = min(old, int(center + reach + 0.5)) - first
        # a triangle around the center
        factor = 1.0 / reach
        row = [max(0.0, 1.0 - abs((x + first - center + 0.5) * factor)) for x in range(num)]
        total = sum(row)
        row = [value / total if total else value for value in row]
        firsts.append(first)
        rows.append([int(0.5 + value * (1 << BITS)) for value in row])
    pixels = math.ceil(reach) * 2 + 1
    table = torch.tensor([row + [0] * (pixels - len(row)) for row in rows], dtype=torch.int32)
    return torch.tensor(firsts).to(device), table.to(device)
