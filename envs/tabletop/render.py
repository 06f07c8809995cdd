"""Pictures of a tabletop scene, drawn by MuJoCo off screen.

This calls MuJoCo's drawing functions directly. `mujoco.Renderer` chooses its OpenGL backend when
`mujoco` is first imported, from MUJOCO_GL, and its default needs a screen. Here the backend is
found out at the first picture (`pitune.envs.rendering.opengl`), so physics alone needs no OpenGL.

Letters: Y, X image pixels.
"""

from __future__ import annotations

import atexit
import importlib
import weakref
from typing import Any

import mujoco
import numpy as np

from pitune.envs.rendering.opengl import ADVICE, opengl_backend

_open_renderers: weakref.WeakSet[SceneRenderer] = weakref.WeakSet()


class SceneRenderer:
    """Draws scenes of one model at one size.

    Example:
        >>> renderer = SceneRenderer(model, 64, 64, shadows=False)  # doctest: +SKIP
        >>> renderer.picture(state, goal, "front").shape  # doctest: +SKIP
        (64, 64, 3)

    Args:
        model: The scene. Its goal marker, if any, is the site `goal`.
        height: Height of a picture [pixels].
        width: Width of a picture [pixels].
        shadows: Whether to draw shadows. They take most of the time of a small picture on a CPU.

    Raises:
        RuntimeError: no OpenGL backend works on this machine.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int, *, shadows: bool) -> None:
        self.model, self.height, self.width = model, height, width
        self._data = mujoco.MjData(model)
        self._goal_site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, "goal")

        # OpenGL context with a buffer of the picture's size
        self._gl, self._context = _make_contexts(model, height, width)
        mujoco.mjr_resizeOffscreen(width, height, self._context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)

        # scene to draw, and its end
        self._scene = mujoco.MjvScene(model, maxgeom=200)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        if not _open_renderers:
            # Exit handlers run in reverse order, so this one runs before MuJoCo's own. Afterwards
            # EGL is closed, and freeing a context would print a traceback.
            atexit.register(_close_all)
        _open_renderers.add(self)

    def picture(self, state: np.ndarray, goal: np.ndarray, camera: str) -> np.ndarray:
        """Return one picture (Y, X, 3) uint8.

        Args:
            state: MuJoCo's full physics state.
            goal: Position of the goal (3,) [m].
            camera: Name of a camera of the model.
        """
        self._gl.make_current()  # another renderer may be current
        # bodies and goal
        mujoco.mj_setState(self.model, self._data, state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        mujoco.mj_forward(self.model, self._data)
        if self._goal_site >= 0:
            offset = self.model.site_pos[self._goal_site]
            self._data.site_xpos[self._goal_site] = goal + offset

        # scene, seen by the camera
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = self.model.camera(camera).id
        mujoco.mjv_updateScene(
            self.model,
            self._data,
            mujoco.MjvOption(),
            None,
            view,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )

        # pixels
        viewport = mujoco.MjrRect(0, 0, self.width, self.height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        pixels = np.empty((self.height, self.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, viewport, self._context)
        return pixels[::-1].copy()  # OpenGL counts rows from the bottom

    def close(self) -> None:
        """Free the OpenGL context. Closing twice is the same as closing once."""
        if self in _open_renderers:
            _open_renderers.discard(self)
            self._gl.make_current()
            self._context.free()
            self._gl.free()

    def __del__(self) -> None:
        self.close()


def _close_all() -> None:
    """Close all renderers at the exit of the process."""
    for renderer in list(_open_renderers):
        renderer.close()


def _make_contexts(model: mujoco.MjModel, height: int, width: int) -> tuple[Any, mujoco.MjrContext]:
    """Return a MuJoCo `GLContext`, current on this thread, and a drawing context in it."""
    backend = opengl_backend()
    try:
        gl = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
        gl.make_current()
        return gl, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    except Exception as error:  # a missing library raises many kinds of exceptions
        raise RuntimeError(f"cannot render with {backend}: {error}; {ADVICE}") from error
