"""`--vary`: names, values and cells."""

from __future__ import annotations

from types import NoneType

import pytest

from pitune.experiments.evaluation.variations import (
    _kinds,
    cells,
    known_settings,
    text_of,
    with_cell,
)
from pitune.policies import SamplerConfig
from pitune.policies.flow.delay import DelayConfig
from pitune.policies.flow.real_time import RealTimeConfig


def test_the_grid_is_the_product_of_all_values() -> None:
    grid = cells([("execution_horizon", "1", "4"), ("flow_steps", "1", "4", "10")])
    assert len(grid) == 6
    assert grid[0] == {"execution_horizon": 1, "flow_steps": 1}
    assert grid[-1] == {"execution_horizon": 4, "flow_steps": 10}
    assert cells([]) == [{}]
    assert text_of(grid[0]) == "execution_horizon=1 flow_steps=1"


def test_values_have_the_type_of_their_setting() -> None:
    (cell,) = cells(
        [
            ("solver", "heun"),
            ("accumulated_time", "True"),
            ("delay.max_steps", "none"),
            ("real_time.max_weight", "2.5"),
        ]
    )
    assert cell == {
        "solver": "heun",
        "accumulated_time": True,
        "delay.max_steps": None,
        "real_time.max_weight": 2.5,
    }


def test_all_deployed_settings_can_be_varied() -> None:
    """Every field of the three configs, with a type that a text can stand for."""
    known = known_settings()
    assert {"flow_steps", "execution_horizon", "solver", "accumulated_time"} <= known.keys()
    assert {"delay.steps", "delay.seam", "real_time.method"} <= known.keys()
    usual = (int, float, bool, NoneType)
    for name, hint in known.items():
        assert all(isinstance(kind, str) or kind in usual for kind in _kinds(hint)), name


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (
            [("flow_step", "1")],
            "vary='flow_step' is no deployed setting; did you mean 'flow_steps'",
        ),
        ([("steps", "1")], "vary='steps' is no deployed setting; did you mean .*'delay.steps'"),
        ([("x", "1")], r"vary='x' is no deployed setting; valid: \['accumulated_time', "),
        ([()], "vary='' is no deployed setting"),
        ([("flow_steps",)], "vary='flow_steps' has no values"),
        ([("flow_steps", "1"), ("flow_steps", "2")], "vary='flow_steps' is given twice"),
        ([("flow_steps", "1", "1")], "vary='flow_steps' must not repeat a value"),
        ([("flow_steps", "1.5")], "vary='flow_steps' has no value '1.5'; valid: a whole number"),
        (
            [("solver", "rk4")],
            "vary='solver' has no value 'rk4'; valid: 'euler', 'midpoint', 'heun'",
        ),
        ([("delay.max_steps", "x")], "has no value 'x'; valid: a whole number, None"),
    ],
)
def test_mistakes_are_named(vary: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cells(vary)


def test_a_value_out_of_its_range_names_its_cell() -> None:
    settings = SamplerConfig(), DelayConfig(), RealTimeConfig()
    sampler, delay, real_time = with_cell(*settings, {"flow_steps": 9, "delay.steps": 2})
    assert (sampler.flow_steps, delay.steps, real_time) == (9, 2, RealTimeConfig())
    assert with_cell(*settings, {"guidance.scale": 1.5})[0].guidance.scale == 1.5
    with pytest.raises(ValueError, match=r"the cell flow_steps=0 cannot be played: flow_steps=0"):
        with_cell(*settings, {"flow_steps": 0})
    with pytest.raises(ValueError, match=r"max_steps=1 must be at least steps=2"):
        with_cell(*settings, {"delay.steps": 2, "delay.max_steps": 1})
