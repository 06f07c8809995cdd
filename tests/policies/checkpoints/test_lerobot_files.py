"""lerobot's JSON files: each setting is honored with lerobot's numbers, or rejected by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_fixtures import (
    AFTER,
    BEFORE,
    actions_of,
    drop_relative_steps,
    edit_config,
    edit_json,
    edit_stats,
    edit_step,
    edit_weights,
    lerobot_folder,
    robot_observation,
    stats_of,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from openpi_fixtures import FAMILIES, FIXTURES, TOKENIZER
from pitune.policies import LoadConfig, load
from pitune.policies.inference import observation
from pitune.policies.preprocessing.images import PicturesConfig, resized_pictures
from pitune.policies.preprocessing.tokenizer import Tokenizer

Change = Callable[[Path], object]
families = pytest.mark.parametrize("family", FAMILIES)


def model_space(folder: Path, actions: np.ndarray, family: str) -> np.ndarray:
    """Return actions before lerobot's unnormalization, by its own formulas."""
    stats = {key: value.numpy() for key, value in stats_of(folder).items()}
    if family == "pi0":
        return (actions - stats["action.mean"]) / stats["action.std"]
    low, high = stats["action.q01"], stats["action.q99"]
    return 2 * (actions - low) / (high - low) - 1


# honored


@families
def test_the_postprocessors_own_stats_unnormalize(family: str, tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path, family)
    before = actions_of(folder)
    edit_stats(folder, "post", lambda key, value: value + 1 if key.startswith("action") else value)
    # mean and both quantiles moved by 1, and so did the standard deviation
    stats = {key: value.numpy() for key, value in stats_of(folder, "pre").items()}
    expected = before + 1
    if family == "pi0":
        expected += model_space_of_pre(before, stats)
    with pytest.warns(UserWarning, match="the latter is used for both"):
        assert np.abs(actions_of(folder) - expected).max() < 1e-5


def model_space_of_pre(actions: np.ndarray, stats: dict[str, Any]) -> np.ndarray:
    return np.asarray((actions - stats["action.mean"]) / stats["action.std"])


@families
def test_a_postprocessor_that_leaves_actions_as_they_are_does(family: str, tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path, family)
    expected = model_space(folder, actions_of(folder), family)
    edit_json(
        folder / AFTER,
        lambda values: values["steps"][0]["config"]["norm_map"].update(ACTION="IDENTITY"),
    )
    with pytest.warns(UserWarning, match="unnormalized by none in policy_postprocessor.json"):
        assert np.abs(actions_of(folder) - expected).max() < 1e-5


UNNORMALIZED_STATES: dict[str, Change] = {
    "mode": lambda folder: edit_json(
        folder / BEFORE, lambda values: normalizer(values)["norm_map"].update(STATE="IDENTITY")
    ),
    "no mode": lambda folder: edit_json(
        folder / BEFORE, lambda values: normalizer(values)["norm_map"].pop("STATE")
    ),
    "not listed": lambda folder: edit_step(
        folder, "normalizer_processor", normalize_observation_keys=["observation.other"]
    ),
    "no feature": lambda folder: edit_json(
        folder / BEFORE, lambda values: normalizer(values)["features"].pop("observation.state")
    ),
    "another type": lambda folder: edit_json(
        folder / BEFORE,
        lambda values: normalizer(values)["features"]["observation.state"].update(type="ENV"),
    ),
}


def normalizer(values: dict[str, Any]) -> dict[str, Any]:
    (step,) = (s for s in values["steps"] if s["registry_name"] == "normalizer_processor")
    config: dict[str, Any] = step["config"]
    return config


@families
@pytest.mark.parametrize("case", UNNORMALIZED_STATES)
def test_a_state_that_no_step_normalizes_reaches_the_network_as_it_is(
    case: str, family: str, tmp_path: Path
) -> None:
    folder = lerobot_folder(tmp_path, family)
    UNNORMALIZED_STATES[case](folder)
    policy = load(folder, LoadConfig(tokenizer=TOKENIZER))
    raw = robot_observation()
    inputs = policy.model_input(observation(policy, raw), ("a",))
    expected = torch.from_numpy(raw["observation.state"])
    assert torch.allclose(inputs.state[0, :8], expected, atol=1e-6)
    # the action keeps the statistics of its own file
    reference = load(lerobot_folder(tmp_path / "reference", family)).preprocessor.config
    assert policy.preprocessor.config.action == reference.action


