"""Pictures for the vision tower: resized without distortion, padded, scaled to [-1, 1].

openpi and lerobot resize differently. On a noisy picture the mean difference is 3 of 255 levels, so
the checkpoint stores the filter that it was trained with.
Letters: N rows, V cameras, Y, X image pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from pitune.policies.preprocessing.pillow_resize import resize
from pitune.ranges import PositiveInt, Settings

Bars = Literal["black", "minus_three", "left_top", "unknown"]


@dataclass(frozen=True, kw_only=True)
class PicturesConfig(Settings):
    """The network's pictures and their resizing.

    Example:
        >>> PicturesConfig(cameras={"base_0_rgb": "front"}).size
        224
    """

    cameras: dict[str, str] = field(default_factory=dict)
    """Maps the network's cameras to the observation's cameras."""
    missing: tuple[str, ...] = ()
    """The network's cameras that this robot lacks. The references mask them. Here they are left
    out, which is equivalent and cheaper."""
    order: tuple[str, ...] = ()
    """All cameras of the network, in the order of its prefix. `cameras` are sorted by it. Without
    it, `cameras` stand in that order, followed by the missing ones."""
    size: PositiveInt = 224
    """Height and width of the vision tower's input [pixels]."""
    resize: Literal["pillow", "torch"] = "pillow"
    """Filter: Pillow's bilinear filter on bytes (openpi, antialiased), or torch's bilinear
    interpolation on floats (lerobot, not antialiased)."""
    bars: Bars = "black"
    """Bars beside a picture that is not square: black on both sides (openpi, lerobot from 0.5 on),
    -3 where black is -1 (lerobot 0.4), or black on the left or the top only (lerobot 0.3). With
    "unknown" such a picture is rejected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [*self.cameras, *self.missing]
        unknown = sorted(set(names) - set(self.order)) if self.order else []
        twice = sorted({name for name in names if names.count(name) > 1})
        if unknown or twice:
            problem = f"{unknown} are no cameras of" if unknown else f"{twice} stand twice in"
            raise ValueError(
                f"cameras={self.cameras}, missing={self.missing}: {problem} the network, whose "
                f"cameras are {list(self.network_cameras)}"
            )
        if self.order:
            cameras = {name: self.cameras[name] for name in self.order if name in self.cameras}
            object.__setattr__(self, "cameras", cameras)

    @property
    def network_cameras(self) -> tuple[str, ...]:
        """All cameras of the network, in the order of its prefix."""
        return self.order or (*self.cameras, *self.missing)

    def rewired(self, cameras: Mapping[str, str]) -> PicturesConfig:
        """Return a config with other cameras of the observation. Unnamed ones become missing.

        Args:
            cameras: The observation's camera for each camera of the network.

        Raises:
            ValueError: a camera is not one of the network's.
        """
        known = self.network_cameras
        if unknown := sorted(set(cameras) - set(known)):
            raise ValueError(
                f"cameras={dict(cameras)} names {unknown}, but the network's cameras are "
                f"{list(known)}; name some of them{nearest(unknown, known)}"
            )
        kept = {name: cameras[name] for name in known if name in cameras}
        missing = tuple(name for name in known if name not in cameras)
        return replace(self, cameras=kept, missing=missing, order=known)


def nearest(names: Iterable[str], known: Iterable[str]) -> str:
    """Return a hint with the known name that is nearest to each name, empty without any."""
    known = list(known)
    pairs = [(name, get_close_matches(name, known, 1, cutoff=0.5)) for name in names]
    hints = [f"{match[0]!r} instead of {name!r}" for name, match in pairs if match]
    return f" (did you mean {', '.join(hints)}?)" if hints else ""


def moved_pictures(images: list[Tensor], device: torch.device) -> list[Tensor]:
    """Return the pictures of V cameras (N, 3, Y, X) on a device, in one copy if they are alike.

    Args:
        images: One tensor per camera.
        device: Of the policy.
    """
    alike = len({(image.shape, image.dtype, image.device) for image in images}) == 1
    if images[0].device == device or not alike:
        return [image.to(device) for image in images]
    return list(torch.stack(images).to(device))  # (V, N, 3, Y, X)


def resized_pictures(images: list[Tensor], config: PicturesConfig) -> Tensor:
    """Return the pictures of V cameras at the network's size (N, V, 3, size, size).

    Bytes stay bytes, which takes a quarter of the memory, and `scaled_pictures` scales them later.
    lerobot's resizing gives float32, which is scaled to [-1, 1] here.

    Args:
        images: One tensor (N, 3, Y, X) uint8 per camera, in the network's order.
        config: The cameras, the size and the filter.

    Raises:
        ValueError: a picture is not uint8 with three channels.
    """
    for camera, image in zip(config.cameras.values(), images, strict=True):
        if image.dtype != torch.uint8 or image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(
                f"pictures image/{camera} are {image.dtype} of shape {tuple(image.shape)}; "
                "they must be uint8 (N, 3, Y, X)"
            )
        if min(_fit_size(image.shape[-2], image.shape[-1], config.size)) < 1:
            raise ValueError(
                f"pictures image/{camera} are {tuple(image.shape[-2:])} pixels; their longer "
                f"side must be less than {config.size} times the shorter one"
            )

    # V x (N, 3, Y, X) -> (N, V, 3, size, size), as openpi or as lerobot
    right_size = all(image.shape[-2:] == (config.size, config.size) for image in images)
    if right_size or config.resize == "pillow":
        return torch.stack([_resize_bytes(image, config.size) for image in images], dim=1)
    pictures = [_resize_floats(image, config.size, config.bars) for image in images]
    return torch.stack(pictures, dim=1) * 2 - 1


def scaled_pictures(images: Tensor) -> Tensor:
    """Return the pictures of `resized_pictures` as float32 in [-1, 1] (N, V, 3, size, size)."""
    return images.float() / 255 * 2 - 1 if images.dtype == torch.uint8 else images


def check_shift(pictures: PicturesConfig | None, pixels: int) -> None:
    """Raise ValueError if a policy's pictures cannot be shifted by a number of pixels.

    Args:
        pictures: Settings of the policy's pictures, or None if it has none.
        pixels: Greatest shift.
    """
    if pixels and pictures is None:
        raise ValueError(
            f"picture_shift={pixels} has no use for a policy without pictures; leave it out"
        )
    if pictures is not None and pixels >= pictures.size:
        raise ValueError(
            f"picture_shift={pixels} must be less than the pictures' {pictures.size} pixels; a "
            "few percent of them are usual"
        )


def shift_pictures(images: Tensor, pixels: int) -> Tensor:
    """Return pictures (N, V, 3, Y, X), each moved by a random number of pixels along both axes.

    The pixels at the edge are repeated.

    Args:
        images: Pictures of any type.
        pixels: Greatest shift in each direction.
    """
    num, cameras, _, height, width = images.shape
    shifts = torch.randint(-pixels, pixels + 1, (2, num * cameras, 1), device=images.device)
    rows = (torch.arange(height, device=images.device) + shifts[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + shifts[1]).clamp(0, width - 1)
    flat = rearrange(images, "n v c y x -> (n v) y x c")
    picture = torch.arange(len(flat), device=images.device)[:, None, None]
    # (N * V, Y, 1) and (N * V, 1, X) -> (N * V, Y, X, 3)
    moved = flat[picture, rows[:, :, None], columns[:, None]]
    return rearrange(moved, "(n v) y x c -> n v c y x", v=cameras).contiguous()


def _resize_bytes(image: Tensor, size: int) -> Tensor:
    """Resize pictures (N, 3, Y, X) as openpi: antialiased, with black bars, rounded to bytes.

    Away from the host the pictures stay on their device, and the bytes are the same.
    """
    if image.shape[-2:] == (size, size):
        return image
    if image.device.type != "cpu":
        height, width = _fit_size(image.shape[-2], image.shape[-1], size)
        top, left = (size - height) // 2, (size - width) // 2
        framed = image.new_zeros(*image.shape[:2], size, size)
        framed[..., top : top + height, left : left + width] = resize(image, height, width)
        return framed
    pixels = rearrange(image, "n c y x -> n y x c").cpu().numpy()
    rows = np.stack([_resize_picture(picture, size) for picture in pixels])
    return rearrange(torch.from_numpy(rows), "n y x c -> n c y x")


def _resize_picture(picture: np.ndarray, size: int) -> np.ndarray:
    """Resize one picture (Y, X, 3) uint8 to (size, size, 3), centered."""
    height, width = _fit_size(picture.shape[0], picture.shape[1], size)
    resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
    # black bars on both sides
    framed = np.zeros((size, size, 3), dtype=np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    framed[top : top + height, left : left + width] = np.asarray(resized)
    return framed


def _resize_floats(image: Tensor, size: int, bars: Bars) -> Tensor:
    """Resize pictures (N, 3, Y, X) as lerobot: not antialiased, with bars, not rounded.

    Raises:
        ValueError: the picture needs bars, and the checkpoint does not determine which.
    """
    scaled = image.float() / 255
    if image.shape[-2:] == (size, size):
        return scaled
    height, width = _fit_size(image.shape[-2], image.shape[-1], size)
    if bars == "unknown" and (height, width) != (size, size):
        raise ValueError(
            f"pictures of {tuple(image.shape[-2:])} pixels need bars to become square, and this "
            "checkpoint of lerobot does not determine which; load it with the version that trained "
            "it, lerobot_version='0.3', '0.4' or '0.5' (--load.lerobot-version; 0.5 for later ones)"
        )
    # (N, 3, Y, X) -> (N, 3, height, width) -> (N, 3, size, size)
    scaled = interpolate(scaled, (height, width), mode="bilinear", align_corners=False)
    top, left = (size - height) // 2, (size - width) // 2
    if bars == "left_top":
        top, left = size - height, size - width
    value = -1.0 if bars == "minus_three" else 0.0
    sides = (left, size - width - left, top, size - height - top)
    return pad(scaled.clamp(0, 1), sides, value=value)


def _fit_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Return the largest height and width with the same aspect ratio that fit a square."""
    ratio = max(height, width) / size
    return int(height / ratio), int(width / ratio)
