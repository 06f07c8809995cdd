"""Pictures of a Meta-World scene through its cameras.

Letters: Y, X image pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")
"""Cameras of every task."""
UPSIDE_DOWN = "corner"
"""First letters of the cameras that are mounted upside down. Their pictures are turned by 180°."""


class ScenePictures:
    """Draws one simulator, through any camera and at any size.

    Gymnasium's own renderer does not make its OpenGL context the current one, so of two simulators
    in one process it would draw both with the meshes of the one that was drawn first.

    Example:
        >>> pictures = ScenePictures(sawyer)  # doctest: +SKIP
        >>> pictures.draw("corner2", 64).shape  # doctest: +SKIP
        (64, 64, 3)

    Args:
        sawyer: Meta-World's environment.
    """

    def __init__(self, sawyer: Any) -> None:
        self._sawyer = sawyer
        self._viewers: dict[int, Any] = {}

    def draw(self, camera: str, size: int) -> np.ndarray:
        """Return a picture (Y, X, 3) uint8 with Y = X = `size` [pixels]."""
        from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer

        model, data = self._sawyer.model, self._sawyer.data
        if size not in self._viewers:
            self._viewers[size] = OffScreenViewer(model, data, size, size)
        viewer = self._viewers[size]
        # another simulator of this process may have drawn last
        viewer.make_context_current()
        picture = viewer.render("rgb_array", camera_id=model.camera(camera).id)
        turned = picture[::-1, ::-1] if camera.startswith(UPSIDE_DOWN) else picture
        return np.ascontiguousarray(turned)

    def close(self) -> None:
        """Free the OpenGL contexts."""
        viewers, self._viewers = self._viewers, {}
        for viewer in viewers.values():
            viewer.make_context_current()
            viewer.close()
