"""A policy that was changed and saved acts the same when it is loaded again, in every format."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from openpi_fixtures import FIXTURES, TOKENIZER, load_openpi, openpi_folder, openpi_weights
from pitune import policies
from pitune.policies import (
    PIPELINES,
    FinetuneConfig,
    FlowPolicy,
    LoadConfig,
    LoRAConfig,
    NormStats,
    SteeringConfig,
    infer,
    load,
    save,
)
from pitune.policies.checkpoints.keys import EMBEDDING, LM_HEAD

FORMATS = ("openpi", "lerobot", "pitune")
FAMILIES = ("pi0", "pi05")
CONFIG = LoadConfig(tokenizer=TOKENIZER)
Change = Callable[[FlowPolicy], FlowPolicy]


@pytest.fixture
def lerobot(tmp_path: Path) -> Callable[[str], Path]:
    """Lay out a checkpoint as lerobot does."""

    def make(family: str) -> Path:
        folder = tmp_path / f"lerobot_{family}"
        shutil.copytree(FIXTURES / "lerobot" / f"{family}_tiny" / "pretrained_model", folder)
        shutil.copy(FIXTURES / "openpi" / f"{family}_tiny" / "arch.json", folder)
        tensors = {f"model.{key}": value for key, value in openpi_weights(family).items()}
        tensors[f"model.{EMBEDDING}"] = tensors[f"model.{LM_HEAD}"].clone()
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def source(family: str, origin: str, lerobot: Callable[[str], Path]) -> FlowPolicy:
    """Return a policy that came from one of the two packages."""
    if origin == "lerobot":
        return load(lerobot(family), CONFIG)
    return load_openpi(family, discrete_state=family == "pi05", action_horizon=10)


def config_with(policy: FlowPolicy, **changes: Any) -> FlowPolicy:
    config = replace(policy.preprocessor.config, **changes)
    return FlowPolicy(policy.network, config, policy.sampler, info=policy.info)


def sampler_with(policy: FlowPolicy, **changes: Any) -> FlowPolicy:
    return policy.replace(sampler=replace(policy.sampler, **changes))


def cameras_with(policy: FlowPolicy, *robot_names: str) -> FlowPolicy:
    """Give the network's first cameras other names, and the rest none."""
    pictures = policy.preprocessor.config.pictures
    assert pictures is not None
    names = [name for name in pictures.network_cameras if not name.startswith("empty_camera_")]
    return config_with(
        policy, pictures=pictures.rewired(dict(zip(names, robot_names, strict=False)))
    )


def last_camera_alone(policy: FlowPolicy) -> FlowPolicy:
    pictures = policy.preprocessor.config.pictures
    assert pictures is not None
    last = list(pictures.cameras)[-1]
    return config_with(policy, pictures=pictures.rewired({last: "wrist"}))


def prompt_with(policy: FlowPolicy, **changes: Any) -> FlowPolicy:
    prompt = policy.preprocessor.config.prompt
    assert prompt is not None
    return config_with(policy, prompt=replace(prompt, **changes))


def stats(dim: int, shift: float) -> NormStats:
    rows = {"mean": 0.1, "std": 0.7, "q01": -0.9, "q99": 1.1}
    return NormStats(
        **{name: tuple(value + shift * i for i in range(dim)) for name, value in rows.items()}
    )


def flat(values: NormStats, index: int) -> NormStats:
    """Return statistics of a dimension that never moved."""
    assert values.q01 is not None
    assert values.q99 is not None
    std = (*values.std[:index], 0.0, *values.std[index + 1 :])
    q99 = (*values.q99[:index], values.q01[index], *values.q99[index + 1 :])
    return replace(values, std=std, q99=q99)


def no_spread(policy: FlowPolicy) -> FlowPolicy:
    config = policy.preprocessor.config
    return config_with(policy, state=flat(config.state, 2), action=flat(config.action, 3))


def with_lora(policy: FlowPolicy) -> FlowPolicy:
    tuned = policies.apply_finetuning(policy, FinetuneConfig(trainable=(), lora=LoRAConfig(rank=4)))
    for name, parameter in tuned.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, std=0.05)
    return tuned


def in_bfloat16(policy: FlowPolicy) -> FlowPolicy:
    return policies.apply_finetuning(
        policy, FinetuneConfig(trainable=("action_expert",), dtype="bfloat16")
    )


