"""Configs with changed fields, wherever in their nested blocks the fields are."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from pitune.rl import Algorithm

Config = TypeVar("Config")


def changed(config: Config, **changes: Any) -> Config:
    """Return a config in which fields of it or of its blocks have new values, by their names.

    Raises:
        TypeError: no field has one of the names.
    """
    result, used = _changed(config, changes)
    if used != changes.keys():
        raise TypeError(f"{type(config).__name__} has no fields {sorted(changes.keys() - used)}")
    return result


def _changed(config: Any, changes: dict[str, Any]) -> tuple[Any, set[str]]:
    values: dict[str, Any] = {}
    used: set[str] = set()
    for entry in fields(config):
        value = getattr(config, entry.name)
        if entry.name in changes:
            values[entry.name] = changes[entry.name]
            used.add(entry.name)
        elif is_dataclass(value):
            values[entry.name], inner = _changed(value, changes)
            used |= inner
    return replace(config, **values), used


def stand_still(algorithm: Algorithm[Any]) -> None:
    """Set every learning rate to 0, which no config allows."""
    for optimizer in algorithm.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = 0.0