@families
def test_the_preprocessor_needs_no_stats_of_the_action(family: str, tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path, family)
    before = actions_of(folder)
    edit_stats(folder, "pre", lambda key, v: None if key.startswith("action") else v)
    assert np.array_equal(actions_of(folder), before)


@families
@pytest.mark.parametrize(
    ("step", "settings"),
    [
        ("tokenizer_processor", {"padding_side": "left"}),
        ("tokenizer_processor", {"padding": "longest"}),
        ("normalizer_processor", {"normalize_observation_keys": ["observation.state"]}),
        ("device_processor", {"device": "cuda", "float_dtype": "float32"}),
        ("pi05_prepare_state_tokenizer_processor_step", {"max_state_dim": 32}),
    ],
)
def test_settings_without_an_effect_on_one_robot_are_accepted(
    step: str, settings: dict[str, Any], family: str, tmp_path: Path
) -> None:
    folder = lerobot_folder(tmp_path, family)
    before = actions_of(folder)
    edit_step(folder, step, **settings)
    assert np.array_equal(actions_of(folder), before)


@families
def test_visual_normalization_without_statistics_changes_nothing(
    family: str, tmp_path: Path
) -> None:
    folder = lerobot_folder(tmp_path, family)
    before = actions_of(folder)
    edit_json(
        folder / BEFORE, lambda values: normalizer(values)["norm_map"].update(VISUAL="MEAN_STD")
    )
    assert np.array_equal(actions_of(folder), before)


@families
def test_cameras_that_are_swapped_by_renaming_are_swapped(family: str, tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path, family)
    raw = robot_observation()
    first, second = "observation.images.base_0_rgb", "observation.images.left_wrist_0_rgb"
    expected = actions_of(folder, {**raw, first: raw[second], second: raw[first]})
    edit_step(folder, "rename_observations_processor", rename_map={first: second, second: first})
    assert np.array_equal(actions_of(folder, raw), expected)
    assert not np.array_equal(
        actions_of(folder), actions_of(lerobot_folder(tmp_path / "x", family))
    )


def test_a_camera_that_fills_an_empty_one_is_seen(tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path)
    names = {"observation.images.third": "observation.images.empty_camera_0"}
    edit_step(folder, "rename_observations_processor", rename_map=names)
    pictures = load(folder).preprocessor.config.pictures
    assert pictures is not None
    assert pictures.cameras["empty_camera_0"] == "third"
    assert pictures.missing == ()


@pytest.mark.parametrize("spelling", [{"num_inference_steps": 4}, {"num_steps": 4}])
def test_both_spellings_of_the_flow_steps_are_honored(
    spelling: dict[str, int], tmp_path: Path
) -> None:
    folder = lerobot_folder(tmp_path)
    edit_json(folder / "config.json", lambda config: config.pop("num_inference_steps"))
    edit_config(folder, **spelling)
    assert load(folder).sampler.flow_steps == 4


@families
def test_the_older_name_of_the_relative_step_is_known(family: str, tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path, family)
    for name in ("relative_actions_processor", "absolute_actions_processor"):
        edit_step(folder, name, enabled=True)
    present = actions_of(folder)
    text = (folder / BEFORE).read_text()
    (folder / BEFORE).write_text(text.replace("relative_actions", "delta_actions"))
    assert np.array_equal(actions_of(folder), present)


def test_a_mark_before_the_json_is_skipped(tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path)
    before = actions_of(folder)
    for file in ("config.json", BEFORE, AFTER):
        (folder / file).write_text("\ufeff" + (folder / file).read_text(), encoding="utf-8")
    assert np.array_equal(actions_of(folder), before)


@families
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("computed", ["float32", "bfloat16"])
def test_the_config_determines_the_precision_whatever_is_stored(
    stored: torch.dtype, computed: str, family: str, tmp_path: Path
) -> None:
    folder = lerobot_folder(tmp_path, family)
    edit_json(folder / "arch.json", lambda arch: arch.pop("precision"))
    edit_config(folder, dtype=computed)
    edit_weights(folder, lambda weights: {k: v.to(stored) for k, v in weights.items()})
    network = load(folder).network
    assert network.compute_dtype == getattr(torch, computed)
    kept = torch.bfloat16 if stored == torch.bfloat16 else torch.float32
    assert {value.dtype for value in network.state_dict().values()} == {kept}