CHANGES: dict[str, Change] = {
    "nothing": lambda p: p,
    "renamed cameras": lambda p: cameras_with(p, "front", "wrist"),
    "swapped cameras": lambda p: cameras_with(p, "left_wrist_0_rgb", "base_0_rgb"),
    "one camera less": lambda p: cameras_with(p, "front"),
    "the last camera alone": last_camera_alone,
    "new norm stats": lambda p: config_with(p, state=stats(8, 0.01), action=stats(7, 0.02)),
    "another robot": lambda p: config_with(
        p, state=stats(5, 0.01), action=stats(6, 0.02), delta_mask=()
    ),
    "relative actions": lambda p: config_with(p, delta_mask=(True, False, True)),
    "absolute actions": lambda p: config_with(p, delta_mask=()),
    "least scale": lambda p: config_with(p, min_scale=0.8),
    "no spread": no_spread,
    "other constants": lambda p: config_with(p, epsilon=1e-3, epsilon_out=1e-3),
    "flow steps": lambda p: sampler_with(p, flow_steps=4),
    "executed actions": lambda p: sampler_with(p, execution_horizon=3),
    "a longer prompt": lambda p: prompt_with(p, max_tokens=120),
    "low-rank updates": with_lora,
    "bfloat16": in_bfloat16,
}


def observation_for(policy: FlowPolicy) -> dict[str, Any]:
    config, rng = policy.preprocessor.config, np.random.RandomState(0)
    assert config.pictures is not None
    pictures = {
        f"image/{camera}": rng.randint(0, 256, (224, 224, 3)).astype(np.uint8)
        for camera in sorted(config.pictures.cameras.values())
    }
    state = rng.uniform(-0.5, 0.5, config.state.dim).astype(np.float32)
    return {"state": state, **pictures, "prompt": "put the bowl"}


NOISE = np.random.RandomState(7).randn(10, 32).astype(np.float32)


CASES = [
    (family, origin, fmt, change)
    for family in FAMILIES
    for origin in ("openpi", "lerobot")
    for fmt in FORMATS
    for change in CHANGES
    # lerobot's scale without spread is 1e-8, and openpi's are 1e-6 at least
    if (origin, fmt, change) != ("lerobot", "openpi", "no spread")
    # the families share the code of these
    if family == "pi0" or change in ("nothing", "no spread", "other constants", "another robot")
]


