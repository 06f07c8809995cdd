"""Pictures of a LIBERO scene, drawn by MuJoCo off screen with the settings of robosuite.

robosuite draws a picture in the middle of a step, whether it is read or not. Here the state at this
moment is kept, and a picture of it is drawn when it is read. Its bytes are those of robosuite.

Letters: Y, X image pixels.
"""

from __future__ import annotations

import importlib
from typing import Any

import mujoco
import numpy as np

from pitune.envs.rendering.opengl import ADVICE, opengl_backend

COLLISION_GROUP, VISUAL_GROUP = 0, 1
"""Groups of the shapes that collide and of those that are drawn."""
DRAWN = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat"),
    *("site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)
"""Arrays of the simulator's data that a picture depends on."""
MAX_SHAPES = 1000
"""Most shapes in a scene, as in robosuite."""


class ScenePictures:
    """Draws the cameras of one scene.

    Example:
        >>> pictures = ScenePictures(model, size=256)  # doctest: +SKIP
        >>> pictures.keep(data)  # doctest: +SKIP
        >>> pictures.draw("agentview").shape  # doctest: +SKIP
        (256, 256, 3)

    Args:
        model: The scene.
        size: Height and width [pixels].
    """

    def __init__(self, model: mujoco.MjModel, size: int) -> None:
        self._model, self._size = model, size
        self._data = mujoco.MjData(model)
        self._site_rgba = model.site_rgba.copy()
        self._options = mujoco.MjvOption()
        self._options.geomgroup[COLLISION_GROUP] = 0
        self._options.geomgroup[VISUAL_GROUP] = 1
        self._renderer: tuple[Any, Any, Any] | None = None

    def keep(self, data: mujoco.MjData) -> None:
        """Keep a copy of the present state of the scene for later pictures."""
        for name in DRAWN:
            getattr(self._data, name)[:] = getattr(data, name)
        self._site_rgba[:] = self._model.site_rgba  # the glow of a stove

    def draw(self, camera: str) -> np.ndarray:
        """Return a picture (Y, X, 3) uint8 of the state that was kept, its rows from the bottom.

        Raises:
            RuntimeError: no OpenGL backend works on this machine.
        """
        gl, context, scene = self._open()
        gl.make_current()  # another renderer may be current
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = self._model.camera(camera).id
        now = self._model.site_rgba.copy()
        self._model.site_rgba[:] = self._site_rgba
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._options,
            None,
            view,
            mujoco.mjtCatBit.mjCAT_ALL,
            scene,
        )
        self._model.site_rgba[:] = now
        viewport = mujoco.MjrRect(0, 0, self._size, self._size)
        mujoco.mjr_render(viewport, scene, context)
        pixels = np.empty((self._size, self._size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, viewport, context)
        return pixels

    def close(self) -> None:
        """Free the OpenGL context. Closing twice is the same as closing once."""
        renderer, self._renderer = self._renderer, None
        if renderer is not None:
            gl, context, _ = renderer
            gl.make_current()
            context.free()
            gl.free()

    def _open(self) -> tuple[Any, Any, Any]:
        """Return the OpenGL context, the drawing context in it and the scene."""
        if self._renderer is None:
            gl, context = _open_contexts(self._model, self._size)
            mujoco.mjr_resizeOffscreen(self._size, self._size, context)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
            self._renderer = gl, context, mujoco.MjvScene(self._model, maxgeom=MAX_SHAPES)
        return self._renderer


def _open_contexts(model: mujoco.MjModel, size: int) -> tuple[Any, Any]:
    backend = opengl_backend()
    try:
        gl = importlib.import_module(f"mujoco.{backend}").GLContext(size, size)
        gl.make_current()
        return gl, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
    except Exception as error:
        raise RuntimeError(f"cannot render with {backend}: {error}; {ADVICE}") from error
