"""Cameras of lerobot's checkpoints: their pictures, the bars beside them, and the robot's names.

Source: lerobot 0.3 to 0.6, `resize_with_pad` in `policies/pi0/modeling_pi0.py`;
`processor/rename_processor.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pitune.policies.checkpoints.config import LerobotVersion
from pitune.policies.checkpoints.lerobot_files.stats import STATE
from pitune.policies.checkpoints.lerobot_files.steps import Steps
from pitune.policies.preprocessing.images import Bars, PicturesConfig

CAMERA = "observation.images."
_BARS: dict[LerobotVersion | None, Bars] = {
    "0.3": "left_top",
    "0.4": "minus_three",
    "0.5": "black",
    None: "unknown",
}


def pictures_config(
    config: dict[str, Any], version: LerobotVersion | None = "0.5"
) -> PicturesConfig:
    """Return the cameras in the order of the input features. Empty ones are missing.

    Raises:
        ValueError: there is no camera, or pictures are not square and the bars beside them unknown.
    """
    sizes = _camera_features(config, "config.json")
    empty = [name for name in sizes if name.startswith("empty_camera_")]
    oblong = {name: size for name, size in sizes.items() if size[0] != size[1]}
    if version is None and any(name not in empty for name in oblong):
        raise ValueError(
            f"config.json has the cameras {oblong}, whose pictures lerobot 0.3, 0.4 and 0.5 make "
            "square with different bars, and the checkpoint does not determine which trained it; "
            "pass lerobot_version='0.4' or '0.5' (--load.lerobot-version; 0.5 for later ones)"
        )
    return PicturesConfig(
        cameras={name: name for name in sizes if name not in empty},
        missing=tuple(empty),
        size=int((config.get("image_resolution") or (224, 224))[0]),
        resize="torch",
        bars=_BARS[version],
    )


def with_robot_names(pictures: PicturesConfig, before: Steps) -> PicturesConfig:
    """Return the cameras under the robot's names, which lerobot's first step renames.

    Raises:
        ValueError: a camera is renamed away, two get one name, or the state is renamed.
    """
    rename_map = before.config("rename_observations_processor").get("rename_map") or {}
    renamed = {old: new for old, new in dict(rename_map).items() if old != new}
    names = [*renamed, *renamed.values()]
    doubled = [new for new in renamed.values() if list(renamed.values()).count(new) > 1]
    if doubled or STATE in names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{before.file} has rename_map={renamed}, which must rename each camera once and not "
            f"{STATE}; send the state under that name and remove its entry"
        )
    robot_names = {new: old for old, new in renamed.items()}

    def robot_name(camera: str) -> str | None:
        # a camera without the usual prefix is stored under its whole name
        for key in (CAMERA + camera, camera):
            if key in robot_names:
                return robot_names[key].removeprefix(CAMERA)
        return None if CAMERA + camera in renamed or camera in renamed else camera

    cameras = {name: robot_name(name) for name in pictures.cameras}
    lost = sorted(name for name, source in cameras.items() if source is None)
    if lost:
        raise ValueError(
            f"{before.file} has rename_map={renamed}, which renames {lost} and leaves nothing "
            "under these names, although the network has cameras of them; correct it"
        )
    present = {name: str(source) for name, source in cameras.items()}
    filled = {name: str(robot_name(name)) for name in pictures.missing if robot_name(name) != name}
    missing = tuple(name for name in pictures.missing if name not in filled)
    return replace(pictures, cameras=present | filled, missing=missing)


def _camera_features(config: Mapping[str, Any], file: Path | str) -> dict[str, tuple[int, int]]:
    """Return height and width of each camera's pictures, in the network's order [pixels].

    Raises:
        ValueError: there is no camera, or a feature is not one of color pictures.
    """
    features = config.get("input_features") or {}
    cameras = {}
    for key, feature in features.items():
        if not isinstance(feature, Mapping) or "type" not in feature:
            raise ValueError(
                f'{file} has the input feature {key}={feature!r}; it must be {{"type": ..., '
                '"shape": [...]}, take a complete checkpoint'
            )
        if feature["type"] == "VISUAL":
            cameras[key.removeprefix(CAMERA)] = _picture_size(key, feature.get("shape"), file)
    if not cameras:
        raise ValueError(
            f"{file} has no camera among its input_features, {sorted(features)}; lerobot's π0 "
            f'needs one, of type "VISUAL" and named {CAMERA}<camera>'
        )
    return cameras


def _picture_size(key: str, shape: Any, file: Path | str) -> tuple[int, int]:
    sides = [side for side in shape or () if isinstance(side, int) and side > 0]
    if len(sides) != 3 or sides != list(shape) or 3 not in (sides[0], sides[-1]):
        raise ValueError(
            f"{file} has {key} of shape {shape!r}; pictures must have three channels, (3, height, "
            "width)"
        )
    return (sides[1], sides[2]) if sides[0] == 3 else (sides[0], sides[1])
