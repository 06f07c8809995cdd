"""The Vulkan driver of this machine for SAPIEN, ManiSkill's engine, found out by making a material.

SAPIEN contains a Vulkan loader, but no driver. That of a GPU comes with it. On a CPU it is Mesa's
lavapipe, from version 24.3 on: Debian 12 has 22.3, which SAPIEN rejects.
"""

from __future__ import annotations

import functools
import os

from pitune.envs.rendering.attempt import problem_of

SECONDS = 120.0
"""Longest time for the attempt [s]."""
FOUND = "PITUNE_VULKAN"
"""Environment variable with the driver settings for which one was found, for child processes."""
DRIVER_NEEDED = (
    "SAPIEN finds no usable Vulkan driver; install that of a GPU, or mesa-vulkan-drivers >= 24.3 "
    "(lavapipe, on the CPU; Debian 12 has 22.3, its backports have 25.0), see docs/cameras.md"
)
_SETTINGS = ("VK_ICD_FILENAMES", "VK_DRIVER_FILES")
_PROBE = """
import warnings
warnings.simplefilter("ignore")
import sapien.render
sapien.render.RenderMaterial()
print("drawn", flush=True)
import os
os._exit(0)
"""


def vulkan_problem() -> str | None:
    """Return why SAPIEN cannot draw here, or None if it can.

    It is found out once in a process, and child processes of one that can draw do not repeat it.
    """
    drivers = "; ".join(os.environ.get(name, "") for name in _SETTINGS)
    if os.environ.get(FOUND) == drivers:
        return None
    problem = _search(drivers)
    if problem is None:
        os.environ[FOUND] = drivers
    return problem


@functools.cache
def _search(_: str) -> str | None:
    """Return the problem with some settings of drivers, those of the present environment."""
    return problem_of(_PROBE, SECONDS)
