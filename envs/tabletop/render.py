"""Pictures of a tabletop scene, drawn by MuJoCo off screen.

This talks to MuJoCo's drawing calls directly: `mujoco.Renderer` picks its OpenGL backend when
`mujoco` is first imported, from MUJOCO_GL, and by default one that needs a screen. Here the
backend is picked when the first picture is asked for, so physics alone needs no OpenGL at all.
"""

from __future__ import annotations

import atexit
import ctypes.util
import functools
import importlib
import os
import platform
import subprocess
import sys
import weakref
from typing import Any

import mujoco
import numpy as np

_open_renderers: weakref.WeakSet[SceneRenderer] = weakref.WeakSet()

_PROBE = "import mujoco.egl; mujoco.egl.GLContext(8, 8).make_current()"
_ADVICE = (
    "on Debian or Ubuntu install one of the packages libegl1 (EGL, uses a GPU where there is one) "
    "or libosmesa6 (OSMesa, CPU only); MUJOCO_GL=egl or MUJOCO_GL=osmesa chooses between them"
)


class SceneRenderer:
    """Draws scenes of one model at one size.

    Args:
        model: The scene; it names its goal marker, if any, `goal`.
        height: Of a picture [pixels].
        width: Of a picture [pixels].
        shadows: Whether to draw them. They make up most of the cost of a small picture on a CPU.

    Raises:
        RuntimeError: no OpenGL backend works on this machine.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int, *, shadows: bool) -> None:
        self.model, self.height, self.width = model, height, width
        self._data = mujoco.MjData(model)
        self._goal_site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, "goal")
        self._gl, self._context = _make_contexts(model, height, width)
        mujoco.mjr_resizeOffscreen(width, height, self._context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=200)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        if not _open_renderers:
            # Registered after MuJoCo's own exit handler, so run before it: once that has closed
            # EGL, freeing a context prints a traceback.
            atexit.register(_close_all)
        _open_renderers.add(self)

    def picture(self, state: np.ndarray, goal: np.ndarray, camera: str) -> np.ndarray:
        """Return one picture (Y, X, 3) uint8.

        Args:
            state: MuJoCo's full physics state.
            goal: Where the goal is (3,) [m].
            camera: Name of a camera of the model.
        """
        self._gl.make_current()  # another renderer of this process may have been at work
        mujoco.mj_setState(self.model, self._data, state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        mujoco.mj_forward(self.model, self._data)
        if self._goal_site >= 0:
            offset = self.model.site_pos[self._goal_site]
            self._data.site_xpos[self._goal_site] = goal + offset
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
        viewport = mujoco.MjrRect(0, 0, self.width, self.height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        pixels = np.empty((self.height, self.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, viewport, self._context)
        return pixels[::-1].copy()  # OpenGL counts rows from the bottom

    def close(self) -> None:
        """Free the OpenGL context; more than one call does no harm."""
        if self in _open_renderers:
            _open_renderers.discard(self)
            self._gl.make_current()
            self._context.free()
            self._gl.free()

    def __del__(self) -> None:
        self.close()


def _close_all() -> None:
    for renderer in list(_open_renderers):
        renderer.close()


def _make_contexts(model: mujoco.MjModel, height: int, width: int) -> tuple[Any, mujoco.MjrContext]:
    """Return a MuJoCo `GLContext`, current on this thread, and a drawing context in it."""
    backend = _backend()
    try:
        gl = importlib.import_module(backend).GLContext(width, height)
        gl.make_current()
        return gl, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    except Exception as error:  # a missing library or screen shows as nearly any exception
        raise RuntimeError(f"cannot render with {backend}: {error}; {_ADVICE}") from error


@functools.cache
def _backend() -> str:
    """Return the module of MuJoCo that brings the OpenGL context for this process.

    PyOpenGL binds to one backend for the life of a process, so a failed attempt cannot be
    followed by another: where two libraries are installed, EGL is tried in a process of its own.
    """
    if platform.system() != "Linux" or os.environ.get("MUJOCO_GL"):
        return "mujoco.gl_context"
    chosen = os.environ.get("PYOPENGL_PLATFORM", "").lower()
    if chosen in ("egl", "osmesa"):  # another package of this process has bound PyOpenGL already
        return f"mujoco.{chosen}"
    if not ctypes.util.find_library("OSMesa"):
        return "mujoco.egl"
    if not ctypes.util.find_library("EGL"):
        return "mujoco.osmesa"
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, check=False)
    return "mujoco.osmesa" if probe.returncode else "mujoco.egl"