# versions


BARS = {"0.3": "left_top", "0.4": "minus_three", "0.5": "black"}


@families
@pytest.mark.parametrize("version", BARS)
def test_each_version_has_its_bars_and_its_padded_state(
    version: Any, family: str, tmp_path: Path
) -> None:
    folder = lerobot_folder(tmp_path, family)
    drop_relative_steps(folder)
    config = load(folder, LoadConfig(lerobot_version=version)).preprocessor.config
    assert config.pictures is not None
    assert config.prompt is not None
    assert config.pictures.bars == BARS[version]
    assert config.prompt.state_padding == (32 if (family, version) == ("pi05", "0.4") else 0)


@pytest.mark.parametrize("size", [(112, 224), (224, 112), (56, 224)])
def test_bars_lie_and_shine_as_in_each_version(size: tuple[int, int]) -> None:
    white = torch.full((1, 3, *size), 255, dtype=torch.uint8)
    short = min(size)

    def bars(kind: Any) -> Tensor:
        config = PicturesConfig(cameras={"a": "a"}, resize="torch", bars=kind)
        picture = resized_pictures([white], config)[0, 0, 0]
        # along the short side of the picture
        return picture[:, 0] if size[0] < size[1] else picture[0]

    start, end = (224 - short) // 2, (224 + short) // 2
    line = torch.arange(224)
    centered = (line >= start) & (line < end)
    assert torch.equal(bars("black"), torch.where(centered, 1.0, -1.0))
    assert torch.equal(bars("minus_three"), torch.where(centered, 1.0, -3.0))
    assert torch.equal(bars("left_top"), torch.where(line >= 224 - short, 1.0, -1.0))


def test_the_padding_of_the_state_determines_the_bars(tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path, "pi05")
    drop_relative_steps(folder)
    for padding, bars in ((32, "minus_three"), (0, "black")):
        pictures = load(folder, LoadConfig(state_padding=padding)).preprocessor.config.pictures
        assert pictures is not None
        assert pictures.bars == bars


def test_a_version_that_nothing_determines_is_asked_for(tmp_path: Path) -> None:
    # pictures that are square need no bars, others are rejected when they come or are announced
    folder = lerobot_folder(tmp_path)
    drop_relative_steps(folder)
    square, oblong = robot_observation(size=(100, 100)), robot_observation(size=(120, 160))
    assert np.array_equal(
        actions_of(folder, square), actions_of(folder, square, lerobot_version="0.4")
    )
    with pytest.raises(ValueError, match=r"\(120, 160\) pixels need bars .* lerobot_version='0.3'"):
        actions_of(folder, oblong)
    edit_json(
        folder / "config.json",
        lambda config: config["input_features"]["observation.images.base_0_rgb"].update(
            shape=[3, 480, 640]
        ),
    )
    with pytest.raises(ValueError, match=r"cameras {'base_0_rgb': \(480, 640\)}.*lerobot_version"):
        load(folder)
    assert not np.array_equal(
        actions_of(folder, oblong, lerobot_version="0.4"),
        actions_of(folder, oblong, lerobot_version="0.5"),
    )


@pytest.mark.parametrize("version", ["0.6", "0.2", "", "04"])
def test_other_versions_are_named(version: Any) -> None:
    with pytest.raises(ValueError, match=rf"lerobot_version='{version}' is unknown; valid: '0.3',"):
        LoadConfig(lerobot_version=version)


