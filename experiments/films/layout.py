"""Frames of a film: the instruction below the picture, the mark of success, grids and pairs.

Letters: Y, X image pixels.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

from pitune.experiments.films.film import MAX_WIDTH, Film, shrunk

SUCCESS_COLOR = (0, 200, 60)
"""RGB of the border around an episode that has succeeded."""
HELD_SECONDS = 2.0
"""Time for which the last frame is held [s]."""
FONT_SIZE = 13
"""Height of the letters [pixels]."""
MAX_LINES = 2
"""Lines of an instruction. A longer one is cut."""
NARROW = 300
"""Width of a picture below which the words about the outcome may need two lines [pixels]."""
GAP = 8
"""White pixels between the halves of a pair, and of padding to a multiple for the encoder."""

Frames = list[np.ndarray]
"""Pictures (Y, X, 3) uint8 of one size."""


def captioned(film: Film, *, width: int = MAX_WIDTH, title: str = "") -> Frames:
    """Return a film's frames with the instruction and the outcome below the picture.

    A green border marks success (`Film.marks`).

    Args:
        film: The film.
        width: Greatest width of the picture [pixels].
        title: Words before the number of the episode, such as "before training".
    """
    last = len(film.frames) - 1
    return [
        _with_caption(
            shrunk(picture, width),
            film,
            _status(film, number, last, title),
            film.marks[number],
        )
        for number, picture in enumerate(film.frames)
    ]


def held(frames: Frames, fps: float, length: int | None = None) -> Frames:
    """Return frames whose last one is repeated for `HELD_SECONDS`, or up to a length."""
    target = len(frames) + round(HELD_SECONDS * fps) if length is None else length
    return frames + [frames[-1]] * (target - len(frames))


def grid(
    films: Sequence[Film],
    columns: int | None = None,
    *,
    width: int = MAX_WIDTH,
    title: str = "",
) -> Frames:
    """Return the frames of several films beside each other, in rows of `columns`.

    A film that has ended holds its last frame until the longest one has ended. Missing cells are
    white.

    Args:
        films: Of one environment.
        columns: Films in a row. By default the grid is about square.
        width: Greatest width of each picture [pixels].
        title: As in `captioned`.

    Raises:
        ValueError: there is no film, `columns` is below 1, or the films differ in size or rate.
    """
    columns = math.ceil(math.sqrt(len(films))) if columns is None else columns
    if not films or columns < 1:
        raise ValueError(f"a grid of {len(films)} films in columns={columns} needs at least one")
    if len({(film.frames[0].shape, film.fps) for film in films}) > 1:
        raise ValueError(
            "the films of a grid must have one size and one rate of pictures; they have "
            f"{sorted({(*film.frames[0].shape[:2], film.fps) for film in films})}: make a grid of "
            "each environment"
        )
    columns = min(columns, len(films))
    # films of one length, with captions
    tiles = [captioned(film, width=width, title=title) for film in films]
    length = max(map(len, tiles))
    # (films, frames, Y, X, 3), with white films in missing cells
    stack = np.stack([np.stack(held(tile, 1.0, length)) for tile in tiles])
    # cells in rows and columns
    missing = -len(films) % columns
    stack = np.pad(stack, ((0, missing), *[(0, 0)] * 4), constant_values=255)
    return list(rearrange(stack, "(r c) t y x rgb -> t (r y) (c x) rgb", c=columns))


def beside(left: Frames, right: Frames) -> Frames:
    """Return two films of one height beside each other. The shorter one holds its last frame."""
    length = max(len(left), len(right))
    gap = np.full((left[0].shape[0], GAP, 3), 255, np.uint8)
    pairs = zip(held(left, 1.0, length), held(right, 1.0, length), strict=True)
    return [np.concatenate([one, gap, two], axis=1) for one, two in pairs]


def _status(film: Film, number: int, last: int, title: str) -> str:
    """Return the words about the episode: its number, and its outcome as soon as it is known."""
    parts = [title] if title else []
    parts.append(f"episode {film.index}")
    if film.outcome.invalid and number == last:
        parts.append("the simulator broke down")
    elif film.marks[number]:
        parts.append(f"success at step {film.solved_at}")
    elif number == last and film.success is not None:
        parts.append(f"no success in {film.outcome.length} steps")
    else:
        parts.append(f"step {film.steps[number]}")
    return ", ".join(parts)


def _with_caption(picture: np.ndarray, film: Film, status: str, is_marked: bool) -> np.ndarray:
    """Return one frame: the picture, perhaps with a border, and lines of text below it."""
    edge = max(2, picture.shape[0] // 40)
    if is_marked:
        for border in (picture[:edge], picture[-edge:], picture[:, :edge], picture[:, -edge:]):
            border[:] = SUCCESS_COLOR

    # lines that fit into the width
    font: Any = ImageFont.load_default(FONT_SIZE)
    width = picture.shape[1]
    letters = max(8, int(0.95 * width / font.getlength("e")))
    lines = [
        line
        for text in (film.instruction, status)
        for line in textwrap.wrap(text, letters, max_lines=MAX_LINES, placeholder=" ...")
    ]
    num_lines = 2 * MAX_LINES if width < NARROW else MAX_LINES + 1

    # canvas with a strip of one height for every film, so that grids fit
    canvas = Image.new("RGB", (width, picture.shape[0] + num_lines * (FONT_SIZE + 4) + 4), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines[:num_lines]):
        top = picture.shape[0] + 3 + number * (FONT_SIZE + 4)
        draw.text((4, top), line, fill="black", font=font)
    return np.asarray(canvas)
