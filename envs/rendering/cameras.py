"""Names of cameras."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_cameras(env_id: str, cameras: Iterable[str], known: Iterable[str]) -> None:
    """Check that an environment has all cameras, each requested once.

    Example:
        >>> check_cameras("mujoco/PickCube", ["frnt"], ["front", "wrist"])
        Traceback (most recent call last):
            ...
        ValueError: cameras=['frnt'] do not exist in mujoco/PickCube; it has ['front', 'wrist'] \
(did you mean 'front' instead of 'frnt'?)

    Args:
        env_id: The environment, for the message.
        cameras: Requested names.
        known: Names that it has.

    Raises:
        ValueError: a name is unknown or is there twice.
    """
    cameras, known = list(cameras), sorted(known)
    unknown = [camera for camera in cameras if camera not in known]
    if unknown:
        pairs = [(name, difflib.get_close_matches(name, known, 1, cutoff=0.5)) for name in unknown]
        hints = [f"{match[0]!r} instead of {name!r}" for name, match in pairs if match]
        hint = f" (did you mean {', '.join(hints)}?)" if hints else ""
        raise ValueError(f"cameras={unknown} do not exist in {env_id}; it has {known}{hint}")
    if len(set(cameras)) < len(cameras):
        raise ValueError(f"cameras={cameras} of {env_id} has a camera twice; name each once")
