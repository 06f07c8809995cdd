"""Settings: configs whose fields are checked against their declared types and ranges.

    @dataclass(frozen=True, kw_only=True)
    class MyConfig(Settings):
        discount: Annotated[float, Range(low=0, low_open=True, high=1)] = 0.99
        num_epochs: PositiveInt = 4

A range stands beside its field. It is checked whenever a config is made, by the command line or in
Python, and `--help` shows it.
"""

from __future__ import annotations

import inspect
import math
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


class Settings:
    """Base class of configs. A subclass is a frozen, keyword-only dataclass.

    A subclass with a `__post_init__` of its own calls `super().__post_init__()` first. Equivalent
    values are replaced: a numpy number by Python's, a list by a tuple, the text of a path by a
    `Path`.

    Raises:
        ValueError: a field has another type than declared, or lies outside of its range.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class ShakeConfig(Settings):
        ...     num_shakes: PositiveInt = 3
        >>> ShakeConfig(num_shakes=0)
        Traceback (most recent call last):
        ValueError: num_shakes=0 must be at least 1
    """

    def __post_init__(self) -> None:
        for name, hint in declared_types(type(self)).items():
            value = getattr(self, name)
            if _is_unset(value):
                continue
            usual = _usual(value, hint)
            if usual is not value:
                object.__setattr__(self, name, usual)
            fault = fault_of(usual, hint)
            if fault is not None:
                raise ValueError(f"{name}{fault}")


@dataclass(frozen=True, kw_only=True)
class Range:
    """The valid numbers of a setting. nan is never one of them.

    Example:
        >>> Range(low=0, low_open=True, high=1).text()
        'above 0 and at most 1'
    """

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    """Whether `low` itself is invalid."""
    high_open: bool = False
    """Whether `high` itself is invalid."""
    infinite: bool = False
    """Whether infinity is valid, as the absence of a limit."""

    def text(self) -> str:
        """Return the range in words."""
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"{'above' if self.low_open else 'at least'} {_shown(self.low)}")
        if self.high < math.inf:
            bounds.append(f"{'below' if self.high_open else 'at most'} {_shown(self.high)}")
        return " and ".join(bounds) or "a finite number"

    def fault(self, value: float) -> str | None:
        """Return how a message about an invalid number ends, or None for a valid number."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        if not (above and below):
            return f"={value} must be {self.text()}"
        if math.isinf(value) and not self.infinite:
            finite = "" if self.low == -math.inf else " and finite"
            return f"={value} must be {self.text()}{finite}"
        return None


@dataclass(frozen=True)
class Device:
    """A device of PyTorch that this machine has.

    Example:
        >>> Device().fault("gpu").partition(";")[0]
        "='gpu' is no device"
    """

    def text(self) -> str:
        """Return the valid words."""
        return "cpu, cuda, cuda:0, cuda:1, ... or mps"

    def fault(self, value: str) -> str | None:
        """Return how a message about an unusable device ends, or None for a usable one."""
        here = self._here()
        kind, colon, number = value.partition(":")
        numbered = number.isascii() and number.isdigit()
        if kind not in ("cpu", "cuda", "mps") or (colon and not numbered):
            return f"={value!r} is no device; valid: {self.text()}; here: {', '.join(here)}"
        if (value if kind == "cuda" else kind) in here or (kind == "cpu" and not colon):
            return None
        return f"={value!r} is not on this machine; here: {', '.join(here)}"

    @staticmethod
    def _here() -> list[str]:
        """Return the devices of this machine."""
        import torch

        number = torch.cuda.device_count() if torch.cuda.is_available() else 0
        cuda = ["cuda", *(f"cuda:{i}" for i in range(number))] if number else []
        return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


PositiveInt = Annotated[int, Range(low=1)]
NonNegativeInt = Annotated[int, Range(low=0)]
PositiveFloat = Annotated[float, Range(low=0, low_open=True)]
PositiveOrInfinite = Annotated[float, Range(low=0, low_open=True, infinite=True)]
NonNegativeFloat = Annotated[float, Range(low=0)]
Finite = Annotated[float, Range()]
Share = Annotated[float, Range(low=0, high=1)]
DiscountFactor = Annotated[float, Range(low=0, low_open=True, high=1)]
Threads = Annotated[int, Range(low=1, high=1024)]
Seed = Annotated[int, Range(low=0, high=2**32 - 1)]
DeviceName = Annotated[str, Device()]


def declared_types(config: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields, with their ranges.

    Fields whose types cannot be found at runtime are left out.
    """
    if config not in _TYPES:
        _TYPES[config] = _declared_types(config)
    return _TYPES[config]


_TYPES: dict[Any, dict[str, Any]] = {}
"""Declared types by class, because finding them takes longer than a check."""


