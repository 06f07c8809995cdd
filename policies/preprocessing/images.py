"""Pictures for the vision tower: resized without distortion, padded, scaled to -1 .. 1.

openpi and lerobot resize differently, by 3 of 255 levels in the mean on a noisy picture, so the
checkpoint says which it was trained with. Letters: N rows, V cameras, Y, X pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad


@dataclass(frozen=True, kw_only=True)
class PicturesConfig:
    """Which pictures the network sees, and how they are resized."""

    cameras: dict[str, str] = field(default_factory=dict)
    """The network's cameras in its order, each with the observation's camera that fills it."""
    missing: tuple[str, ...] = ()
    """The network's cameras that this robot lacks. The references mask them, which is the same as
    leaving them out: that is done here, and saves the work."""
    size: int = 224
    """Height and width that the vision tower takes [pixels]."""
    resize: Literal["pillow", "torch"] = "pillow"
    """openpi: Pillow's bilinear filter on bytes (antialiased). lerobot: torch's bilinear
    interpolation on floats (not antialiased)."""


def resized_pictures(images: list[Tensor], config: PicturesConfig) -> Tensor:
    """Return the pictures of V cameras at the network's size (N, V, 3, size, size).

    Where they are bytes they stay bytes, a quarter of the memory; `scaled_pictures` is the rest of
    the way. lerobot's resizing gives no bytes: then they are float32 in [-1, 1] already.

    Args:
        images: One tensor per camera (N, 3, Y, X) uint8, in the network's order.
        config: The cameras, the size and the filter.

    Raises:
        ValueError: a picture is not uint8 with three channels.
    """
    for camera, image in zip(config.cameras, images, strict=True):
        if image.dtype != torch.uint8 or image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(
                f"pictures of camera {camera!r} are {image.dtype} of shape {tuple(image.shape)}; "
                "they must be uint8 (N, 3, Y, X)"
            )
    right_size = all(image.shape[-2:] == (config.size, config.size) for image in images)
    if right_size or config.resize == "pillow":
        return torch.stack([_resize_bytes(image, config.size) for image in images], dim=1)
    return torch.stack([_resize_floats(image, config.size) for image in images], dim=1) * 2 - 1


def scaled_pictures(images: Tensor) -> Tensor:
    """Return pictures (N, V, 3, size, size) in [-1, 1], float32, of those of `resized_pictures`."""
    return images.float() / 255 * 2 - 1 if images.dtype == torch.uint8 else images


def _resize_bytes(image: Tensor, size: int) -> Tensor:
    """Resize as openpi does: centered, antialiased, black bars, rounded to bytes."""
    if image.shape[-2:] == (size, size):
        return image
    rows = [_resize_picture(row, size) for row in image.permute(0, 2, 3, 1).cpu().numpy()]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).to(image.device)


def _resize_picture(picture: np.ndarray, size: int) -> np.ndarray:
    height, width = _fitted(picture.shape[0], picture.shape[1], size)
    resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
    framed = np.zeros((size, size, 3), dtype=np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    framed[top : top + height, left : left + width] = np.asarray(resized)
    return framed


def _resize_floats(image: Tensor, size: int) -> Tensor:
    """Resize as lerobot does: centered, not antialiased, black bars, not rounded."""
    scaled = image.float() / 255
    if image.shape[-2:] == (size, size):
        return scaled
    height, width = _fitted(image.shape[-2], image.shape[-1], size)
    scaled = interpolate(scaled, (height, width), mode="bilinear", align_corners=False)
    top, left = (size - height) // 2, (size - width) // 2
    return pad(scaled.clamp(0, 1), (left, size - width - left, top, size - height - top))


def _fitted(height: int, width: int, size: int) -> tuple[int, int]:
    """Return the largest height and width of the same proportions that fit a square."""
    ratio = max(height, width) / size
    return int(height / ratio), int(width / ratio)
