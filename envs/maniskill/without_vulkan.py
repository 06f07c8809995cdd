"""ManiSkill's physics on a machine without a Vulkan driver.

Even without a renderer, ManiSkill's tasks and robots construct SAPIEN render materials, which need
a Vulkan device. Where there is none, this process replaces them with classes that store values and
do nothing else. States and rewards do not change, and pictures are impossible.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from pitune.envs.rendering.vulkan import vulkan_problem


class InertMaterial:
    """Replaces `sapien.render.RenderMaterial`: stores its values and draws nothing.

    Example:
        >>> InertMaterial(roughness=0.5).roughness
        0.5
    """

    base_color = (1.0, 1.0, 1.0, 1.0)
    emission = (0.0, 0.0, 0.0, 0.0)
    roughness = 1.0
    metallic = 0.0
    specular = 0.5
    transmission = 0.0
    ior = 1.45
    base_color_texture = None
    diffuse_texture = None

    def __init__(self, *_: Any, **values: Any) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("set_", "get_")):
            return lambda *_, **__: None
        raise AttributeError(name)


class InertTexture:
    """Replaces `sapien.render.RenderTexture2D`.

    Example:
        >>> isinstance(InertTexture("wood.png", srgb=True), InertTexture)
        True
    """

    def __init__(self, *_: Any, **__: Any) -> None:
        """Accept a file name or an array, and ignore it."""


def can_render() -> bool:
    """Return whether SAPIEN can render in this process."""
    import sapien.render

    return sapien.render.RenderMaterial is not InertMaterial and vulkan_problem() is None


def replace_materials() -> None:
    """Replace SAPIEN's materials, unless it can render."""
    if can_render():
        return
    for module in _modules_with_materials():
        for name, inert in (("RenderMaterial", InertMaterial), ("RenderTexture2D", InertTexture)):
            if hasattr(module, name):
                setattr(module, name, inert)


def _modules_with_materials() -> list[ModuleType]:
    """Return the modules with the classes' names, including those that imported them."""
    names = (
        "sapien.render",
        "sapien.pysapien.render",
        "sapien.wrapper.urdf_loader",
        "mani_skill.utils.building._mjcf_loader",
    )
    # `import a.b.c as x` fails for the last one, because `building` has an attribute of the
    # module's name.
    return [importlib.import_module(name) for name in names]
