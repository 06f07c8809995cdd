"""`pipelines` and openpi's checkpoints: a robot of one's own, its cameras and its norm stats."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openpi_fixtures import TOKENIZER, openpi_folder
from pitune.policies import PIPELINES, LoadConfig, infer, load
from pitune.policies.checkpoints.pipelines import (
    CAMERAS,
    Pipeline,
    nearest_pipeline,
    pipeline_named,
    read_pipeline,
)
from pitune.policies.preprocessing.images import PicturesConfig

CONFIG = LoadConfig(tokenizer=TOKENIZER)
OWN: dict[str, Any] = {
    "family": "pi0",
    "action_horizon": 10,
    "execution_horizon": 4,
    "cameras": {"base_0_rgb": "top"},
    "quantiles": False,
    "delta_mask": [True, True, False],
}
STATS = {
    "norm_stats": {
        "state": {"mean": [0.1] * 5, "std": [0.7] * 5},
        "actions": {"mean": [0.2] * 6, "std": [0.6] * 6},
    }
}


def write(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a copy of openpi's checkpoint without norm stats, as of a base model."""
    folder = tmp_path / "pi0_base"
    shutil.copytree(openpi_folder("pi0"), folder)
    shutil.copy(openpi_folder("pi0").parent / "arch.json", folder)
    shutil.rmtree(folder / "assets")
    return folder


def observation(dim: int, *cameras: str) -> dict[str, Any]:
    rng = np.random.RandomState(0)
    pictures = {f"image/{c}": rng.randint(0, 256, (60, 80, 3)).astype(np.uint8) for c in cameras}
    return {"state": np.linspace(-0.5, 0.5, dim), **pictures, "prompt": "put the bowl"}


NOISE = np.random.RandomState(7).randn(10, 32).astype(np.float32)


@pytest.mark.parametrize("ending", [".json", ".yaml", ".yml"])
def test_an_own_robot_gets_its_pipeline_from_a_file_and_its_widths_from_its_norm_stats(
    base: Path, tmp_path: Path, ending: str
) -> None:
    file = write(tmp_path / f"own{ending}", OWN)  # JSON is YAML, too
    stats = write(tmp_path / "norm_stats.json", STATS)
    policy = load(base, replace(CONFIG, pipeline=str(file), norm_stats=stats))
    config = policy.preprocessor.config
    assert (config.state.dim, config.action.dim) == (5, 6)
    assert config.delta_mask == (True, True, False)
    assert config.pictures is not None
    assert config.pictures.cameras == {"base_0_rgb": "top"}
    assert policy.sampler.execution_horizon == 4
    assert infer(policy, observation(5, "top"), NOISE).shape == (10, 6)


@pytest.mark.parametrize("width", [6, 20, 32])
def test_padded_norm_stats_give_the_robots_widths(base: Path, tmp_path: Path, width: int) -> None:
    padded = {
        key: {name: [*row, *[0.0] * (width - len(row))] for name, row in rows.items()}
        for key, rows in STATS["norm_stats"].items()
    }
    stats = write(tmp_path / "norm_stats.json", {"norm_stats": padded})
    file = write(tmp_path / "own.json", OWN)
    policy = load(base, replace(CONFIG, pipeline=str(file), norm_stats=stats))
    config = policy.preprocessor.config
    assert (config.state.dim, config.action.dim) == (5, 6)


