"""The declaration of one key of rollouts, batches and replay rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Place = Literal["rollout", "next", "batch", "replay", "sample", "cloning"]


@dataclass(frozen=True, kw_only=True)
class Key:
    """One declared entry. A name with a dot is an entry of a nested one.

    Example:
        >>> declare("time", "1", "envs.chunk_env", "", "rollout").shape
        '1'
    """

    meaning: str
    """One line."""
    shape: str
    """Shape after the batch dimensions, in letters, separated by commas, `scalar`, or `*` for a
    nested entry. Where a name has two shapes, they are joined by ` or `."""
    writer: str
    """Module that writes it, below `pitune`."""
    readers: tuple[str, ...]
    """Modules that read it."""
    places: tuple[Place, ...]
    """Tables that may hold it. A replay row and a sample hold some of them under `obs` and `next`
    too."""
    unit: str = "-"
    """Unit of its numbers."""


def declare(
    meaning: str, shape: str, writer: str, readers: str, places: str, unit: str = "-"
) -> Key:
    """Return a declaration. Several readers and places are separated by blanks."""
    words: tuple[Place, ...] = tuple(places.split())  # type: ignore[arg-type]
    return Key(
        meaning=meaning,
        shape=shape,
        writer=writer,
        readers=tuple(readers.split()),
        places=words,
        unit=unit,
    )
