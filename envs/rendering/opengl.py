"""The OpenGL backend of this machine for MuJoCo, found out by drawing a picture.

MuJoCo draws with EGL (a GPU where there is one) or OSMesa (the CPU), and `import mujoco` binds to
the one that MUJOCO_GL names, by default to GLFW, which needs a screen. PyOpenGL binds to one for
the life of a process, so there is no second attempt in it, and a broken driver may even crash. So
each backend draws a picture in a process of its own first.

A MUJOCO_GL that is set is honored, or refused by name where it cannot draw. Otherwise EGL is
preferred and OSMesa is used with a warning, because it has no GPU.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import logging
import os
import platform
import sys
from collections.abc import Iterator

from pitune.envs.rendering.attempt import problem_of

logger = logging.getLogger(__name__)

PACKAGES = {"egl": "libegl1", "osmesa": "libosmesa6", "glfw": "libglfw3"}
"""Debian and Ubuntu package of each backend."""
SWITCHED_OFF = ("disable", "disabled", "off", "false", "0")
"""Values of MUJOCO_GL without any drawing."""
DEFAULTS = ("", "enable", "enabled", "on", "true", "1")
"""Values of MUJOCO_GL that name no backend."""
FOUND = "PITUNE_OPENGL"
"""Environment variable with MUJOCO_GL and the backend that was found, for child processes."""
SECONDS = 60.0
"""Longest time for one picture [s]."""
_SETTINGS = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
ADVICE = (
    "on Debian or Ubuntu install libegl1 (EGL, uses a GPU where there is one) or libosmesa6 "
    "(OSMesa, CPU only)"
)
_PROBE = """
import mujoco
from mujoco.BACKEND import GLContext
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><camera name='c' pos='0 0 2'/>"
    "<geom size='0.5' rgba='1 0 0 1'/></worldbody></mujoco>"
)
gl = GLContext(16, 16)
gl.make_current()
context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
data, scene, view = mujoco.MjData(model), mujoco.MjvScene(model, 10), mujoco.MjvCamera()
view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
mujoco.mj_forward(model, data)
mujoco.mjv_updateScene(
    model, data, mujoco.MjvOption(), None, view, mujoco.mjtCatBit.mjCAT_ALL, scene
)
import numpy
pixels, area = numpy.zeros((16, 16, 3), numpy.uint8), mujoco.MjrRect(0, 0, 16, 16)
mujoco.mjr_render(area, scene, context)
mujoco.mjr_readPixels(pixels, None, area, context)
if pixels[8, 8, 0] <= pixels[8, 8, 1]:
    raise SystemExit("the picture is empty")
print("drawn", flush=True)
import os
os._exit(0)  # MuJoCo's own end of EGL prints a traceback
"""


def opengl_backend() -> str:
    """Return the backend that draws on this machine: `egl`, `osmesa`, or `glfw` with a screen.

    It is found out once in a process, and its child processes do not repeat the search.

    Raises:
        RuntimeError: none draws. The message names the causes and the Debian packages.
    """
    if platform.system() != "Linux":
        return "gl_context"  # MuJoCo's module for the backend of the system
    chosen, bound = (os.environ.get(name, "").lower().strip() for name in _SETTINGS)
    # the answer of this process or of its parent, for the same setting
    before, _, known = os.environ.get(FOUND, "").partition("=")
    if known and chosen in (before, known) and bound in ("", known):
        return known
    backend, problem = _search(chosen, bound)
    if backend is None:
        raise RuntimeError(f"cannot render: {problem}")
    os.environ[FOUND] = f"{chosen}={backend}"
    return backend


def try_backend(backend: str) -> str | None:
    """Return why a backend cannot draw here, or None if it can.

    Example:
        >>> try_backend("no_such_backend")
        "ModuleNotFoundError: No module named 'mujoco.no_such_backend'"
    """
    settings = {"MUJOCO_GL": backend if backend in PACKAGES else ""}
    return problem_of(_PROBE.replace("BACKEND", backend), SECONDS, settings)


@contextlib.contextmanager
def offscreen() -> Iterator[None]:
    """Make MuJoCo's users that start to draw inside take the backend that works.

    Gymnasium and robosuite look MUJOCO_GL up when they begin to draw. The setting is undone
    afterwards, because other MuJoCo code of this process may have a setting of its own.

    Example:
        >>> with offscreen():
        ...     print(os.environ["MUJOCO_GL"] in ("egl", "osmesa"))  # doctest: +SKIP
        True

    Raises:
        RuntimeError: no backend draws.
    """
    before = os.environ.get("MUJOCO_GL")
    if platform.system() == "Linux":
        os.environ["MUJOCO_GL"] = opengl_backend()
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("MUJOCO_GL", None)
        else:
            os.environ["MUJOCO_GL"] = before


def bind_mujoco() -> None:
    """Make `mujoco.Renderer` draw with the backend that works, from now on in this process.

    Also where `mujoco` has been imported already, and has bound it to GLFW.

    Raises:
        RuntimeError: no backend draws.
    """
    if platform.system() != "Linux":
        return
    backend = os.environ["MUJOCO_GL"] = opengl_backend()
    if "mujoco.gl_context" in sys.modules:
        module = importlib.import_module(f"mujoco.{backend}")
        sys.modules["mujoco.gl_context"].GLContext = module.GLContext  # type: ignore[attr-defined]


@functools.cache
def _search(chosen: str, bound: str) -> tuple[str | None, str]:
    """Return the backend for MUJOCO_GL and PYOPENGL_PLATFORM, or None with the reason."""
    if chosen in SWITCHED_OFF:
        return None, f"MUJOCO_GL={chosen} switches it off; unset it"
    if chosen not in DEFAULTS:
        return _named(chosen)
    if bound in ("egl", "osmesa"):  # another package has bound PyOpenGL already
        problem = try_backend(bound)
        found = None if problem else bound
        return found, f"PYOPENGL_PLATFORM={bound} is set, and {problem}; unset it, or {ADVICE}"

    # EGL, then OSMesa
    problems: dict[str, str] = {}
    for backend in ("egl", "osmesa"):
        problem = try_backend(backend)
        if problem is None:
            if problems:
                logger.warning(
                    "MuJoCo draws with OSMesa, on the CPU, because EGL does not: %s; install "
                    "libegl1 for EGL, or set MUJOCO_GL=osmesa to choose OSMesa",
                    problems["egl"],
                )
            return backend, ""
        problems[backend] = problem
    causes = ", ".join(f"{backend}: {problem}" for backend, problem in problems.items())
    return None, f"neither EGL nor OSMesa draws a picture ({causes}); {ADVICE}"


def _named(chosen: str) -> tuple[str | None, str]:
    """Return the backend that MUJOCO_GL names, or None with the reason."""
    backend = {"glx": "glfw"}.get(chosen, chosen)
    if backend not in PACKAGES:
        near = difflib.get_close_matches(chosen, PACKAGES, 1, cutoff=0.3)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return None, f"MUJOCO_GL={chosen!r} is no backend{hint}; valid: {sorted(PACKAGES)}"
    problem = try_backend(backend)
    if problem is None:
        return backend, ""
    needs = "it needs a screen, " if backend == "glfw" else ""
    return None, (
        f"MUJOCO_GL={chosen} is set, but {backend} does not draw: {problem}; {needs}install "
        f"{PACKAGES[backend]}, or unset MUJOCO_GL to search for another backend"
    )
