"""`--vary`: deployed settings side by side. A cell is one combination of their values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pitune.policies import SamplerConfig
from pitune.policies.fast.config import FastDecodingConfig
from pitune.policies.flow.delay import DelayConfig
from pitune.policies.flow.guidance import GuidanceConfig
from pitune.policies.flow.real_time import RealTimeConfig
from pitune.ranges import declared_types

Cell = Mapping[str, Any]
"""Name of a setting -> its value. Empty where nothing is varied."""
BLOCKS: Mapping[str, type] = {
    "delay": DelayConfig,
    "fast": FastDecodingConfig,
    "guidance": GuidanceConfig,
    "real_time": RealTimeConfig,
}
"""Blocks of settings, whose fields have names such as `delay.steps`."""
IN_SAMPLER = ("fast", "guidance")
"""Blocks that are fields of the sampler."""


def known_settings() -> dict[str, Any]:
    """Return the declared type of each setting that can be varied, by its name.

    Example:
        >>> sorted(known_settings())[:3]
        ['accumulated_time', 'decoder', 'delay.max_steps']
    """
    sampler = declared_types(SamplerConfig)
    known = {name: hint for name, hint in sampler.items() if name not in BLOCKS}
    for block, kind in BLOCKS.items():
        known |= {f"{block}.{name}": hint for name, hint in declared_types(kind).items()}
    return known


def cells(vary: Sequence[Sequence[str]]) -> list[Cell]:
    """Return all combinations of the values of `--vary`, the last name changing fastest.

    Example:
        >>> cells([("flow_steps", "1", "4"), ("solver", "heun")])
        [{'flow_steps': 1, 'solver': 'heun'}, {'flow_steps': 4, 'solver': 'heun'}]

    Raises:
        ValueError: a name is unknown or repeated, has no values or the same one twice, or a value
            is not one of its type.
    """
    known, columns = known_settings(), dict[str, list[Any]]()
    for words in vary:
        name, texts = (words[0], words[1:]) if words else ("", ())
        if name not in known:
            nearest = get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else ";"
            raise ValueError(f"vary={name!r} is no deployed setting{hint} valid: {sorted(known)}")
        if not texts:
            raise ValueError(f"vary={name!r} has no values; pass some after the name")
        if name in columns:
            raise ValueError(f"vary={name!r} is given twice; pass all its values at once")
        values = [_value(name, text, known[name]) for text in texts]
        if any(values.count(value) > 1 for value in values):
            raise ValueError(f"vary={name!r} must not repeat a value of {list(texts)}")
        columns[name] = values
    # the last name changes fastest
    grid = itertools.product(*columns.values())
    return [dict(zip(columns, values, strict=True)) for values in grid]


def text_of(cell: Cell) -> str:
    """Return the settings of a cell as words, such as `flow_steps=4 delay.steps=2`."""
    return " ".join(f"{name}={value}" for name, value in cell.items())


def with_cell(
    sampler: SamplerConfig, delay: DelayConfig, real_time: RealTimeConfig, cell: Cell
) -> tuple[SamplerConfig, DelayConfig, RealTimeConfig]:
    """Return the settings with the values of a cell.

    Raises:
        ValueError: a value is out of its range.
    """
    # values by their block, where the sampler has none
    changes: dict[str, dict[str, Any]] = {"": {}, **{block: {} for block in BLOCKS}}
    for name, value in cell.items():
        block, _, setting = name.rpartition(".")
        changes[block][setting] = value
    try:
        nested = {name: replace(getattr(sampler, name), **changes[name]) for name in IN_SAMPLER}
        return (
            replace(sampler, **changes[""], **nested),
            replace(delay, **changes["delay"]),
            replace(real_time, **changes["real_time"]),
        )
    except ValueError as error:
        raise ValueError(f"vary: the cell {text_of(cell)} cannot be played: {error}") from error


def _value(name: str, text: str, hint: Any) -> Any:
    """Return a text as a value of a declared type, whose range is checked with the other settings.

    Raises:
        ValueError: it is none.
    """
    kinds = list(_kinds(hint))
    for kind in kinds:
        if isinstance(kind, str) and text == kind:
            return text
        if kind is NoneType and text.lower() == "none":
            return None
        if kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
    words = {int: "a whole number", float: "a number", bool: "True or False", NoneType: "None"}
    valid = ", ".join(repr(kind) if isinstance(kind, str) else words[kind] for kind in kinds)
    raise ValueError(f"vary={name!r} has no value {text!r}; valid: {valid}")


def _kinds(hint: Any) -> list[Any]:
    """Return the plain types in a declared type, and the words of a choice."""
    if get_origin(hint) is Annotated:
        return _kinds(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [kind for option in get_args(hint) for kind in _kinds(option)]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [hint]
