"""Settings: every number of every config has a range, which holds wherever the config is made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch

from configs import all_configs, example
from pitune import envs, policies, rl
from pitune.experiments.runs.train_config import TrainConfig
from pitune.ranges import (
    Device,
    DeviceName,
    PositiveInt,
    Range,
    Settings,
    Share,
    declared_types,
    fault_of,
    range_text,
)

OF_USERS = {("GymOptions", "kwargs")}
"""Fields whose numbers belong to the user's environment."""
CHECKED_APART = {policies.NormStats}
"""Data and not settings; it checks its own arrays."""
CONFIGS = [kind for kind in all_configs() if kind not in CHECKED_APART]


@dataclass(frozen=True, kw_only=True)
class ShakeConfig(Settings):
    """Settings of every type."""

    number: PositiveInt = 1
    share: Share = 0.5
    limit: PositiveInt | None = None
    sizes: tuple[PositiveInt, ...] = (1, 2)
    word: Literal["a", "b"] = "a"
    name: str = "x"
    on: bool = False
    file: Path = Path("x")
    words: dict[str, str] = field(default_factory=dict)
    device: DeviceName = "cpu"
    block: rl.UpdateConfig = field(default_factory=rl.UpdateConfig)


def numbers(hint: Any, ranges: tuple[Range, ...] = ()) -> Iterator[tuple[type, tuple[Range, ...]]]:
    """Yield the number types in a declared type, each with its ranges."""
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        yield from numbers(inner, (*ranges, *(n for n in notes if isinstance(n, Range))))
    elif get_origin(hint) is Literal:
        return
    elif hint in (int, float):
        yield hint, ranges
    else:
        for inner in get_args(hint):
            yield from numbers(inner, ranges)


def without_ranges(kind: type) -> list[str]:
    return [
        name
        for name, hint in declared_types(kind).items()
        if any(not ranges for _, ranges in numbers(hint))
    ]


RANGED = [
    (kind, name, number, note)
    for kind in CONFIGS
    for name, hint in declared_types(kind).items()
    for number, notes in numbers(hint)
    for note in notes
]


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_config_is_checked_and_every_number_in_it_has_a_range(kind: type) -> None:
    assert issubclass(kind, Settings)
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    assert declared_types(kind).keys() == names
    missing = [name for name in without_ranges(kind) if (kind.__name__, name) not in OF_USERS]
    assert missing == [], f"declare a range beside {kind.__name__}.{missing}"


def test_a_number_without_a_range_would_be_seen() -> None:
    """Negative control: a plain number, one that may be None, and one in a tuple."""

    @dataclass(frozen=True, kw_only=True)
    class Forgotten(Settings):
        plain: float = 1.0
        perhaps: int | None = None
        many: tuple[int, ...] = ()
        fine: PositiveInt = 1
        word: Literal[1, 2] = 1

    assert without_ranges(Forgotten) == ["plain", "perhaps", "many"]


def invalid_numbers(number: type, valid: Range) -> list[Any]:
    """Return numbers outside of a range, and values that are no such number."""
    step = 1 if number is int else 1e-6
    values: list[Any] = [True, "1", math.nan]
    values += [1.5, 1e3] if number is int else []
    values += [math.inf, -math.inf] if number is int or not valid.infinite else [-math.inf]
    if valid.low > -math.inf:
        values += [number(valid.low - step), *([number(valid.low)] if valid.low_open else [])]
    if valid.high < math.inf:
        values += [number(valid.high + step), *([number(valid.high)] if valid.high_open else [])]
    return values