def _declared_types(config: Any) -> dict[str, Any]:
    names = [item.name for item in fields(config)]
    try:
        hints = get_type_hints(config, include_extras=True)
    except NameError:  # a class inside a function, with a type from there
        hints = {}
        for base in reversed(config.__mro__):
            hints |= _findable(base)
    return {name: hints[name] for name in names if name in hints}


def _findable(base: type) -> dict[str, Any]:
    space = vars(sys.modules.get(base.__module__, types))
    found = {}
    for name, written in inspect.get_annotations(base).items():
        try:
            found[name] = get_type_hints(
                type("", (), {"__annotations__": {name: written}}), space, include_extras=True
            )[name]
        except NameError:
            continue
    return found


def range_text(hint: Any) -> str:
    """Return the range of a declared type in words, or an empty text.

    Example:
        >>> range_text(PositiveInt | None)
        'at least 1'
    """
    if get_origin(hint) is Annotated:
        _, *notes = get_args(hint)
        return ", ".join(note.text() for note in notes if isinstance(note, Range | Device))
    texts = (range_text(inner) for inner in get_args(hint) if not isinstance(inner, str))
    return next((text for text in texts if text), "")


def fault_of(value: Any, hint: Any) -> str | None:
    """Return how a message about a value goes on after the name, or None for a valid value.

    Example:
        >>> fault_of((1, 0), tuple[PositiveInt, ...])
        '[1]=0 must be at least 1'
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        fault = fault_of(value, inner[0])
        notes = (note.fault(value) for note in inner[1:] if isinstance(note, Range | Device))
        return fault or next((text for text in notes if text), None)
    if origin in (Union, types.UnionType):
        faults = [fault_of(value, option) for option in inner if option is not type(None)]
        if (value is None and type(None) in inner) or None in faults:
            return None
        return faults[0]
    if origin is Literal:
        valid = ", ".join(map(repr, inner))
        return None if value in inner else f"={value!r} is unknown; valid: {valid}"
    if origin is tuple:
        return _fault_of_tuple(value, inner)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _fault_of_mapping(value, inner)
    return _fault_of_plain(value, hint)


def _fault_of_tuple(value: Any, inner: tuple[Any, ...]) -> str | None:
    if not isinstance(value, tuple):
        return f"={value!r} must be a tuple"
    hints = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
    if len(hints) != len(value):
        return f"={value!r} must have {len(hints)} entries"
    for number, (item, hint) in enumerate(zip(value, hints, strict=True)):
        fault = fault_of(item, hint)
        if fault is not None:
            return f"[{number}]{fault}"
    return None


def _fault_of_mapping(value: Any, inner: tuple[Any, ...]) -> str | None:
    if not isinstance(value, Mapping):
        return f"={value!r} must be a dict"
    for key, item in value.items():
        fault = fault_of(key, inner[0]) or fault_of(item, inner[1])
        if fault is not None:
            return f"[{key!r}]{fault}"
    return None


PLAIN: Mapping[type, tuple[type, str]] = {
    int: (int, "a whole number"),
    float: (Real, "a number"),
    bool: (bool, "True or False"),
    str: (str, "text"),
    Path: (Path, "a path"),
}
"""For each declared type, the class of valid values and its name in messages."""


def _fault_of_plain(value: Any, hint: Any) -> str | None:
    """Return the fault of a value whose type is a class, or None where the class is not known."""
    if hint in PLAIN:
        kind, words = PLAIN[hint]
        wrong = not isinstance(value, kind) or (hint is not bool and isinstance(value, bool))
        if wrong:
            return f"={value!r} must be {words}"
        return "='' must not be empty" if hint is str and not value else None
    if isinstance(hint, type) and is_dataclass(hint) and not isinstance(value, hint):
        return f"={value!r} must be a {hint.__name__}"
    return None


def _usual(value: Any, hint: Any) -> Any:
    """Return a value as Python's own type of a setting: no numpy numbers, lists or bare paths."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _usual(value, inner[0])
    if origin in (Union, types.UnionType):
        options = [option for option in inner if option is not type(None)]
        return value if value is None or len(options) > 1 else _usual(value, options[0])
    if origin is tuple and isinstance(value, list | tuple) and inner:
        first = inner[0] if inner[-1] is Ellipsis else None
        items = tuple(item if first is None else _usual(item, first) for item in value)
        return value if items == value and isinstance(value, tuple) else items
    if hint is Path and isinstance(value, str) and value:
        return Path(value)
    if isinstance(value, bool | int | float | str):
        return value
    if hint is int and isinstance(value, Integral):
        return int(value)
    if hint is float and isinstance(value, Real):
        return float(value)
    if hint is bool and type(value).__name__ in ("bool", "bool_"):  # numpy's
        return bool(value)
    return value


def _shown(bound: float) -> str:
    """Return a bound without a superfluous fraction."""
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


def _is_unset(value: Any) -> bool:
    """Return whether a value stands for a missing one: the command line's, or a dataclass's."""
    return value is MISSING or type(value).__module__.partition(".")[0] == "tyro"
