"""`norm_stats` and `norm_stats_file`: statistics of another robot, damaged or never computed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pitune.policies import NormStats, Preprocessor, PreprocessorConfig
from pitune.policies.preprocessing.norm_stats_file import (
    find_norm_stats,
    norm_stats_json,
    read_norm_stats,
)

GOOD: dict[str, Any] = {
    "mean": [0.1, -0.2],
    "std": [0.5, 2.0],
    "q01": [-1.0, -3.0],
    "q99": [1.0, 3.0],
}


def written(folder: Path, **changes: Any) -> Path:
    """Write norm stats whose state has some numbers changed."""
    values = {"state": {**GOOD, **changes}, "actions": GOOD}
    file = folder / "norm_stats.json"
    file.write_text(json.dumps({"norm_stats": values}))
    return file


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, True, "0.5", "x"])
@pytest.mark.parametrize("name", list(GOOD))
def test_a_bad_number_is_named_by_key_and_index(tmp_path: Path, name: str, bad: Any) -> None:
    file = written(tmp_path, **{name: [GOOD[name][0], bad]})
    with pytest.raises(ValueError, match=rf"norm_stats.json .*: state\.{name}\[1\]"):
        read_norm_stats(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": [0.5, -1.0]}, r"state.std\[1\]=-1.0 is negative"),
        ({"q99": [1.0, -3.5]}, r"state.q99\[1\]=-3.5 is below q01\[1\]=-3.0"),
        ({"q99": None}, "state.q99 is missing beside q01"),
        ({"q01": None}, "state.q01 is missing beside q99"),
        ({"std": None}, "state.std is missing beside mean"),
        ({"mean": [0.1]}, "'mean': 1, 'std': 2, .* are the numbers of dimensions"),
        ({"q01": [-1.0] * 3, "q99": [1.0] * 3}, "'q01': 3, .* they must agree"),
        ({"mean": []}, "state.mean has no numbers"),
        ({"mean": 0.0}, "state.mean=0.0 is no list of numbers"),
        ({"mean": [[0.1, 0.2]] * 10}, r"state.mean\[0\] is a list of 2; .* per time step"),
    ],
)
def test_statistics_that_contradict_each_other_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_norm_stats(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state": GOOD, "actions": GOOD}, r"no object 'norm_stats', but \['actions', 'state'\]"),
        ({"norm_stats": {"state": GOOD, "action": GOOD}}, r"lacks \['actions'\]"),
        ({"norm_stats": {"observation.state": GOOD, "action": GOOD}}, r"lacks \['state', 'actio"),
        ({"norm_stats": {"state": 3, "actions": GOOD}}, "'state' is 3"),
        ({"norm_stats": {"state": {}, "actions": GOOD}}, "state.mean and std are missing"),
        ([], "no object 'norm_stats', but list"),
    ],
)
def test_another_files_content_is_named(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "norm_stats.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_norm_stats(tmp_path / "norm_stats.json")


def test_statistics_that_nothing_reads_are_left_alone(tmp_path: Path) -> None:
    file = written(tmp_path, count=[3], min=[math.nan, 0.0], max=None)
    assert read_norm_stats(file)[0] == read_norm_stats(written(tmp_path))[1]


def stats(dim: int, **padding: tuple[float, ...]) -> NormStats:
    """Return statistics of two dimensions, followed by padding."""
    rows = {name: (*GOOD[name], *padding.get(name, (0.0,) * (dim - 2))) for name in GOOD}
    return NormStats(**rows)


@pytest.mark.parametrize(
    "padding",
    [
        {},
        {"std": (1.0, 1.0)},
        {"q01": (-1.0, -1.0), "q99": (1.0, 1.0), "std": (1.0, 1.0)},
        {"q01": (-1e-10, -1e-10), "q99": (1e-10, 1e-10)},
    ],
)
def test_padding_as_openpi_writes_it_is_cut(padding: dict[str, tuple[float, ...]]) -> None:
    assert stats(4, **padding).first(2) == stats(2)
    assert stats(4, **padding).unpadded() == stats(2)


@pytest.mark.parametrize("name", ["mean", "std", "q01", "q99"])
def test_a_surplus_dimension_that_moves_belongs_to_another_robot(name: str) -> None:
    value = {"mean": 0.2, "std": 0.3, "q01": -0.4, "q99": 0.4}[name]
    with pytest.raises(ValueError, match=r"have 4 dimensions, the robot has 2, .* \[3\], are no p"):
        stats(4, **{name: (0.0, value)}).first(2)


def test_fewer_dimensions_than_the_robot_are_refused() -> None:
    with pytest.raises(ValueError, match="have 2 dimensions, the robot has 3; take the stats of"):
        stats(2).first(3)


@pytest.mark.parametrize("row", [(0.0, 0.0), (0.1, -0.2)])
def test_quantiles_that_another_program_filled_in_count_as_none(row: tuple[float, ...]) -> None:
    filled = NormStats(mean=(0.1, -0.2), std=(0.5, 2.0), q01=row, q99=row)
    assert filled.quantiles is None
    with pytest.raises(ValueError, match="those of state were never computed; recompute"):
        PreprocessorConfig(state=filled, action=stats(2), normalization="quantile")


def test_quantiles_that_were_never_computed_are_not_written() -> None:
    without = NormStats.without_quantiles((0.1, -0.2), (0.5, 2.0))
    content = norm_stats_json(without, stats(2))["norm_stats"]
    assert set(content["state"]) == {"mean", "std"}
    assert set(content["actions"]) == set(GOOD)
    with pytest.raises(ValueError, match="those of action were never computed"):
        PreprocessorConfig(state=stats(2), action=without, normalization="quantile")


def test_one_constant_dimension_does_not_make_the_quantiles_none() -> None:
    constant = NormStats(mean=(0.0, 0.3), std=(1.0, 0.0), q01=(-1.0, 0.3), q99=(1.0, 0.3))
    assert constant.quantiles == ((-1.0, 0.3), (1.0, 0.3))


@pytest.mark.parametrize("normalization", ["zscore", "quantile"])
def test_a_dimension_without_any_spread_is_refused(normalization: Any) -> None:
    constant = NormStats(mean=(0.0, 0.3), std=(1.0, 0.0), q01=(-1.0, 0.3), q99=(1.0, 0.3))
    settings = {"state": constant, "action": stats(2), "normalization": normalization}
    with pytest.raises(ValueError, match=r"of the state have no spread in dimensions \[1\]"):
        PreprocessorConfig(**settings, epsilon=0.0, min_scale=0.0)
    config = PreprocessorConfig(**settings, epsilon=1e-6, min_scale=0.0)
    scale = Preprocessor(config, 2, 2).state_scale[1]
    assert float(scale) == pytest.approx(1e-6 if normalization == "zscore" else 5e-7)


@pytest.fixture
def assets(tmp_path: Path) -> Callable[..., Path]:
    """Make a checkpoint folder with norm stats of some assets."""

    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / "assets" / name).mkdir(parents=True)
            written(tmp_path / "assets" / name)
        return tmp_path

    return make


def test_one_of_several_assets_must_be_named(assets: Callable[..., Path]) -> None:
    folder = assets("trossen", "physical-intelligence/libero")
    with pytest.raises(ValueError, match=r"assets \['physical-intelligence/libero', 'trossen'\]"):
        find_norm_stats(folder)
    expected = folder / "assets/physical-intelligence/libero/norm_stats.json"
    assert find_norm_stats(folder, "physical-intelligence/libero") == expected
    assert find_norm_stats(folder, "libero") == expected
    with pytest.raises(ValueError, match=r"no norm stats of asset='trosen'; .* mean 'trossen'\?"):
        find_norm_stats(folder, "trosen")


def test_an_assets_last_part_must_be_unique(assets: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"no norm stats of asset='libero'; its assets are \["):
        find_norm_stats(assets("a/libero", "b/libero"), "libero")


def test_a_named_asset_of_a_folder_without_any_is_refused(assets: Callable[..., Path]) -> None:
    assert find_norm_stats(assets()) is None
    with pytest.raises(ValueError, match=r"no norm stats of asset='trossen'; its assets are \[\]"):
        find_norm_stats(assets(), "trossen")