@pytest.mark.parametrize(
    ("kind", "name", "number", "valid"),
    RANGED,
    ids=[f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}.{n}" for kind, n, _, _ in RANGED],
)
def test_a_number_outside_of_its_range_is_refused_by_its_name(
    kind: type, name: str, number: type, valid: Range
) -> None:
    config = example(kind)
    hint = declared_types(kind)[name]
    many = get_origin(hint) is tuple
    for value in invalid_numbers(number, valid):
        with pytest.raises(ValueError, match=rf"^{name}(\[0\])?=.* must be "):
            replace(config, **{name: (value,) if many else value})
    if valid.infinite:
        replace(config, **{name: math.inf})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"number": None}, "number=None must be a whole number"),
        ({"number": 2.0}, "number=2.0 must be a whole number"),
        ({"number": np.bool_(True)}, "number=.* must be a whole number"),
        ({"share": True}, "share=True must be a number"),
        ({"share": "half"}, "share='half' must be a number"),
        ({"share": -math.inf}, "share=-inf must be at least 0 and at most 1"),
        ({"limit": 0}, "limit=0 must be at least 1"),
        ({"limit": "none"}, "limit='none' must be a whole number"),
        ({"sizes": (1, 0)}, r"sizes\[1\]=0 must be at least 1"),
        ({"sizes": 3}, "sizes=3 must be a tuple"),
        ({"sizes": "12"}, "sizes='12' must be a tuple"),
        ({"word": "c"}, "word='c' is unknown; valid: 'a', 'b'"),
        ({"name": ""}, "name='' must not be empty"),
        ({"name": 3}, "name=3 must be text"),
        ({"on": 1}, "on=1 must be True or False"),
        ({"on": "False"}, "on='False' must be True or False"),
        ({"file": None}, "file=None must be a path"),
        ({"file": ""}, "file='' must be a path"),
        ({"words": ["a"]}, r"words=\['a'\] must be a dict"),
        ({"words": {"a": 1}}, r"words\['a'\]=1 must be text"),
        ({"block": None}, "block=None must be a UpdateConfig"),
        ({"block": {"num_epochs": 1}}, "block=.* must be a UpdateConfig"),
        ({"device": "gpu"}, "device='gpu' is no device; valid: cpu, cuda, .*; here: cpu"),
        ({"device": 0}, "device=0 must be text"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_name(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ShakeConfig(**changes)


def test_equivalent_values_become_the_usual_ones() -> None:
    made = ShakeConfig(
        number=np.int64(3),  # type: ignore[arg-type]
        share=np.float32(0.5),  # type: ignore[arg-type]
        limit=np.int32(2),  # type: ignore[arg-type]
        sizes=[np.int64(4)],  # type: ignore[arg-type]
        on=np.bool_(True),  # type: ignore[arg-type]
        file="a/b",  # type: ignore[arg-type]
    )
    usual = ShakeConfig(number=3, share=0.5, limit=2, sizes=(4,), on=True, file=Path("a/b"))
    assert made == usual
    for item in fields(made):
        assert type(getattr(made, item.name)) is type(getattr(usual, item.name))


@pytest.mark.parametrize(
    "word", ["gpu", "", "0", "cuda:", "cuda:x", "cuda:-1", "cpu:0x", "CUDA", "meta", "cpu cuda"]
)
def test_a_word_that_is_no_device_is_refused_with_the_devices_that_are_here(word: str) -> None:
    with pytest.raises(ValueError, match=r"^device=.*(here: cpu|must not be empty)"):
        TrainConfig(algorithm=rl.PPOConfig(), device=word)


@pytest.mark.parametrize(("number", "valid"), [(0, ""), (2, "cuda, cuda:0, cuda:1")])
def test_a_device_must_be_on_this_machine(
    number: int, valid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    assert Device().fault("cpu") is None
    assert f"is not on this machine; here: cpu{valid and ', '}{valid}" in str(
        Device().fault("cuda:2")
    )
    for word in ("cuda", "cuda:0", "cuda:1"):
        assert (Device().fault(word) is None) == (number > 0)


def test_a_type_that_is_not_known_at_runtime_leaves_its_field_unchecked() -> None:
    class Local: ...

    @dataclass(frozen=True, kw_only=True)
    class WithLocal(Settings):
        mine: Local | None = None
        number: PositiveInt = 1

    assert WithLocal(mine=Local()).number == 1
    with pytest.raises(ValueError, match=r"^number=0 must be at least 1$"):
        WithLocal(number=0)


def test_a_range_is_shown_in_words() -> None:
    assert range_text(PositiveInt | None) == "at least 1"
    assert range_text(tuple[Share, ...]) == "at least 0 and at most 1"
    assert range_text(Annotated[float, Range()]) == "a finite number"
    assert range_text(DeviceName).startswith("cpu, cuda")
    assert range_text(str) == range_text(Literal["a"]) == ""


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="num_parts=9 must be at most minibatch_size=8"):
        rl.UpdateConfig(minibatch_size=8, num_parts=9)
    with pytest.raises(ValueError, match="warmup_steps=11 must be at most decay_steps=10"):
        rl.BCConfig(warmup_steps=11, decay_steps=10)
    assert rl.BCConfig(warmup_steps=11, decay_steps=0).warmup_steps == 11
    with pytest.raises(ValueError, match=r"std_min=0\.2 must be at most std_max=0\.1"):
        policies.FlowNoiseConfig(std_min=0.2, std_max=0.1)
    assert fault_of(envs.EnvConfig(), envs.EnvConfig) is None
