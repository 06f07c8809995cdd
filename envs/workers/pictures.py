"""Pictures of Gymnasium environments: those of cameras in the observation, and those for people.

The layout and the range of a camera's picture follow from its space.

Letters: N rows, C, Y, X image channels and pixels.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
from einops import rearrange
from gymnasium import spaces

from pitune.envs.rendering.opengl import ADVICE, offscreen
from pitune.envs.workers.surroundings import BreakdownError, user_code

CHANNELS = (1, 2, 3, 4)
"""Numbers of channels by which a picture is recognized among the parts of a state."""
MIN_SIZE = 8
"""Fewest pixels of an edge of a part that is recognized as a picture."""


def looks_like_a_picture(part: spaces.Box) -> bool:
    """Return whether the numbers of a space are pixels rather than a state.

    Bytes in two or more axes are pixels, with or without channels, and so are floats with a last or
    a first axis of channels.

    Example:
        >>> looks_like_a_picture(spaces.Box(0, 255, (84, 84), np.uint8))
        True
        >>> looks_like_a_picture(spaces.Box(0, 255, (4,), np.uint8))
        False
    """
    shape = part.shape
    if part.dtype == np.uint8:
        return len(shape) > 1 and min(sorted(shape)[-2:]) >= MIN_SIZE
    if len(shape) != 3:
        return False
    sizes = [shape[:2]] if shape[2] in CHANNELS else []
    sizes += [shape[1:]] if shape[0] in CHANNELS else []
    return any(min(size) >= MIN_SIZE for size in sizes)


@dataclass(frozen=True)
class PictureReader:
    """Reads the pictures of one camera.

    Example:
        >>> reader = PictureReader.of("gym/x", "image/top", spaces.Box(0, 1, (4, 5, 3)), "wrap it")
        >>> reader.shape
        (3, 4, 5)
        >>> int(reader.read(np.ones((4, 5, 3), np.float32)).max())
        255
    """

    key: str
    space: spaces.Box
    layout: Literal["Y X C", "C Y X"]
    is_float: bool

    @classmethod
    def of(cls, env_id: str, key: str, space: spaces.Space[Any], advice: str) -> PictureReader:
        """Return the reader of a space.

        Raises:
            ValueError: the layout or the range is not certain.
        """
        problem = ""
        if not isinstance(space, spaces.Box) or len(space.shape) != 3:
            problem = "no Box of three axes"
        elif (space.shape[-1] == 3) == (space.shape[0] == 3):
            problem = "not (Y, X, 3) or (3, Y, X)"
        elif space.dtype != np.uint8 and not _is_unit_float(space):
            problem = "neither uint8 nor floats with the bounds 0 and 1"
        if problem or not isinstance(space, spaces.Box):
            raise ValueError(
                f"{env_id}: observation {key!r} is {str(space)[:120]}, {problem}; a picture is "
                f"uint8, or floats from 0 to 1, of shape (Y, X, 3) or (3, Y, X); {advice}"
            )
        layout: Literal["Y X C", "C Y X"] = "Y X C" if space.shape[-1] == 3 else "C Y X"
        return cls(key, space, layout, is_float=space.dtype != np.uint8)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, Y, X)."""
        first, second, third = self.space.shape
        return (third, first, second) if self.layout == "Y X C" else (first, second, third)

    def read(self, value: np.ndarray) -> np.ndarray:
        """Return a copy of one picture (C, Y, X) or of N (N, C, Y, X), uint8.

        Args:
            value: In the layout of the space, with or without N.

        Raises:
            ValueError: the dtype or the range is not that of the space.
            FloatingPointError: a float is not finite.
        """
        pattern = f"... {self.layout} -> ... C Y X"
        if value.dtype == np.uint8 and not self.is_float:
            return rearrange(value, pattern).copy()
        kind = "float" if self.is_float else "integer"
        if (value.dtype.kind == "f") != self.is_float or value.dtype.kind == "b":
            raise ValueError(
                f"observation {self.key!r} is {value.dtype}, but its space promises {kind}s"
            )
        if not np.isfinite(value).all():
            raise FloatingPointError(f"the picture {self.key!r} is not finite")
        low, high = float(value.min()), float(value.max())
        limit = 1.0 if self.is_float else 255
        if low < 0 or high > limit:
            raise ValueError(
                f"observation {self.key!r} has values from {low:g} to {high:g}, but its space "
                f"promises 0 to {limit:g}"
            )
        scaled = np.rint(value * 255.0) if self.is_float else value
        return rearrange(scaled.astype(np.uint8), pattern).copy()


def _is_unit_float(space: spaces.Box) -> bool:
    """Return whether a space holds floats from 0 to 1."""
    is_float = np.dtype(space.dtype).kind == "f"
    return is_float and bool((space.low == 0).all() and (space.high == 1).all())


def picture_of(env: gymnasium.Env, env_id: str) -> np.ndarray:
    """Return a picture (Y, X, 3) uint8 of an environment.

    Raises:
        RuntimeError: it cannot render. The message names the cause.
    """
    try:
        with user_code(), use_offscreen_renderer():
            picture: Any = env.render()
    except BreakdownError as breakdown:
        error = breakdown.__cause__
        if str(error).startswith(f"{env_id} cannot render"):
            raise RuntimeError(str(error)) from error  # the adapter has a better message
        raise RuntimeError(
            f"{env_id} cannot render: {error!r}; if it is drawn by OpenGL, {ADVICE}"
        ) from error
    if not isinstance(picture, np.ndarray):
        raise RuntimeError(
            f"{env_id} cannot render: render() returned {type(picture).__name__} instead of a "
            "picture; make it with render_mode='rgb_array'"
        )
    return picture


def with_pictures(env: gymnasium.Env, raw: Any) -> Any:
    """Return a raw observation with the pictures that an environment draws on request.

    Example:
        >>> class Lazy(gymnasium.Env):
        ...     def draw_pictures(self):
        ...         return {"image/top": np.zeros((8, 8, 3), np.uint8)}
        >>> sorted(with_pictures(Lazy(), {"state": np.zeros(3)}))
        ['image/top', 'state']

    Args:
        env: The environment. One without a method `draw_pictures` returns all its pictures itself.
        raw: Its last observation.
    """
    if not env.has_wrapper_attr("draw_pictures"):
        return raw
    with use_offscreen_renderer():
        return {**raw, **env.get_wrapper_attr("draw_pictures")()}


@contextlib.contextmanager
def use_offscreen_renderer() -> Iterator[None]:
    """Make MuJoCo's renderers, if one starts inside, take the backend that draws on this machine.

    By default Gymnasium's takes GLFW, which fails when it draws. An environment without MuJoCo is
    left alone, and so is one on a machine that cannot draw: its own error says more.
    """
    with contextlib.ExitStack() as stack:
        if "mujoco" in sys.modules:
            with contextlib.suppress(RuntimeError):
                stack.enter_context(offscreen())
        yield