def test_a_base_pipeline_gives_the_settings_that_a_file_leaves_out(tmp_path: Path) -> None:
    changes = {"base": "pi05_droid", "state_dim": 7, "cameras": {"left_wrist_0_rgb": "hand"}}
    pipeline = read_pipeline(write(tmp_path / "own.json", changes))
    droid = PIPELINES["pi05_droid"]
    assert pipeline == replace(droid, state_dim=7, cameras={"left_wrist_0_rgb": "hand"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stae_dim": 7}, r"\['stae_dim'\] are no settings .*'state_dim' instead of 'stae_dim'"),
        ({"base": "pi05_liberro"}, "pipeline='pi05_liberro' is not one of .* mean 'pi05_libero'"),
        ({"family": "pi1"}, "family='pi1' is not one of"),
        ({"cameras": {"wrist_0_rgb": "w"}}, "names .* mean 'left_wrist_0_rgb' instead of"),
        ({"cameras": {}}, "is empty; name at least one of"),
        ({"cameras": ["top"]}, r"cameras=\['top'\] must be an object"),
        ({"cameras": {"base_0_rgb": 3}}, "must be an object"),
        ({"quantiles": "yes"}, "quantiles='yes' must be true or false"),
        ({"action_horizon": "50"}, "action_horizon='50' must be a whole number"),
        ({"action_horizon": 0}, "action_horizon=0 must be at least 1"),
        ({"execution_horizon": None}, "execution_horizon=None must be a whole number"),
        ({"flow_steps": -1}, "flow_steps=-1 must be at least 1"),
        ({"state_dim": 0}, "state_dim=0 must be at least 1, or left out"),
        ({"state_dim": 7.5}, "state_dim=7.5 must be a whole number"),
        ({"prompt_tokens": True}, "prompt_tokens=True must be a whole number"),
        ({"delta_mask": [1, 0]}, r"delta_mask=\[1, 0\] must be a list of true and false"),
        ({"joints": "trossen"}, "joints='trossen' is not one of"),
        ({"base": "pi0_libero", "action_dim": 14, "delta_mask": None}, "delta_mask=None must be"),
    ],
)
def test_a_setting_without_a_meaning_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = write(tmp_path / "own.json", {**OWN, **changes})
    with pytest.raises(ValueError, match=rf"own.json describes no pipeline: .*{message}"):
        read_pipeline(file)


@pytest.mark.parametrize("name", ["family", "action_horizon", "cameras", "quantiles"])
def test_a_missing_setting_is_named(tmp_path: Path, name: str) -> None:
    rest = {key: value for key, value in OWN.items() if key != name}
    file = write(tmp_path / "own.json", rest)
    with pytest.raises(ValueError, match=rf"a pipeline needs \['{name}'\]; give them, or"):
        read_pipeline(file)


def test_the_delta_mask_of_another_width_is_not_inherited() -> None:
    with pytest.raises(ValueError, match="action_dim=14 is not that of base='pi0_libero', so "):
        Pipeline.from_dict({"base": "pi0_libero", "action_dim": 14})


@pytest.mark.parametrize("text", ["", "[", "3", "[1]", "{'a': 1"])
@pytest.mark.parametrize("ending", [".json", ".yaml"])
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, text: str, ending: str) -> None:
    (tmp_path / f"own{ending}").write_text(text)
    with pytest.raises(ValueError, match=rf"own{ending} describes no pipeline: "):
        read_pipeline(tmp_path / f"own{ending}")


def test_a_file_that_does_not_exist_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no pipeline at own.json; it should be a JSON or"):
        pipeline_named("own.json")


def test_an_unknown_name_is_refused_with_the_nearest(base: Path) -> None:
    with pytest.raises(ValueError, match=r"'pi0_libro' is not one of .* mean 'pi0_libero' instead"):
        load(base, replace(CONFIG, pipeline="pi0_libro", unnormalized=True))


@pytest.mark.parametrize(
    ("family", "dims", "name"),
    [
        ("pi0", (8, 7), "pi0_libero"),
        ("pi0", (14, 14), "pi0_aloha"),
        ("pi05", (8, 8), "pi05_droid"),
        ("pi05", None, "pi05_libero"),
    ],
)
def test_the_nearest_pipeline_has_the_family_and_nearly_the_widths(
    family: Any, dims: tuple[int, int] | None, name: str
) -> None:
    assert nearest_pipeline(family, dims) == name


def test_without_a_pipeline_the_nearest_is_named() -> None:
    with pytest.raises(ValueError, match=r"--load.pip.*of \(8, 7\) dim.* is 'pi0_libero'"):
        load(openpi_folder("pi0"), CONFIG)


def test_the_pipeline_of_another_family_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"holds pi0 weights, but the pipeline is pi05's.*'pi0_l"):
        load(openpi_folder("pi0"), replace(CONFIG, pipeline="pi05_libero"))


def test_norm_stats_of_another_robot_are_refused_with_the_nearest_pipeline() -> None:
    with pytest.raises(ValueError, match=r"have 8 dimensions, the robot has 14; .*'pi0_libero'"):
        load(openpi_folder("pi0"), replace(CONFIG, pipeline="pi0_aloha"))


