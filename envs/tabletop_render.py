"""Pictures of a tabletop scene, drawn by MuJoCo off screen.

This talks to MuJoCo's drawing calls directly: `mujoco.Renderer` picks its OpenGL backend when
`mujoco` is first imported, from MUJOCO_GL, and by default one that needs a screen. Here the
backend is picked when the first picture is asked for, so physics alone needs no OpenGL at all.
"""

from __future__ import annotations

import ctypes.util
import functools
import importlib
import os
import platform
import subprocess
import sys
from typing import Any

import mujoco
import numpy as np

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

    Raises:
        RuntimeError: no OpenGL backend works on this machine.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int) -> None:
        self.model, self.height, self.width = model, height, width
        self.data = mujoco.MjData(model)
        self.goal_site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, "goal")
        self._gl = _make_gl_context(width, height)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_resizeOffscreen(width, height, self._context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=200)

    def picture(self, state: np.ndarray, goal: np.ndarray, camera: str) -> np.ndarray:
        """Return one picture (Y, X, 3) uint8.

        Args:
            state: MuJoCo's full physics state.
            goal: Where the goal's marker stands (3,) [m].
            camera: Name of a camera of the model.
        """
        self._gl.make_current()  # another renderer of this process may have been at work
        mujoco.mj_setState(self.model, self.data, state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        mujoco.mj_forward(self.model, self.data)
        if self.goal_site >= 0:
            self.data.site_xpos[self.goal_site] = goal
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = self.model.camera(camera).id
        mujoco.mjv_updateScene(
            self.model,
            self.data,
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
        """Free the OpenGL context."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()


def _make_gl_context(width: int, height: int) -> Any:
    """Return a working MuJoCo `GLContext`, current on this thread."""
    backend = _backend()
    try:
        context = importlib.import_module(backend).GLContext(width, height)
        context.make_current()
    except Exception as error:  # PyOpenGL answers a missing library with nearly any exception
        raise RuntimeError(f"cannot render with {backend}: {error}; {_ADVICE}") from error
    return context


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