@pytest.mark.parametrize(("family", "origin", "fmt", "change"), CASES)
@pytest.mark.filterwarnings("ignore:.*will differ")
@pytest.mark.filterwarnings("ignore:norm stats of .* vary by less")
def test_a_changed_policy_is_saved_as_it_is(
    family: str,
    origin: str,
    fmt: str,
    change: str,
    lerobot: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    policy = CHANGES[change](source(family, origin, lerobot))
    save(policy, tmp_path / "saved", format=fmt)
    again = load(tmp_path / "saved", CONFIG)
    raw = observation_for(policy)
    actions = infer(policy, raw, NOISE)
    # flow times are accumulated by one package and computed by the other
    tolerance = {"bfloat16": 5e-2}.get(change, 1e-6 if fmt == "pitune" else 3e-4)
    assert np.abs(infer(again, raw, NOISE) - actions).max() < tolerance
    assert again.sampler.flow_steps == policy.sampler.flow_steps
    assert again.sampler.execution_horizon == policy.sampler.execution_horizon
    assert again.network.compute_dtype == policy.network.compute_dtype


REFUSED: dict[str, Change] = {
    "another solver": lambda p: sampler_with(p, solver="midpoint"),
    "a noise actor": lambda p: p.with_noise_source(SteeringConfig()),
    "a padded state in the prompt": lambda p: prompt_with(p, discrete_state=True, state_padding=32),
}


@pytest.mark.parametrize("change", REFUSED)
@pytest.mark.parametrize("fmt", ["openpi", "lerobot"])
@pytest.mark.parametrize("origin", ["openpi", "lerobot"])
def test_a_change_that_a_package_cannot_express_is_refused(
    origin: str, fmt: str, change: str, lerobot: Callable[[str], Path], tmp_path: Path
) -> None:
    policy = REFUSED[change](source("pi05", origin, lerobot))
    words = {
        "another solver": "solver='midpoint', but",
        "a noise actor": "this policy is steered",
        "a padded state in the prompt": "state_padding",
    }
    with pytest.raises(ValueError, match=rf"{words[change]}.*format='pitune'"):
        save(policy, tmp_path / "saved", format=fmt)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scale_below_openpis_least_is_refused(
    family: str, lerobot: Callable[[str], Path], tmp_path: Path
) -> None:
    policy = no_spread(source(family, "lerobot", lerobot))
    with pytest.raises(ValueError, match=r"openpi cannot express this policy: .*state\[2\] \(cen"):
        save(policy, tmp_path / "saved", format="openpi")


def test_lerobot_takes_no_picture_for_two_places(
    lerobot: Callable[[str], Path], tmp_path: Path
) -> None:
    policy = cameras_with(source("pi0", "lerobot", lerobot), "front", "front")
    with pytest.raises(ValueError, match=r"give the pictures of \['front'\] to several cameras"):
        save(policy, tmp_path / "saved", format="lerobot")


@pytest.mark.parametrize("family", FAMILIES)
def test_openpis_formula_gives_the_policys_scales(family: str, tmp_path: Path) -> None:
    """openpi adds 1e-6 and has no least scale; the written stats make up for both."""
    policy = CHANGES["no spread"](load_openpi(family))
    policy = config_with(policy, min_scale=0.3, epsilon=1e-4, epsilon_out=1e-5)
    save(policy, tmp_path / "saved", format="openpi")
    (file,) = (tmp_path / "saved").rglob("norm_stats.json")
    content = json.loads(file.read_text())["norm_stats"]
    state = np.linspace(-1, 1, 8)
    rows = {name: np.array(row) for name, row in content["state"].items()}
    if family == "pi0":
        expected = (state - rows["mean"]) / (rows["std"] + 1e-6)
    else:
        expected = (state - rows["q01"]) / (rows["q99"] - rows["q01"] + 1e-6) * 2 - 1
    ours = policy.preprocessor.normalize_state(torch.from_numpy(state)[None])[0, :8]
    assert np.abs(ours.numpy() - expected).max() < 1e-5

    action = np.linspace(-1, 1, 7)
    rows = {name: np.array(row) for name, row in content["actions"].items()}
    if family == "pi0":
        expected = action * (rows["std"] + 1e-6) + rows["mean"]
    else:
        expected = (action + 1) / 2 * (rows["q99"] - rows["q01"] + 1e-6) + rows["q01"]
    padded = torch.zeros(1, 1, 32)
    padded[0, 0, :7] = torch.from_numpy(action)
    mask = replace(policy.preprocessor.config, delta_mask=())
    scaler = policies.Preprocessor(mask, 32, 32)
    assert np.abs(scaler.unnormalize_action(padded)[0, 0].numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_scales_are_the_references_where_nothing_moved(family: str, tmp_path: Path) -> None:
    """openpi divides by the standard deviation plus 1e-6, however small it is."""
    folder = tmp_path / "flat"
    shutil.copytree(openpi_folder(family), folder)
    shutil.copy(openpi_folder(family).parent / "arch.json", folder)
    file = next(folder.rglob("norm_stats.json"))
    content = json.loads(file.read_text())
    values = content["norm_stats"]["state"]
    values["std"][2], values["q99"][2] = 0.0, values["q01"][2]
    file.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"vary by less than 0.0001 in dimensions {'state': \[2\]"):
        policy = load(folder, CONFIG, PIPELINES[f"{family}_libero"])
    expected = 1e-6 if family == "pi0" else 0.5e-6
    assert float(policy.preprocessor.state_scale[2]) == pytest.approx(expected)


@pytest.mark.parametrize("fmt", ["openpi", "lerobot"])
@pytest.mark.filterwarnings("ignore:.*will differ")
def test_quantiles_that_were_never_computed_are_not_written(fmt: str, tmp_path: Path) -> None:
    policy = load_openpi("pi0")
    config = policy.preprocessor.config
    bare = [
        NormStats.without_quantiles(part.mean, part.std) for part in (config.state, config.action)
    ]
    policy = config_with(policy, state=bare[0], action=bare[1])
    save(policy, tmp_path / "saved", format=fmt)
    if fmt == "openpi":
        (file,) = (tmp_path / "saved").rglob("norm_stats.json")
        content = json.loads(file.read_text())["norm_stats"]
        assert {name for part in content.values() for name in part} == {"mean", "std"}
        return
    for file in (tmp_path / "saved").glob("policy_*.safetensors"):
        assert {name.rpartition(".")[2] for name in load_file(file)} == {"mean", "std"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_without_norm_stats_gets_those_that_change_nothing(
    family: str, tmp_path: Path
) -> None:
    """openpi has no unnormalized policies."""
    config = replace(CONFIG, unnormalized=True)
    policy = load(openpi_folder(family), config, PIPELINES[f"{family}_libero"])
    assert policy.preprocessor.config.normalization == "none"
    save(policy, tmp_path / "saved", format="openpi")
    again = load(tmp_path / "saved", CONFIG)
    raw = observation_for(policy)
    assert np.abs(infer(again, raw, NOISE) - infer(policy, raw, NOISE)).max() < 1e-5


def test_the_training_settings_of_lerobots_config_are_kept_when_it_changes(
    lerobot: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = lerobot("pi0")
    before = json.loads((folder / "config.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(cameras_with(load(folder, CONFIG), "front"), tmp_path / "saved", format="lerobot")
    after = json.loads((tmp_path / "saved/config.json").read_text())
    assert before.keys() <= after.keys()
    changed = {key for key in before if before[key] != after[key]}
    assert changed <= {"input_features", "empty_cameras", "relative_exclude_joints"}
