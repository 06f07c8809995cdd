"""The learning curve: validation and test starts are never joined in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.axes
import pytest

from pitune.experiments.runs.learning_curve import (
    axis_of,
    exploring_points,
    learning_curve,
    validation_points,
)
from pitune.experiments.runs.learning_curve import test_points as ends_of


def evaluation(rate: float | None) -> dict[str, Any]:
    return {"deployed": {"success_rate": rate, "wilson_low": 0.1, "wilson_high": 0.9}}


ROWS: list[dict[str, Any]] = [
    {"iteration": 1, "env_steps": 80.0, "train/success_rate": 0.3},
    {
        "iteration": 2,
        "env_steps": 160.0,
        "success_rate": 0.5,
        "success_rate_low": 0.4,
        "success_rate_high": 0.6,
    },
]
SUMMARY = {
    "algorithm": "ppo",
    "env": "mock/Reach",
    "seed": 3,
    "before": evaluation(0.2),
    "after": evaluation(0.7),
}


def test_each_set_of_starts_has_points_of_its_own() -> None:
    assert validation_points(ROWS)[1:] == ([160.0], [0.5], [0.4], [0.6])
    assert exploring_points(ROWS)[1:3] == ([80.0], [0.3])
    assert ends_of(ROWS, SUMMARY)[1:3] == ([0.0, 160.0], [0.2, 0.7])
    names = [line.label for line in (validation_points(ROWS), ends_of(ROWS, SUMMARY))]
    assert ("validation starts" in names[0], "test starts" in names[1]) == (True, True)


def test_the_drawing_joins_validation_points_only_and_names_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[list[float], list[float]]] = []
    titles: list[str] = []
    plot, put = matplotlib.axes.Axes.plot, matplotlib.axes.Axes.set

    def noted(axes: Any, steps: list[float], rates: list[float], **options: Any) -> Any:
        lines.append((steps, rates))
        return plot(axes, steps, rates, **options)

    def titled(axes: Any, **options: Any) -> Any:
        titles.append(options.get("title", ""))
        return put(axes, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", noted)
    monkeypatch.setattr(matplotlib.axes.Axes, "set", titled)
    learning_curve(ROWS, SUMMARY, tmp_path / "curve.png")
    assert ([160.0], [0.5]) in lines
    assert not any(0.2 in rates or 0.7 in rates for _, rates in lines)
    assert "ppo on mock/Reach, seed 3" in titles
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_cloning_is_drawn_over_iterations() -> None:
    rows = [{**row, "env_steps": 0.0} for row in ROWS]
    assert axis_of(rows) == "iteration"
    assert validation_points(rows).steps == [2]


def test_without_any_success_rate_nothing_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    summary = {**SUMMARY, "before": evaluation(None), "after": evaluation(None)}
    learning_curve(ROWS[:1], summary, tmp_path / "curve.png")
    assert "no curve.png: there is no success rate to draw" in capsys.readouterr().err
    assert not (tmp_path / "curve.png").exists()
