"""Where checkpoints lie and what their weights are called: read, or named in an error."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_fixtures import actions_of, edit_weights, lerobot_folder, weights_file
from safetensors.torch import load_file, save_file
from torch import Tensor

from openpi_fixtures import FAMILIES, TOKENIZER, openpi_folder
from pitune.policies import FlowPolicy, LoadConfig, load, save
from pitune.policies.checkpoints.formats import load_network
from pitune.policies.checkpoints.layouts.wrappers import unwrapped

Weights = dict[str, Tensor]
TOWERS = "paligemma_with_expert"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A π0 as lerobot lays it out."""
    return lerobot_folder(tmp_path)


@pytest.fixture
def reference(folder: Path) -> np.ndarray:
    """Its actions before anything is changed."""
    return actions_of(folder)


# names


def prefixed(prefix: str) -> Callable[[str], str]:
    return lambda key: prefix + key


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda key: key.replace(old, new)


NAMES: dict[str, Callable[[str], str]] = {
    **{
        prefix: prefixed(prefix)
        for prefix in (
            "_orig_mod.",
            "module.",
            "policy.",
            "model.",
            "actor.",
            "base_model.model.",
            "_fsdp_wrapped_module.",
            "module._orig_mod.",
            "_orig_mod.module._fsdp_wrapped_module.",
            "actor.module.policy.",
        )
    },
    "no prefix": lambda key: key.removeprefix("model."),
    "inside the towers": replaced(f"{TOWERS}.", f"{TOWERS}._orig_mod."),
    "inside each layer": replaced(".layers.", ".layers._fsdp_wrapped_module."),
    "around each layer": replaced(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
    "around a head": replaced("action_in_proj.", "action_in_proj._orig_mod."),
    "everywhere": lambda key: "_orig_mod." + key.replace(".", "._fsdp_wrapped_module."),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", NAMES)
def test_names_of_wrappers_are_no_part_of_a_weights_name(
    case: str, family: str, tmp_path: Path
) -> None:
    folder = lerobot_folder(tmp_path, family)
    before = actions_of(folder)
    edit_weights(folder, lambda weights: {NAMES[case](k): v for k, v in weights.items()})
    assert np.array_equal(actions_of(folder), before)


def test_openpis_weights_may_be_wrapped_too(tmp_path: Path) -> None:
    folder = tmp_path / "openpi"
    shutil.copytree(openpi_folder("pi0"), folder)
    shutil.copy(openpi_folder("pi0").parent / "arch.json", folder)
    config = LoadConfig(tokenizer=TOKENIZER, pipeline="pi0_libero")
    before = load(folder, config).state_dict()
    edit_weights(folder, lambda weights: {f"module._orig_mod.{k}": v for k, v in weights.items()})
    after = load(folder, config).state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("prefix", ["ema_model.", "target.", "student_", "old.policy."])
def test_a_prefix_that_is_not_a_policys_is_warned_of(
    prefix: str, folder: Path, reference: np.ndarray
) -> None:
    edit_weights(folder, lambda weights: {f"{prefix}x.{k}": v for k, v in weights.items()})
    with pytest.warns(UserWarning, match=rf"stand under the prefix \['{prefix}x.model'\]"):
        assert np.array_equal(actions_of(folder), reference)


@pytest.mark.parametrize("prefix", ["ema.", "critic.", "target_policy.model.", "module.old."])
def test_two_sets_of_weights_in_one_file_are_named(prefix: str, folder: Path) -> None:
    edit_weights(folder, lambda weights: weights | {prefix + k: v for k, v in weights.items()})
    with pytest.raises(ValueError, match=r"under the prefixes .*two weights are called alike"):
        load(folder)


SURPLUS = {
    "rotary_emb.inv_freq": f"model.{TOWERS}.paligemma.model.language_model.",
    "layers.0.self_attn.rotary_emb.inv_freq": f"model.{TOWERS}.gemma_expert.model.",
    "rotary_emb.original_inv_freq": f"model.{TOWERS}.gemma_expert.model.",
    "embeddings.position_ids": f"model.{TOWERS}.paligemma.model.vision_tower.vision_model.",
    "head.probe": f"model.{TOWERS}.paligemma.model.vision_tower.vision_model.",
    "embed_tokens.weight": f"model.{TOWERS}.gemma_expert.model.",
}


@pytest.mark.parametrize("name", SURPLUS)
def test_surplus_weights_that_are_known_to_be_unused_are_left_out(
    name: str, folder: Path, reference: np.ndarray
) -> None:
    edit_weights(folder, lambda weights: weights | {SURPLUS[name] + name: torch.arange(8)})
    assert np.array_equal(actions_of(folder), reference)


@pytest.mark.parametrize(
    "name",
    [
        "value_head.0.weight",
        "model.value_head.weight",
        "log_std",
        f"model.{TOWERS}.paligemma.model.language_model.layers.0.self_attn.q_norm.weight",
        "model.proprio_history_proj.weight",
        f"model.{TOWERS}.gemma_expert.model.layers.7.mlp.up_proj.weight",
    ],
)
def test_unknown_surplus_weights_are_named(name: str, folder: Path) -> None:
    edit_weights(folder, lambda weights: weights | {name: torch.zeros(2, 2)})
    last = name.removeprefix("model.")
    with pytest.raises(ValueError, match=rf"surplus keys \['{last}'\]|depth=8 differs"):
        load(folder)


@pytest.mark.parametrize("lost", ["embed_tokens.weight", "lm_head.weight"])
def test_either_copy_of_a_tied_weight_is_enough(
    lost: str, folder: Path, reference: np.ndarray
) -> None:
    edit_weights(folder, lambda w: {k: v for k, v in w.items() if not k.endswith(lost)})
    assert np.array_equal(actions_of(folder), reference)


def test_weights_that_fsdp_flattened_are_named(folder: Path) -> None:
    edit_weights(folder, lambda w: w | {"_fsdp_wrapped_module._flat_param": torch.zeros(3)})
    with pytest.raises(ValueError, match="which FSDP has flattened; save a full state dict"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantized_weights_are_named(dtype: torch.dtype, folder: Path) -> None:
    key = "model.action_out_proj.weight"
    edit_weights(folder, lambda weights: weights | {key: weights[key].to(dtype)})
    with pytest.raises(ValueError, match=rf"'action_out_proj.weight' is {dtype}, which is quant"):
        load(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_named(value: float, folder: Path) -> None:
    def spoil(weights: Weights) -> Weights:
        weights["model.action_out_proj.weight"][3, 4] = value
        return weights

    edit_weights(folder, spoil)
    with pytest.raises(ValueError, match=r"'action_out_proj.weight' is not finite, so every"):
        load(folder)


def test_unwrapping_keeps_the_tensors_themselves() -> None:
    value = torch.zeros(2)
    assert unwrapped({"module.action_in_proj.bias": value}, Path("x")) == {
        "action_in_proj.bias": value
    }


# files


def shard(folder: Path, name: str = "model", index: bool = True) -> list[Path]:
    """Split a folder's weights into three files."""
    weights = load_file(weights_file(folder))
    keys, files = sorted(weights), []
    places: dict[str, str] = {}
    for i in range(3):
        file = folder / f"{name}-{i + 1:05d}-of-00003.safetensors"
        part = {key: weights[key] for key in keys[i::3]}
        save_file(part, file)
        places |= dict.fromkeys(part, file.name)
        files.append(file)
    if index:
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
        (folder / "model.safetensors.index.json").write_text(text)
    return files


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_read_with_and_without_an_index(
    index: bool, folder: Path, reference: np.ndarray
) -> None:
    shard(folder, index=index)
    weights_file(folder).unlink()
    assert np.array_equal(actions_of(folder), reference)


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(index: bool, folder: Path) -> None:
    shard(folder, index=index)[1].unlink()
    weights_file(folder).unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00003.safetensors"):
        load(folder)


def test_shards_beside_the_whole_file_are_reported(folder: Path, reference: np.ndarray) -> None:
    for file in shard(folder):
        save_file({k: v + 1 for k, v in load_file(file).items()}, file)
    with pytest.warns(
        UserWarning, match=r"\['model.safetensors'\] is read, as by lerobot .*00001-"
    ):
        assert np.array_equal(actions_of(folder), reference)


def edited_index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        file = folder / "model.safetensors.index.json"
        values = json.loads(file.read_text())
        change(values)
        file.write_text(json.dumps(values))

    return edit


BROKEN_INDEX: dict[str, tuple[Callable[[Path], object], str]] = {
    "no json": (lambda f: (f / "model.safetensors.index.json").write_text("{"), "no index of"),
    "no map": (edited_index(lambda v: v.pop("weight_map")), "is no index of shards"),
    "map null": (edited_index(lambda v: v.update(weight_map=None)), "is no index of shards"),
    "empty map": (edited_index(lambda v: v.update(weight_map={})), "is no index of shards"),
    "elsewhere": (
        edited_index(lambda v: v["weight_map"].update(x="../model.safetensors")),
        "is no index of shards",
    ),
    "weight not in its shard": (
        edited_index(lambda v: v["weight_map"].update(x="model-00001-of-00003.safetensors")),
        r"they lack \['x'\]",
    ),
    "weight not in the index": (
        edited_index(lambda v: v["weight_map"].pop("model.action_in_proj.bias")),
        r"hold \['model.action_in_proj.bias'\] beyond it",
    ),
}


@pytest.mark.parametrize("case", BROKEN_INDEX)
def test_an_index_that_does_not_fit_its_shards_is_named(case: str, folder: Path) -> None:
    shard(folder)
    weights_file(folder).unlink()
    change, message = BROKEN_INDEX[case]
    change(folder)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "name",
    ["model_ema.safetensors", "ema.safetensors", "ema/model.safetensors", "critic.safetensors"],
)
def test_other_weights_beside_the_policys_are_reported_and_not_read(
    name: str, folder: Path, reference: np.ndarray
) -> None:
    other = {key: value + 1 for key, value in load_file(weights_file(folder)).items()}
    (folder / name).parent.mkdir(exist_ok=True)
    save_file(other, folder / name)
    with pytest.warns(UserWarning, match=rf"several sets of weights.*{name}'\] is not"):
        assert np.array_equal(actions_of(folder), reference)


@pytest.mark.parametrize("name", ["model_ema.safetensors", "weights.safetensors"])
def test_the_only_file_is_read_whatever_its_name(
    name: str, folder: Path, reference: np.ndarray
) -> None:
    weights_file(folder).rename(folder / name)
    assert np.array_equal(actions_of(folder), reference)


def test_files_among_which_none_is_the_policys_are_named(folder: Path) -> None:
    weights_file(folder).rename(folder / "first.safetensors")
    shutil.copy(folder / "first.safetensors", folder / "second.safetensors")
    with pytest.raises(ValueError, match=r"'first.safetensors', 'second.safetensors'\], and none"):
        load(folder)
    for stem in ("first", "second"):
        shutil.copy(folder / "first.safetensors", folder / f"{stem}-00001-of-00001.safetensors")
    with pytest.raises(ValueError, match="holds shards of several sets"):
        load(folder)


def test_a_folder_without_weights_says_so(folder: Path) -> None:
    weights_file(folder).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no weights in .*; put the checkpoint's model.saf"
    ):
        load(folder)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n"
DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "git-lfs": (lambda _: LFS, "is a pointer of git-lfs .*; run `git lfs pull`"),
    "web page": (lambda _: b"<!DOCTYPE html><html>", "is a web page"),
    "pickle": (lambda _: pickle.dumps({"a": 1}), "is a pickle, which can run any code"),
    "empty": (lambda _: b"", "cut short: it has 0 bytes"),
    "header cut": (lambda content: content[:40], "cut short: it has 40 bytes"),
    "end cut": (lambda content: content[:-7], "damaged or cut short"),
    "middle": (lambda content: content[: len(content) // 2], "damaged or cut short"),
    "text": (lambda _: b"not found", "damaged or cut short"),
    "surplus": (lambda content: content + b"\0" * 9, "damaged or cut short"),
}


@pytest.mark.parametrize("which", ["model", "policy_preprocessor", "policy_postprocessor"])
@pytest.mark.parametrize("case", DAMAGED)
def test_a_file_that_is_no_complete_safetensors_is_named(
    case: str, which: str, folder: Path
) -> None:
    (file,) = folder.glob(f"{which}*.safetensors")
    change, message = DAMAGED[case]
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    assert file.name in str(error.value)


# folders


def move(folder: Path, *parts: str) -> Path:
    """Move a checkpoint below another folder, and return that folder."""
    root = folder.parent / "root"
    target = root.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)
    return root


@pytest.mark.parametrize(
    ("parts", "link"),
    [
        (("pretrained_model",), None),
        (("checkpoints", "005000", "pretrained_model"), ("last", "005000")),
        (("checkpoints", "005000", "pretrained_model"), None),
        (("checkpoints", "last", "pretrained_model"), None),
        (("005000", "pretrained_model"), None),
    ],
)
def test_the_checkpoint_of_a_training_run_is_found_and_named(
    parts: tuple[str, ...],
    link: tuple[str, str] | None,
    folder: Path,
    reference: np.ndarray,
) -> None:
    root = move(folder, *parts)
    if link is not None:
        (root / "checkpoints" / link[0]).symlink_to(link[1])
    with pytest.warns(UserWarning, match=rf"root is read from .*{parts[-1]}"):
        assert np.array_equal(actions_of(root), reference)
    with pytest.warns(UserWarning, match="is read from"):
        load_network(root, 10)


def test_last_chooses_among_several_steps(folder: Path, reference: np.ndarray) -> None:
    root = move(folder, "checkpoints", "005000", "pretrained_model")
    checkpoints = root / "checkpoints"
    shutil.copytree(checkpoints / "005000", checkpoints / "010000")
    edit_weights(
        checkpoints / "005000" / "pretrained_model",
        lambda weights: {key: value + 1 for key, value in weights.items()},
    )
    with pytest.raises(ValueError, match=r"holds the steps \['005000', '010000'\] and does not"):
        load(root)
    for make in (
        lambda: (checkpoints / "last").symlink_to("010000"),
        lambda: (checkpoints / "last").write_text("010000\n"),  # a link copied as text
    ):
        make()
        with pytest.warns(UserWarning, match="010000"):
            assert np.array_equal(actions_of(root), reference)
        (checkpoints / "last").unlink()


def test_a_link_that_leads_nowhere_is_named(folder: Path) -> None:
    root = move(folder, "checkpoints", "005000", "pretrained_model")
    (root / "checkpoints" / "last").symlink_to("020000")
    with pytest.raises(FileNotFoundError, match="last links to 020000, which is missing"):
        load(root)
    (root / "gone").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="gone links to nowhere, which is missing"):
        load(root / "gone")
    place = root / "checkpoints" / "005000" / "pretrained_model"
    weights_file(place).rename(root / "blob")
    weights_file(place).symlink_to(root / "other_blob")
    with pytest.raises(FileNotFoundError, match="other_blob, which is missing; download"):
        load(place)


@pytest.mark.parametrize("main", [True, False])
def test_a_repository_in_the_hubs_cache_is_found(
    main: bool, folder: Path, reference: np.ndarray
) -> None:
    root = move(folder, "snapshots", "abc123")
    # files of a snapshot are links to blobs
    (root / "blobs").mkdir()
    place = root / "snapshots" / "abc123"
    for file in [file for file in place.iterdir() if file.is_file()]:
        file.rename(root / "blobs" / f"blob_{file.name}")
        file.symlink_to(os.path.relpath(root / "blobs" / f"blob_{file.name}", place))
    if main:
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text("abc123")
        (root / "snapshots" / "older").mkdir()
    with pytest.warns(UserWarning, match="is read from .*abc123"):
        assert np.array_equal(actions_of(root), reference)


def test_several_snapshots_without_a_reference_are_named(folder: Path) -> None:
    root = move(folder, "snapshots", "abc123")
    (root / "snapshots" / "older").mkdir()
    with pytest.raises(ValueError, match=r"holds the snapshots \['abc123', 'older'\]"):
        load(root)


def test_a_file_instead_of_its_folder_is_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is a file; pass the folder that holds it"):
        load(weights_file(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", r"pytorch_model.bin'\], which are pickles, each which can run any"),
        ("actor/full_weights.pt", r"actor/full_weights.pt'\], which are pickles"),
        ("global_step10/mp_rank_00_model_states.pt", "torch.load.file, weights_only=True"),
        ("model.ckpt", "are pickles"),
        ("__0_0.distcp", "distributed checkpoint of torch; consolidate it"),
        ("actor/.metadata", "distributed checkpoint of torch"),
        ("model.safetensors.incomplete", "unfinished downloads"),
        ("blobs/abc.part", "unfinished downloads"),
    ],
)
def test_other_forms_of_weights_are_named_with_the_way_to_convert_them(
    name: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_our_own_folders_hold_no_adapters(
    tiny_policy: Callable[..., FlowPolicy], tmp_path: Path
) -> None:
    save(tiny_policy(), tmp_path / "ours")
    (tmp_path / "ours" / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"adapter_model.safetensors belongs to an adapter"):
        load(tmp_path / "ours")
