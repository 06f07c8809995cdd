"""Pillow's filter in whole numbers gives the bytes of the installed Pillow."""

from __future__ import annotations

import pytest
import torch

from pitune.policies.preprocessing import pillow_resize
from pitune.policies.preprocessing.pillow_resize import first_axis, resize, resize_on_host

SIZES = [
    (480, 640, 168, 224),
    (640, 480, 224, 168),
    (20, 20, 28, 28),
    (100, 300, 74, 224),
    (300, 90, 60, 41),
    (90, 300, 41, 60),
    (33, 224, 50, 224),
    (1, 7, 5, 3),
]


def noise(height: int, width: int) -> torch.Tensor:
    """Return two pictures of noise, one of all levels and one of black and white."""
    generator = torch.Generator().manual_seed(1)
    grey = torch.randint(256, (1, 3, height, width), generator=generator)
    return torch.cat([grey, (grey > 127) * 255]).to(torch.uint8)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_bytes_are_those_of_pillow(sizes: tuple[int, int, int, int]) -> None:
    height, width, new_height, new_width = sizes
    pictures = noise(height, width)
    assert first_axis(*sizes) is not None
    assert resize(pictures, new_height, new_width).equal(
        resize_on_host(pictures, new_height, new_width)
    )


def test_the_order_of_the_axes_matters() -> None:
    """The control: the other order differs, so a picture of noise finds the right one."""
    pictures = noise(100, 300)
    other = "columns" if first_axis(100, 300, 74, 224) == "rows" else "rows"
    found = pillow_resize._resize(pictures, 74, 224, other)  # type: ignore[arg-type]
    assert not found.equal(resize_on_host(pictures, 74, 224))


def test_another_filter_of_pillow_would_be_used_on_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If a version of Pillow rounds in another way, its own bytes are taken."""
    first_axis.cache_clear()
    monkeypatch.setattr(pillow_resize, "BITS", 4)
    pillow_resize._weights.cache_clear()
    try:
        assert first_axis(20, 30, 28, 42) is None
        pictures = noise(20, 30)
        assert resize(pictures, 28, 42).equal(resize_on_host(pictures, 28, 42))
    finally:
        first_axis.cache_clear()
        pillow_resize._weights.cache_clear()


def test_no_random_number_is_drawn() -> None:
    first_axis.cache_clear()
    state = torch.get_rng_state()
    first_axis(20, 30, 28, 42)
    assert torch.equal(state, torch.get_rng_state())