def legacy_folder(parent: Path) -> Path:
    """Lay out a π0 as lerobot 0.3 did: stats among the weights, and no step files."""
    folder = lerobot_folder(parent)
    (file,) = folder.glob("policy_preprocessor_*.safetensors")
    stats = load_file(file)
    for file in folder.glob("policy_*"):
        file.unlink()
    edit_json(folder / "config.json", lambda config: [config.pop(key) for key in NEWER])
    edit_config(folder, num_steps=10, resize_imgs_with_padding=[224, 224], proj_width=1024)
    edit_config(folder, adapt_to_pi_aloha=False, use_delta_joint_actions_aloha=False)

    def with_stats(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        groups = {
            "normalize_inputs.buffer_observation_state": "observation.state",
            "normalize_targets.buffer_action": "action",
            "unnormalize_outputs.buffer_action": "action",
        }
        return weights | {
            f"{group}.{name}": stats[f"{key}.{name}"]
            for group, key in groups.items()
            for name in ("mean", "std")
        }

    edit_weights(folder, with_stats)
    return folder


NEWER = ("num_inference_steps", "image_resolution", "min_period", "max_period", "dtype")


def test_a_folder_of_lerobot_0_3_has_its_stats_steps_and_bars(tmp_path: Path) -> None:
    folder = legacy_folder(tmp_path / "old")
    assert np.array_equal(actions_of(folder), actions_of(lerobot_folder(tmp_path / "new")))
    pictures = load(folder).preprocessor.config.pictures
    assert pictures is not None
    assert pictures.bars == "left_top"


LEGACY_FAULTS: dict[str, tuple[Change, str]] = {
    "aloha's joints": (
        lambda f: edit_config(f, adapt_to_pi_aloha=True),
        "adapt_to_pi_aloha=True, which is not implemented; only False is",
    ),
    "aloha's deltas": (
        lambda f: edit_config(f, use_delta_joint_actions_aloha=True),
        "use_delta_joint_actions_aloha=True, which is not",
    ),
    "no resizing": (
        lambda f: edit_config(f, resize_imgs_with_padding=None),
        r"resize_imgs_with_padding=None, but the weights are those of \[224, 224\]",
    ),
    "two numbers of steps": (
        lambda f: edit_config(f, num_inference_steps=5),
        "num_steps=10 and num_inference_steps=5; remove the wrong one",
    ),
    "stats never computed": (
        lambda f: edit_weights(
            f, lambda w: {k: v * torch.inf if "buffer" in k else v for k, v in w.items()}
        ),
        "not finite",
    ),
    "no stats": (
        lambda f: edit_weights(f, lambda w: {k: v for k, v in w.items() if "buffer" not in k}),
        "has no norm stats",
    ),
    "no stats of the action": (
        lambda f: edit_weights(f, lambda w: {k: v for k, v in w.items() if "outputs" not in k}),
        "lack action.mean or action.std",
    ),
    "another mode": (
        lambda f: edit_config(f, normalization_mapping={"STATE": "MIN_MAX", "ACTION": "MIN_MAX"}),
        "normalizes its state by MIN_MAX; both must use the same one of",
    ),
    "no mode": (
        lambda f: edit_config(f, normalization_mapping=None),
        "norm_map=None, which must map",
    ),
}


@pytest.mark.parametrize("case", LEGACY_FAULTS)
def test_faults_of_older_folders_are_named(case: str, tmp_path: Path) -> None:
    folder = legacy_folder(tmp_path)
    change, message = LEGACY_FAULTS[case]
    change(folder)
    with pytest.raises(ValueError, match=message):
        load(folder)


# rejected


def insert(file: str, position: int, step: Any) -> Change:
    return lambda folder: edit_json(
        folder / file, lambda values: values["steps"].insert(position, step)
    )


def reorder(file: str, name: str, position: int) -> Change:
    def change(values: dict[str, Any]) -> None:
        (step,) = (s for s in values["steps"] if s["registry_name"] == name)
        values["steps"].remove(step)
        values["steps"].insert(position, step)

    return lambda folder: edit_json(folder / file, change)


def remove(file: str, name: str) -> Change:
    return lambda folder: edit_json(
        folder / file,
        lambda values: values.update(
            steps=[step for step in values["steps"] if step["registry_name"] != name]
        ),
    )


def settings(name: str, **values: Any) -> Change:
    return lambda folder: edit_step(folder, name, **values)


def config(**values: Any) -> Change:
    return lambda folder: edit_config(folder, **values)


def feature(group: str, key: str, **values: Any) -> Change:
    return lambda folder: edit_json(
        folder / "config.json", lambda c: c[group].setdefault(key, {}).update(values)
    )


def imagenet(folder: Path) -> None:
    edit_json(folder / BEFORE, lambda v: normalizer(v)["norm_map"].update(VISUAL="MEAN_STD"))
    renamed = {"observation.state.min": "observation.images.base_0_rgb.mean"}
    (file,) = folder.glob("policy_preprocessor_*.safetensors")
    tensors = {renamed.get(key, key): value for key, value in load_file(file).items()}
    tensors["observation.images.base_0_rgb.mean"] = torch.zeros(3, 1, 1)
    file.unlink()
    save_file(tensors, file)


FAULTS: dict[str, tuple[Change, str]] = {
    # unknown steps, before, between and after the known ones
    "unknown first": (
        insert(BEFORE, 0, {"registry_name": "scale_state", "config": {}}),
        "policy_preprocessor.json has the step 'scale_state' at position 0, which is not known",
    ),
    "unknown last": (
        insert(BEFORE, 99, {"registry_name": "clip_state", "config": {}}),
        "has the step 'clip_state' at position",
    ),
    "unknown class": (
        insert(BEFORE, 2, {"class": "mine.steps.Flip", "config": {}}),
        "has the step 'mine.steps.Flip' at position 2",
    ),
    "unknown after the policy": (
        insert(AFTER, 0, {"registry_name": "clip_actions", "config": {}}),
        "policy_postprocessor.json has the step 'clip_actions' at position 0",
    ),
    "unknown at the end": (
        insert(AFTER, 99, {"registry_name": "smooth_actions", "config": {}}),
        "has the step 'smooth_actions'",
    ),
    "a preprocessor's step in the postprocessor": (
        insert(AFTER, 0, {"registry_name": "normalizer_processor", "config": {}}),
        "policy_postprocessor.json has the step 'normalizer_processor'",
    ),
    "no step": (insert(BEFORE, 1, None), "has the step None at position 1"),
    "step without settings": (
        insert(AFTER, 1, {"registry_name": "device_processor", "config": []}),
        r"'device_processor' has config=\[\], which must be {}",
    ),
    "twice": (
        insert(AFTER, 0, {"registry_name": "unnormalizer_processor", "config": {}}),
        "has the step 'unnormalizer_processor' twice",
    ),
    "unknown setting": (
        settings("normalizer_processor", clip=5.0),
        "'normalizer_processor' has clip=5.0, which is not known",
    ),
    "no list of steps": (
        lambda folder: edit_json(folder / AFTER, lambda v: v.update(steps=None)),
        "policy_postprocessor.json has steps=None, which must be a list",
    ),
    "empty list of steps": (
        lambda folder: edit_json(folder / BEFORE, lambda v: v.update(steps=[])),
        "no steps of policy_preprocessor.json",
    ),
    "empty file": (lambda f: (f / AFTER).write_text("{}"), "policy_postprocessor.json is empty"),
    "no postprocessor": (
        lambda folder: (folder / AFTER).unlink(),
        "no steps of policy_postprocessor.json",
    ),
    "no preprocessor": (
        lambda folder: (folder / BEFORE).unlink(),
        "no steps of policy_preprocessor.json",
    ),
    "no file of stats": (
        lambda f: next(f.glob("policy_post*.safetensors")).unlink(),
        "no weights at .*policy_postprocessor_step_0",
    ),
    # order and absence
    "normalized before renamed": (
        reorder(BEFORE, "normalizer_processor", 0),
        "before 'rename_observations_processor'|before 'relative_actions_processor'",
    ),
    "relative after normalized": (
        reorder(BEFORE, "relative_actions_processor", 99),
        "'normalizer_processor' before 'relative_actions_processor'",
    ),
    "absolute before unnormalized": (
        reorder(AFTER, "absolute_actions_processor", 0),
        "'absolute_actions_processor' before 'unnormalizer_processor'",
    ),
    "no tokenizer": (remove(BEFORE, "tokenizer_processor"), "lacks the step 'tokenizer_processor'"),
    # settings of steps
    "no truncation": (
        settings("tokenizer_processor", truncation=False),
        "'tokenizer_processor' has truncation=False; valid are",
    ),
    "truncation null": (settings("tokenizer_processor", truncation=None), "truncation=None"),
    "padding": (settings("tokenizer_processor", padding="do_not_pad"), "padding='do_not_pad'"),
    "task key": (settings("tokenizer_processor", task_key="language"), "task_key='language'"),
    "no length": (settings("tokenizer_processor", max_length=None), "max_length=None, which must"),
    "no tokens": (settings("tokenizer_processor", max_length=0), "max_length=0, which must"),
    "other tokenizer": (
        settings("tokenizer_processor", tokenizer_name="google/gemma-2b"),
        "tokenizer_name='google/gemma-2b', which is neither PaliGemma's nor a folder",
    ),
    "half precision": (
        settings("device_processor", float_dtype="bfloat16"),
        "'device_processor' has float_dtype='bfloat16'",
    ),
    "relative only before": (
        settings("relative_actions_processor", enabled=True),
        "enabled=True, but 'absolute_actions_processor'",
    ),
    "absolute only after": (
        settings("absolute_actions_processor", enabled=True),
        "enabled=False, but 'absolute_actions_processor'",
    ),
    "relative null": (settings("relative_actions_processor", enabled=None), "enabled=None; valid"),
    "relative as text": (settings("relative_actions_processor", enabled="yes"), "enabled='yes'"),
    "eps null": (settings("normalizer_processor", eps=None), "eps=None, which must be a number"),
    "eps negative": (settings("normalizer_processor", eps=-1.0), "eps=-1.0, which must be"),
    "features null": (
        settings("normalizer_processor", features={"observation.state": None}),
        "features=.*, each of which must have a type",
    ),
    "modes null": (
        settings("normalizer_processor", norm_map=None),
        "norm_map=None, which must map",
    ),
    "unknown mode": (
        settings("normalizer_processor", norm_map={"STATE": "LOG"}),
        "normalizes its state by LOG; both must",
    ),
    "mode of the action": (
        settings("unnormalizer_processor", norm_map={"ACTION": "QUANTILE10"}),
        "policy_postprocessor.json normalizes its action by QUANTILE10",
    ),
    "pictures": (imagenet, "normalizes pictures by VISUAL=MEAN_STD, which"),
    "stats elsewhere": (
        lambda f: edit_json(f / AFTER, lambda v: v["steps"][0].update(state_file="../x")),
        "state_file='../x', which must be the name of a file beside it",
    ),
    # names
    "state renamed": (
        settings(
            "rename_observations_processor",
            rename_map={"observation.agent_pos": "observation.state"},
        ),
        "must rename each camera once and not observation.state",
    ),
    "two cameras in one": (
        settings(
            "rename_observations_processor",
            rename_map={"observation.images.a": "x", "observation.images.b": "x"},
        ),
        "must rename each camera once",
    ),
    "camera renamed away": (
        settings(
            "rename_observations_processor",
            rename_map={"observation.images.base_0_rgb": "observation.images.top"},
        ),
        r"renames \['base_0_rgb'\] and leaves nothing",
    ),
    # statistics against features
    "fewer stats than dimensions": (
        lambda f: edit_stats(f, "post", lambda k, v: v[:6] if k.startswith("action") else v),
        r"has action of shape \[7\], but its norm stats have 6 dimensions",
    ),
    "fewer stats of the state": (
        lambda f: edit_stats(f, "pre", lambda k, v: v[:7] if k.startswith("obs") else v),
        r"has observation.state of shape \[8\], but its norm stats have 7",
    ),
    "stats of the action are missing": (
        lambda f: edit_stats(f, "post", lambda k, v: None if k.startswith("action") else v),
        "lack action.mean or action.std",
    ),
    # config.json
    "type": (config(type="pi0_fast"), "type='pi0_fast'; only 'pi0' and 'pi05' are supported"),
    "type null": (config(type=None), "type=None; only"),
    "two observations": (config(n_obs_steps=2), "n_obs_steps=2, which is not implemented; only 1"),
    "other times": (config(max_period=10.0), "max_period=10.0, which is not implemented"),
    "times null": (config(min_period=None), "min_period=None, which is not implemented"),
    "aloha": (config(adapt_to_pi_aloha=True), "adapt_to_pi_aloha=True, which is not implemented"),
    "aloha as text": (config(adapt_to_pi_aloha="true"), "adapt_to_pi_aloha='true', which is not"),
    "memory": (config(use_visual_memory=True), "use_visual_memory=True, which is not implemented"),
    "adapter": (config(use_peft=True), "use_peft=True, but there is no adapter_config.json"),
    "adapter null": (config(use_peft=None), "use_peft=None; it must be true or false"),
    "precision": (config(dtype="float16"), "dtype='float16'; lerobot computes in"),
    "resolution": (config(image_resolution=[448, 448]), r"image_resolution=\[448, 448\], but the"),
    "oblong": (config(image_resolution=[224, 320]), r"image_resolution=\[224, 320\], but the"),
    "resolution null": (config(image_resolution=None), "image_resolution=None, but the weights"),
    "width": (config(max_action_dim=14), "max_action_dim=14, but the weights are those of 32"),
    "long execution": (config(n_action_steps=11), "n_action_steps=11 above chunk_size=10"),
    "no features": (config(input_features={}), "has no width of observation.state"),
    "features are null": (config(input_features=None), "has no width of observation.state"),
    "outputs are null": (config(output_features=None), "has no width of action"),
    "no width": (feature("output_features", "action", shape=[]), "has no width of action"),
    "width null": (feature("input_features", "observation.state", shape=None), "has no width of o"),
    "no camera": (
        lambda f: edit_json(
            f / "config.json",
            lambda c: c.update(
                input_features={"observation.state": c["input_features"]["observation.state"]}
            ),
        ),
        "has no camera among its input_features",
    ),
    "depth": (
        feature("input_features", "observation.images.d", type="VISUAL", shape=[1, 224, 224]),
        r"observation.images.d of shape \[1, 224, 224\]; pictures must have three channels",
    ),
    "picture without shape": (
        feature("input_features", "observation.images.d", type="VISUAL", shape=None),
        "observation.images.d of shape None",
    ),
    "feature without type": (
        feature("input_features", "observation.images.d", shape=[3, 2, 2]),
        "input feature observation.images.d=",
    ),
    **{
        f"{name} {value}": (config(**{name: value}), f"{name}={value!r}, which must be a positive")
        for name in ("chunk_size", "n_action_steps", "num_inference_steps", "max_action_dim")
        for value in (None, 0, -1, 2.5, "10", True)
    },
}


@families
@pytest.mark.parametrize("case", FAULTS)
def test_settings_that_would_be_lost_are_named(case: str, family: str, tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path, family)
    change, message = FAULTS[case]
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load(folder)
    assert ";" in str(error.value) or "," in str(error.value)  # what to do about it


def test_quantiles_that_were_never_computed_are_named(tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path, "pi05")
    edit_stats(folder, "pre", lambda key, value: None if key.endswith("q99") else value)
    with pytest.raises(ValueError, match=r"by QUANTILES, but the norm stats .* lack .*state.q99"):
        load(folder)


def test_a_width_of_the_state_that_the_weights_contradict_is_named(tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path)
    edit_config(folder, max_state_dim=64)
    with pytest.raises(ValueError, match="max_state_dim=64, but the weights are those of 32"):
        load(folder)


def test_the_other_familys_prompt_is_named(tmp_path: Path) -> None:
    for family, name in zip(
        FAMILIES,
        ("pi0_new_line_processor", "pi05_prepare_state_tokenizer_processor_step"),
        strict=True,
    ):
        folder = lerobot_folder(tmp_path / "removed", family)
        remove(BEFORE, name)(folder)
        with pytest.raises(ValueError, match=f"lacks the step '{name}', with which lerobot makes"):
            load(folder)
    folder = lerobot_folder(tmp_path / "added", "pi05")
    insert(BEFORE, 2, {"registry_name": "pi0_new_line_processor", "config": {}})(folder)
    with pytest.raises(ValueError, match="'pi0_new_line_processor', which is not pi05's"):
        load(folder)


@pytest.mark.parametrize("field", ["brand_new", "time_sampling_beta_alpha"])
def test_fields_of_newer_versions_are_warned_of_if_they_are_set(field: str, tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path)
    edit_config(folder, newer=None, other=False, memory_frames=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(folder)  # unset ones are silent
    edit_config(folder, **{field: 3.0})
    with pytest.warns(UserWarning, match=rf"sets {{'{field}': 3.0}}, which pitune does not use"):
        load(folder)


def test_a_folder_of_the_checkpoint_is_its_tokenizer(tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path)
    edit_step(folder, "tokenizer_processor", tokenizer_name="words")
    (folder / "words").mkdir()
    (folder / "words" / "tokenizer.model").write_bytes(TOKENIZER.read_bytes())
    tokenizer = load(folder).info.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.file.parent.name == "words"


def test_a_folder_without_its_config_is_not_openpis(tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config.json in .*, which has lero"):
        load(folder)


@families
def test_the_settings_that_lerobot_wrote_itself_are_all_known(family: str, tmp_path: Path) -> None:
    written = FIXTURES / "lerobot" / f"{family}_tiny" / "pretrained_model" / "config.json"
    assert json.loads(written.read_text())["type"] == family
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(lerobot_folder(tmp_path, family))