def test_without_widths_and_norm_stats_the_widths_are_asked_for(base: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "own.json", OWN)
    with pytest.raises(ValueError, match="state_dim=None and action_dim=None, and there are no"):
        load(base, replace(CONFIG, pipeline=str(file), unnormalized=True))


def test_a_named_asset_is_taken(base: Path) -> None:
    libero = openpi_folder("pi0") / "assets/physical-intelligence/libero/norm_stats.json"
    (base / "assets/libero").mkdir(parents=True)
    shutil.copy(libero, base / "assets/libero")
    write(base / "assets/trossen/norm_stats.json", STATS)
    named = replace(CONFIG, pipeline="pi0_libero", asset="libero")
    policy = load(base, named)
    assert policy.info.origin["asset_id"] == "libero"
    expected = json.loads(libero.read_text())["norm_stats"]["state"]["mean"]
    assert policy.preprocessor.config.state.mean == tuple(expected[:8])
    with pytest.raises(ValueError, match=r"several norm stats, .*'trossen'.*--load.asset"):
        load(base, replace(CONFIG, pipeline="pi0_libero"))
    with pytest.raises(ValueError, match=r"asset='trosen'; .* mean 'trossen'"):
        load(base, replace(named, asset="trosen"))


def test_unnormalized_leaves_the_checkpoints_norm_stats_aside() -> None:
    config = replace(CONFIG, pipeline="pi0_libero", unnormalized=True)
    policy = load(openpi_folder("pi0"), config)
    assert policy.preprocessor.config.normalization == "none"


@pytest.mark.parametrize(
    "changes",
    [
        {"unnormalized": True, "asset": "trossen"},
        {"unnormalized": True, "norm_stats": Path("norm_stats.json")},
        {"asset": "trossen", "norm_stats": Path("norm_stats.json")},
    ],
)
def test_options_that_contradict_each_other_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="contradict each other; set one of them"):
        LoadConfig(**changes)


@pytest.mark.parametrize("name", ["action_horizon", "execution_horizon", "flow_steps"])
@pytest.mark.parametrize("value", [0, -3])
def test_numbers_of_steps_below_one_are_refused(name: str, value: int) -> None:
    changes: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name}={value} must be at least 1"):
        LoadConfig(**changes)


ROBOT = {"base_0_rgb": "a", "left_wrist_0_rgb": "b", "right_wrist_0_rgb": "c"}


@pytest.mark.parametrize("names", list(itertools.permutations(ROBOT)))
def test_the_order_of_a_dict_is_not_that_of_the_network(names: tuple[str, ...]) -> None:
    shuffled = {name: ROBOT[name] for name in names}
    raw = observation(8, "a", "b", "c")
    folder = openpi_folder("pi0")
    expected = infer(
        load(folder, CONFIG, replace(PIPELINES["pi0_libero"], cameras=ROBOT)), raw, NOISE
    )
    pipeline = replace(PIPELINES["pi0_libero"], cameras=shuffled)
    assert np.array_equal(infer(load(folder, CONFIG, pipeline), raw, NOISE), expected)
    # one camera more than the pipeline has, in the middle of the network's
    two = replace(pipeline, cameras={"right_wrist_0_rgb": "c", "base_0_rgb": "a"})
    policy = load(folder, replace(CONFIG, cameras=shuffled), two)
    assert policy.preprocessor.config.pictures is not None
    assert tuple(policy.preprocessor.config.pictures.cameras) == CAMERAS
    assert np.array_equal(infer(policy, raw, NOISE), expected)


def test_a_saved_order_survives_sorted_keys() -> None:
    pictures = PicturesConfig(cameras={"b": "x", "a": "y"}, missing=("c",), order=("c", "b", "a"))
    assert list(pictures.cameras) == ["b", "a"]
    assert list(replace(pictures, cameras={"a": "y", "b": "x"}).cameras) == ["b", "a"]
    assert pictures.rewired({"a": "1", "c": "2"}).cameras == {"c": "2", "a": "1"}
    assert list(pictures.rewired({"a": "1", "c": "2"}).cameras) == ["c", "a"]


@pytest.mark.parametrize("names", [("d",), ("a", "a")])
def test_cameras_that_the_network_lacks_or_has_twice_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="the network, whose cameras are"):
        PicturesConfig(cameras={"a": "x"}, missing=names, order=("a", "b"))
