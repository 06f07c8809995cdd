"""Damaged and unsuitable checkpoints: the message names the fault and the way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from openpi_fixtures import FIXTURES, load_openpi, openpi_folder, openpi_weights
from pitune.policies import FlowPolicy, LoadConfig, NormStats, load, save
from pitune.policies.checkpoints.keys import EMBEDDING, LM_HEAD
from pitune.policies.checkpoints.lerobot_read import LerobotFolder, preprocessor_config
from pitune.policies.checkpoints.weights import Heads, rename_weights, sizes_of

LIBERO = LoadConfig(pipeline="pi0_libero")
VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of openpi's π0 to spoil."""
    shutil.copytree(openpi_folder("pi0"), tmp_path / "openpi")
    shutil.copy(openpi_folder("pi0").parent / "arch.json", tmp_path / "openpi")
    return tmp_path / "openpi"


@pytest.fixture
def lerobot(tmp_path: Path) -> Path:
    """A π0 as lerobot lays it out."""
    folder = tmp_path / "lerobot"
    shutil.copytree(FIXTURES / "lerobot" / "pi0_tiny" / "pretrained_model", folder)
    shutil.copy(openpi_folder("pi0").parent / "arch.json", folder)
    weights = openpi_weights("pi0")
    weights[EMBEDDING] = weights[LM_HEAD].clone()
    save_file({f"model.{k}": v for k, v in weights.items()}, folder / "model.safetensors")
    return folder


def change_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def test_a_tensor_in_two_shards_is_named(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "model-2.safetensors")
    with pytest.raises(ValueError, match=r"holds 'action_in_proj.bias' in several files; remove"):
        load(folder, LIBERO)


def test_two_weights_of_one_name_are_refused() -> None:
    weights = openpi_weights("pi0")
    weights["model.action_in_proj.bias"] = weights["action_in_proj.bias"]
    with pytest.raises(
        ValueError, match=r"two weights are called 'action_in_proj.bias'; the check"
    ):
        rename_weights(weights)


def lose(*names: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: [weights.pop(name) for name in names]


@pytest.mark.parametrize(
    ("change", "heads", "message"),
    [
        (lose("state_proj.weight"), Heads(), r"neither π0's nor π0.5's: .* there are 0, and the k"),
        (
            lambda weights: weights.update({"time_mlp_in.weight": torch.zeros(1)}),
            Heads(),
            r"neither π0's nor π0.5's: .* there are 2, and the keys begin",
        ),
        (lose("action_in_proj.weight"), Heads(), r"lacks the weight 'action_in_proj.weight'; take"),
        (lose(), Heads(), r"vision tower is 32 wide, .* 72 channels per head; write the number of"),
        (lose(), Heads(num_heads=7), r"128 query and 16 key channels do not make 7 query and 1 ke"),
    ],
)
def test_weights_whose_sizes_cannot_be_inferred_are_named(
    change: Callable[[dict[str, Tensor]], object], heads: Heads, message: str
) -> None:
    weights = rename_weights(openpi_weights("pi0"))
    change(weights)
    with pytest.raises(ValueError, match=message):
        sizes_of(weights, heads, action_horizon=10)


def test_several_norm_stats_are_listed(folder: Path) -> None:
    stats = folder / "assets/physical-intelligence/libero/norm_stats.json"
    (folder / "assets/other").mkdir()
    shutil.copy(stats, folder / "assets/other")
    with pytest.raises(
        ValueError, match=r"holds several norm stats, .*other.*; name one with --lo"
    ):
        load(folder, LIBERO)


@pytest.mark.parametrize("text", ["", "[]", '{"norm_stats": {"state": {"mean": [0.0]}}}'])
def test_a_file_without_norm_stats_is_named(folder: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "stats.json").write_text(text)
    config = replace(LIBERO, norm_stats=tmp_path / "stats.json")
    with pytest.raises(ValueError, match=r"stats.json does not hold norm stats of state and actio"):
        load(folder, config)


def test_norm_stats_for_a_policy_that_was_saved_without_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    stats = folder / "assets/physical-intelligence/libero/norm_stats.json"
    shutil.move(stats, tmp_path / "stats.json")
    save(load(folder, replace(LIBERO, unnormalized=True)), tmp_path / "ours")
    with pytest.raises(
        ValueError, match=r"saved unnormalized, so norm stats would not be used; lo"
    ):
        load(tmp_path / "ours", LoadConfig(norm_stats=tmp_path / "stats.json"))


def test_a_camera_that_the_network_lacks_is_named(folder: Path) -> None:
    config = replace(LIBERO, cameras={"top": "image"})
    with pytest.raises(
        ValueError, match=r"names \['top'\], but the network's cameras are \['base_"
    ):
        load(folder, config)


def test_lerobots_json_that_is_cut_short_is_named(lerobot: Path) -> None:
    (lerobot / "policy_preprocessor.json").write_text("{")
    with pytest.raises(ValueError, match=r"policy_preprocessor.json is not a valid JSON object .*"):
        load(lerobot)


def test_lerobots_norm_stats_without_a_mean_are_named(lerobot: Path) -> None:
    for file in lerobot.glob("policy_preprocessor_*.safetensors"):
        file.unlink()
        save_file({"action.std": torch.ones(7)}, file)
    with pytest.raises(
        ValueError, match=r"norm stats of .* lack observation.state.mean or observa"
    ):
        load(lerobot)


def test_lerobots_config_without_a_width_is_named() -> None:
    files = LerobotFolder(config={"type": "pi0"}, preprocessor={}, postprocessor={})
    with pytest.raises(
        ValueError, match=r"config.json has no width of observation.state: input_fe"
    ):
        preprocessor_config(files, None, "pi0")


def test_lerobots_mixed_normalization_is_named(lerobot: Path) -> None:
    def mix(values: dict[str, Any]) -> None:
        for step in values["steps"]:
            if step["registry_name"] == "normalizer_processor":
                step["config"]["norm_map"]["ACTION"] = "MIN_MAX"

    change_json(lerobot / "policy_preprocessor.json", mix)
    with pytest.raises(
        ValueError, match=r"its action by MIN_MAX; both must use the same one of \["
    ):
        load(lerobot)


def exported(policy: FlowPolicy, **changes: Any) -> FlowPolicy:
    config = replace(policy.preprocessor.config, **changes)
    return FlowPolicy(policy.network, config, policy.sampler)


def test_lerobot_cannot_express_alohas_joints(tmp_path: Path) -> None:
    arms = NormStats.identity(14)
    policy = exported(load_openpi("pi0", delta_mask=()), joints="aloha", state=arms, action=arms)
    with pytest.raises(ValueError, match=r"lerobot cannot express joints='aloha'; save with forma"):
        save(policy, tmp_path / "x", format="lerobot")


def test_openpi_has_no_other_cameras_than_its_own(tmp_path: Path) -> None:
    policy = load_openpi("pi0")
    pictures = policy.preprocessor.config.pictures
    assert pictures is not None
    policy = exported(policy, pictures=replace(pictures, cameras={"top": "image"}, order=()))
    with pytest.raises(
        ValueError, match=r"openpi's cameras are .* this policy's \['top'\], and it"
    ):
        save(policy, tmp_path / "x", format="openpi")
