"""ManiSkill's physics on a machine without a Vulkan driver.

Even without a renderer, ManiSkill's tasks and robots construct SAPIEN render materials, and those
need a Vulkan device. Where there is none they are replaced, in this process, by stand-ins that hold
values and do nothing. States and rewards are not touched; pictures are impossible.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

DRIVER_NEEDED = (
    "SAPIEN finds no Vulkan driver that it can use; ManiSkill needs that of a GPU or of "
    "Mesa >= 24.3 (lavapipe), see docs/simulators.md"
)


class InertMaterial:
    """Stands in for `sapien.render.RenderMaterial`: keeps what it is given, shows nothing."""

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
    """Stands in for `sapien.render.RenderTexture2D`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take a file name or an array and forget it."""


def can_render() -> bool:
    """Return whether SAPIEN finds a device to render on, in this process."""
    import sapien.render

    if sapien.render.RenderMaterial is InertMaterial:
        return False
    try:
        sapien.render.RenderMaterial()
    except RuntimeError:
        return False
    return True


def replace_materials() -> None:
    """Put the stand-ins in the place of SAPIEN's materials, unless something can render."""
    if can_render():
        return
    for module in _modules_with_materials():
        for name, inert in (("RenderMaterial", InertMaterial), ("RenderTexture2D", InertTexture)):
            if hasattr(module, name):
                setattr(module, name, inert)


def _modules_with_materials() -> list[ModuleType]:
    """Return the modules that hold the names: those that imported them keep their own."""
    names = (
        "sapien.render",
        "sapien.pysapien.render",
        "sapien.wrapper.urdf_loader",
        "mani_skill.utils.building._mjcf_loader",
    )
    # `import a.b.c as x` fails for the last one: ManiSkill gives `building` an attribute that
    # hides the module.
    return [importlib.import_module(name) for name in names]
