"""Films as files: MP4, and GIF for a README.

Letters: Y, X image pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pitune.experiments.films.film import MAX_WIDTH, Film
from pitune.experiments.films.layout import HELD_SECONDS, Frames, beside, captioned, grid, held

MAX_BYTES = 1_500_000
"""Size of a GIF, for a README."""
QUALITIES = ((1.0, 64, 64), (0.9, 48, 64), (0.8, 36, 48), (0.7, 28, 32), (0.6, 20, 16), (0.4, 8, 8))
"""Scale, number of frames and of colors of a GIF, from the best to the smallest."""
BLOCK = 8
"""Multiple of pixels to which frames are padded, because encoders need whole blocks."""


def save_films(films: Sequence[Film], folder: Path, *, title: str = "") -> list[Path]:
    """Write each film into a file of its own, and return the files.

    Args:
        films: The films.
        folder: Made if it does not exist. The names hold the episode and its outcome.
        title: Words before the number of the episode.
    """
    files = []
    for film in films:
        outcome = {True: "_success", False: "_failure", None: ""}[film.success]
        name = f"episode_{film.index:04}{'_broken' if film.outcome.invalid else outcome}.mp4"
        files.append(write(captioned(film, title=title), film.fps, folder / name))
    return files


def save_grid(
    films: Sequence[Film],
    file: Path,
    columns: int | None = None,
    *,
    width: int = MAX_WIDTH,
    title: str = "",
) -> Path:
    """Write films beside each other into one file, .mp4 or .gif by its suffix. See `layout.grid`.

    Raises:
        ValueError: the films do not fit together, or the suffix is another one.
    """
    return write(grid(films, columns, width=width, title=title), films[0].fps, file)


def save_pairs(
    before: Sequence[Film],
    after: Sequence[Film],
    file: Path,
    *,
    titles: tuple[str, str] = ("before", "after"),
) -> Path:
    """Write films of two policies from the same starts side by side, one pair below the other.

    Args:
        before: Films of the first policy.
        after: Films of the second policy, of the same episodes in the same order.
        file: .mp4 or .gif.
        titles: Words before the number of the episode.

    Raises:
        ValueError: the starts differ, or the suffix is another one.
    """
    starts = [[(film.index, film.seed) for film in films] for films in (before, after)]
    if starts[0] != starts[1]:
        raise ValueError(
            f"before and after must show the same starts; they show (episode, seed) {starts[0]} "
            f"and {starts[1]}; film both with the same indices, num_episodes and seed"
        )
    left, right = (
        grid(films, 1, title=title) for films, title in zip((before, after), titles, strict=True)
    )
    return write(beside(left, right), before[0].fps, file)


def write(frames: Frames, fps: float, file: Path) -> Path:
    """Write frames whole or not at all, and return the file. The last frame is held.

    Args:
        frames: Pictures (Y, X, 3) uint8 of one size.
        fps: Pictures per second.
        file: .mp4, or .gif of at most `MAX_BYTES`.

    Raises:
        ValueError: the suffix is another one.
    """
    if file.suffix not in (".mp4", ".gif"):
        raise ValueError(f"file={str(file)!r} must end in .mp4 or .gif")
    file.parent.mkdir(parents=True, exist_ok=True)
    # an absolute path, because a colon in a relative one would be a protocol for ffmpeg
    temporary = file.absolute().with_name(f"tmp_{file.name}")
    if file.suffix == ".gif":
        temporary.write_bytes(small_gif(frames, fps))
    else:
        import imageio

        # a film whose end is cut off at once is hard to judge
        padded = [_padded(frame) for frame in frames]
        imageio.mimwrite(temporary, held(padded, fps), fps=fps, macro_block_size=BLOCK)
    temporary.rename(file.absolute())
    return file


def read_mp4(file: Path) -> tuple[Frames, float]:
    """Return the frames of a film and their rate."""
    import imageio

    frames = list(imageio.mimread(file.absolute(), memtest=False))
    return frames, float(imageio.get_reader(file.absolute()).get_meta_data()["fps"])


def small_gif(frames: Frames, fps: float, max_bytes: int = MAX_BYTES) -> bytes:
    """Return an animation of the best quality whose size is at most `max_bytes`, or the smallest.

    Args:
        frames: Pictures (Y, X, 3) uint8 of one size.
        fps: Pictures per second.
        max_bytes: Greatest size.
    """
    data = b""
    for scale, num_frames, colors in QUALITIES:
        data = _gif(frames, fps, scale, num_frames, colors)
        if len(data) <= max_bytes:
            break
    return data


def _gif(frames: Frames, fps: float, scale: float, num_frames: int, colors: int) -> bytes:
    """Return an animation in real time, of equally spaced frames."""
    chosen = np.linspace(0, len(frames) - 1, min(num_frames, len(frames))).round().astype(int)
    height, width = (math.ceil(scale * edge) for edge in frames[0].shape[:2])
    images: list[Any] = [
        Image.fromarray(frames[index])
        .resize((width, height))
        .quantize(colors, dither=Image.Dither.NONE)
        for index in np.unique(chosen)
    ]
    # real time, and a while to look at the end
    duration = [round(1000 * len(frames) / fps / len(images))] * (len(images) - 1)
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=images[1:],
        duration=[*duration, round(1000 * HELD_SECONDS)],
        loop=0,
    )
    return buffer.getvalue()


def _padded(frame: np.ndarray) -> np.ndarray:
    """Return a frame whose height and width are multiples of `BLOCK`, padded with white."""
    height, width = frame.shape[:2]
    pads = ((0, -height % BLOCK), (0, -width % BLOCK), (0, 0))
    return np.pad(frame, pads, constant_values=255)
