"""Adapters: merged as PEFT merges them, or rejected by name, but never left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_fixtures import (
    actions_of,
    edit_config,
    edit_json,
    edit_weights,
    lerobot_folder,
    weights_file,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from openpi_fixtures import openpi_folder
from pitune.policies import LoadConfig, load, save

EXPERT = "paligemma_with_expert.gemma_expert.model.layers."
LAYERS = tuple(f"{EXPERT}{i}.self_attn.{name}_proj" for i in (0, 1) for name in "qv")
PEFT = "base_model.model.model."
RANK, ALPHA = 4, 6.0
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": ALPHA,
    "target_modules": r".*\.gemma_expert\..*\.(q|v)_proj",
    "base_model_name_or_path": "someone/pi0_base",
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "init_lora_weights": True,
    "lora_dropout": 0.1,
    "inference_mode": True,
    "modules_to_save": None,
    "peft_version": "0.21.2",
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    "loftq_config": {},
}


def factors(folder: Path, layers: tuple[str, ...] = LAYERS, rank: int = RANK) -> dict[str, Tensor]:
    """Return random factors of some layers, under PEFT's names."""
    generator = torch.Generator().manual_seed(0)
    weights = load_file(weights_file(folder))
    tensors = {}
    for layer in layers:
        out, inputs = weights[f"model.{layer}.weight"].shape
        tensors[f"{PEFT}{layer}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) / 4
        tensors[f"{PEFT}{layer}.lora_B.weight"] = torch.randn(out, rank, generator=generator) / 4
    return tensors


def merged(folder: Path, tensors: dict[str, Tensor], scale: float) -> np.ndarray:
    """Return the actions after W + scale * B A, by hand."""
    copy = folder.with_name(f"{folder.name}_merged")
    shutil.copytree(folder, copy)

    def update(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        for key, first in tensors.items():
            if key.endswith("lora_A.weight"):
                name = key.removeprefix("base_model.model.").replace(".lora_A.", ".")
                second = tensors[key.replace("lora_A", "lora_B")]
                weights[name] = weights[name] + scale * second @ first
        return weights

    edit_weights(copy, update)
    return actions_of(copy)


def write_adapter(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> None:
    """Write the two files of an adapter."""
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **settings}))
    save_file(tensors, folder / "adapter_model.safetensors")


def write_unmerged(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> None:
    """Write the weights of a model with its adapters beside its layers."""
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **settings}))

    def wrap(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        adapted = {key.split(".lora_")[0].removeprefix("base_model.model.") for key in tensors}
        wrapped = {
            f"base_model.model.{key.replace('.weight', '.base_layer.weight')}"
            if key.removesuffix(".weight") in adapted
            else f"base_model.model.{key}": value
            for key, value in weights.items()
        }
        named = {k.replace("lora_A.", "lora_A.default."): v for k, v in tensors.items()}
        return wrapped | {k.replace("lora_B.", "lora_B.default."): v for k, v in named.items()}

    edit_weights(folder, wrap)


def separate(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    """Write an adapter into a folder of its own that names its base, as lerobot does."""
    place = folder.with_name("adapter")
    place.mkdir()
    for file in folder.iterdir():
        if file.name not in ("model.safetensors", "arch.json"):
            shutil.copy(file, place)
    edit_config(place, use_peft=True)
    write_adapter(place, tensors, **{"base_model_name_or_path": str(folder), **settings})
    return place


SCALES: dict[str, tuple[dict[str, Any], float]] = {
    "plain": ({}, ALPHA / RANK),
    "rank-stabilized": ({"use_rslora": True}, ALPHA / RANK**0.5),
    "another alpha": ({"lora_alpha": 1}, 1 / RANK),
    "alpha of a pattern": ({"alpha_pattern": {"(q|v)_proj": 2}}, 2 / RANK),
    "rank of a pattern": ({"r": 8, "rank_pattern": {"self_attn.(q|v)_proj": RANK}}, ALPHA / RANK),
    "for transposed layers": ({"fan_in_fan_out": True}, ALPHA / RANK),
    "names of layers": (
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*vision.*|.*language.*"},
        ALPHA / RANK,
    ),
    "some layers": ({"target_modules": ["q_proj"], "layers_to_transform": [0, 1]}, ALPHA / RANK),
}


@pytest.mark.parametrize("case", SCALES)
@pytest.mark.parametrize(
    ("place", "family"),
    [("beside", "pi0"), ("beside", "pi05"), ("unmerged", "pi0"), ("separate", "pi05")],
)
def test_an_adapter_is_merged_with_its_scale(
    place: str, case: str, family: str, tmp_path: Path
) -> None:
    folder = lerobot_folder(tmp_path, family)
    settings, scale = SCALES[case]
    tensors, before = factors(folder), actions_of(folder)
    expected = merged(folder, tensors, scale)
    assert np.abs(expected - before).max() > 1e-3
    if place == "unmerged":
        write_unmerged(folder, tensors, **settings)
        actions = actions_of(folder)
    else:
        write = write_adapter if place == "beside" else separate
        place_of = write(folder, tensors, **settings) or folder
        with pytest.warns(UserWarning, match="the adapter in .* is merged into"):
            actions = actions_of(place_of)
    assert np.abs(actions - expected).max() < 1e-5


@pytest.mark.parametrize("unmerged", [False, True])
def test_modules_that_the_adapter_saved_replace_those_of_the_base(
    unmerged: bool, tmp_path: Path
) -> None:
    folder = lerobot_folder(tmp_path)
    tensors = factors(folder)
    other = torch.randn(32, 32)
    write = write_unmerged if unmerged else write_adapter
    marks = ("modules_to_save.default.", "original_module.") if unmerged else ("", "")
    if unmerged:
        edit_weights(folder, lambda w: {k: v for k, v in w.items() if "state_proj.w" not in k})
    saved = {f"{PEFT}state_proj.{marks[0]}weight": other}
    saved |= {f"{PEFT}state_proj.{marks[1]}weight": other * 0} if unmerged else {}
    if unmerged:
        write(folder, tensors, modules_to_save=["state_proj"])
        edit_weights(folder, lambda weights: weights | saved)
    else:
        write(folder, tensors | saved, modules_to_save=["state_proj"])
    assert torch.equal(load(folder).network.state_dict()["state_proj.weight"], other)


def test_biases_and_embeddings_are_merged(tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path)
    words = "paligemma_with_expert.paligemma.model.language_model.embed_tokens"
    before = load(folder).network.state_dict()
    first, second = torch.randn(RANK, 1024), torch.randn(64, RANK)
    tensors = {
        f"{PEFT}{words}.lora_embedding_A": first,
        f"{PEFT}{words}.lora_embedding_B": second,
        f"{PEFT}action_in_proj.bias": torch.ones(32),
    }
    write_adapter(folder, tensors, bias="all", target_modules=["embed_tokens"])
    after = load(folder).network.state_dict()
    expected = before[f"{words}.weight"] + ALPHA / RANK * (second @ first).T
    assert torch.allclose(after[f"{words}.weight"], expected, atol=1e-5)
    assert torch.equal(after["action_in_proj.bias"], torch.ones(32))


def test_a_merged_policy_is_saved_without_its_adapter(tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path)
    place = separate(folder, factors(folder))
    actions = actions_of(place)
    save(load(place), tmp_path / "saved", format="lerobot")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["use_peft"] is False
    assert np.abs(actions_of(tmp_path / "saved") - actions).max() < 1e-6


Change = Callable[[Path], object]


def adapter(**settings: Any) -> Change:
    return lambda folder: write_adapter(folder, factors(folder), **settings)


def tensors_of(change: Callable[[dict[str, Tensor]], object], **settings: Any) -> Change:
    def write(folder: Path) -> None:
        tensors = factors(folder)
        change(tensors)
        write_adapter(folder, tensors, **settings)

    return write


def alone(name: str) -> Change:
    """Leave only one file of the adapter."""

    def write(folder: Path) -> None:
        adapter()(folder)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            if file != name:
                (folder / file).unlink()

    return write


def without_base(folder: Path) -> None:
    adapter()(folder)
    weights_file(folder).unlink()


def already_merged(folder: Path) -> None:
    base = folder.with_name("base")
    shutil.copytree(folder, base)
    adapter(base_model_name_or_path=str(base))(folder)
    edit_weights(folder, lambda w: {k: v + 1 if LAYERS[0] in k else v for k, v in w.items()})


def nested(folder: Path) -> None:
    base = folder.with_name("base")
    shutil.copytree(folder, base)
    adapter()(base)
    adapter(base_model_name_or_path=str(base))(folder)
    weights_file(folder).unlink()


def twice(folder: Path) -> None:
    tensors = factors(folder)
    write_unmerged(folder, tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def two_adapters(folder: Path) -> None:
    tensors = factors(folder)
    write_unmerged(folder, tensors)
    other = {k.replace(".weight", ".second.weight"): v for k, v in tensors.items()}
    edit_weights(folder, lambda weights: weights | other)


def unmerged_without_config(folder: Path) -> None:
    write_unmerged(folder, factors(folder))
    (folder / "adapter_config.json").unlink()


def pickled(folder: Path) -> None:
    adapter()(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


FIRST = f"{PEFT}{LAYERS[0]}"
FAULTS: dict[str, tuple[Change, str]] = {
    "only the weights": (
        alone("adapter_model.safetensors"),
        "adapter_model.safetensors.* without adapter_config.json, which has its scale",
    ),
    "only the config": (
        alone("adapter_config.json"),
        "adapter_config.json without adapter_model.safetensors; put it there",
    ),
    "unmerged without config": (
        unmerged_without_config,
        r"base_layer.weight\) without adapter_config.json",
    ),
    "a pickle": (pickled, "adapter_model.bin is a pickle, which can run any code"),
    "no base": (
        without_base,
        "base_model_name_or_path='someone/pi0_base' is no folder on this machine; put",
    ),
    "merged already": (already_merged, "beside weights that are not those of its base .*remove"),
    "on an adapter": (nested, r"base, which holds an adapter itself \(adapter_config.json\)"),
    "twice": (twice, "holds an adapter twice, in adapter_model.safetensors and as"),
    "two adapters": (two_adapters, r"holds the adapters \['default', 'second'\]"),
    "no json": (
        lambda f: (adapter()(f), (f / "adapter_config.json").write_text("{")),
        "adapter_config.json is not a valid JSON object",
    ),
    # other kinds of adapters
    **{
        f"type {kind}": (adapter(peft_type=kind), f"peft_type={kind!r}; only 'LORA' is merged")
        for kind in ("LOHA", "LOKR", "IA3", "VERA", "ADALORA", "OFT", None)
    },
    **{
        f"{name}": (adapter(**{name: value}), f"adapter_config.json has {name}=")
        for name, value in {
            "use_dora": True,
            "lora_bias": True,
            "use_qalora": True,
            "layer_replication": [[0, 1]],
            "trainable_token_indices": [1],
            "target_parameters": ["x"],
            "alora_invocation_tokens": [1, 2],
            "megatron_config": {"a": 1},
            "setting_of_the_future": 3,
        }.items()
    },
    **{
        f"start {start}": (adapter(init_lora_weights=start), f"init_lora_weights={start!r}")
        for start in ("pissa", "pissa_niter_16", "olora", "loftq", "corda")
    },
    **{
        f"{name} {value}": (adapter(**{name: value}), f"{name}={value!r}, which must be a positive")
        for name in ("r", "lora_alpha")
        for value in (None, 0, -1, "4")
    },
    # tensors
    "without B": (tensors_of(lambda t: t.pop(f"{FIRST}.lora_B.weight")), r"holds \['A'\], and nee"),
    "without A": (tensors_of(lambda t: t.pop(f"{FIRST}.lora_A.weight")), r"holds \['B'\], and nee"),
    "a layer is missing": (
        tensors_of(lambda t: [t.pop(f"{FIRST}.lora_{x}.weight") for x in "AB"]),
        "holds no update of .*layers.0.self_attn.q_proj.*, which its target_modules",
    ),
    "empty": (tensors_of(lambda t: t.clear()), "holds no low-rank update"),
    "another rank": (adapter(r=2), r"has shapes \(128, 4\) and \(4, 32\) for r=2"),
    "another width": (
        tensors_of(lambda t: t.update({f"{FIRST}.lora_A.weight": torch.zeros(RANK, 31)})),
        r"and \(4, 31\) for r=4 and a weight \(128, 32\)",
    ),
    "unknown layer": (
        tensors_of(
            lambda t: t.update(
                {f"{PEFT}other.lora_{x}.weight": torch.zeros(RANK, RANK) for x in "AB"}
            )
        ),
        "updates 'base_model.model.model.other', which the base does not have",
    ),
    "unexplained weight": (
        tensors_of(lambda t: t.update({f"{PEFT}state_proj.weight": torch.zeros(32, 32)})),
        "with 'state_proj.weight' of shape .*, which modules_to_save=.* does not explain",
    ),
    "magnitudes": (
        tensors_of(lambda t: t.update({f"{FIRST}.lora_magnitude_vector": torch.zeros(128)})),
        "lora_magnitude_vector' of shape",
    ),
    "bias of a factor": (
        tensors_of(lambda t: t.update({f"{FIRST}.lora_B.bias": torch.zeros(128)})),
        "lora_B.bias' of shape",
    ),
    "git-lfs": (
        lambda f: (
            adapter()(f),
            (f / "adapter_model.safetensors").write_bytes(b"version https://git-lfs.github.com/"),
        ),
        "adapter_model.safetensors is a pointer of git-lfs",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_an_adapter_that_cannot_be_merged_completely_is_named(case: str, tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path)
    change, message = FAULTS[case]
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(folder)


def test_an_adapter_beside_openpis_weights_is_merged(tmp_path: Path) -> None:
    folder = tmp_path / "openpi"
    shutil.copytree(openpi_folder("pi0"), folder)
    shutil.copy(openpi_folder("pi0").parent / "arch.json", folder)
    config = LoadConfig(pipeline="pi0_libero")
    before = load(folder, config).network.state_dict()[f"{LAYERS[0]}.weight"]
    tensors = factors(lerobot_folder(tmp_path))
    write_adapter(folder, tensors)
    after = load(folder, config).network.state_dict()[f"{LAYERS[0]}.weight"]
    update = tensors[f"{FIRST}.lora_B.weight"] @ tensors[f"{FIRST}.lora_A.weight"]
    assert torch.allclose(after, before + ALPHA / RANK * update, atol=1e-6)


def test_the_base_may_be_named_relative_to_the_adapter(tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path)
    place = separate(folder, factors(folder))
    expected = actions_of(place)
    edit_json(
        place / "adapter_config.json",
        lambda config: config.update(base_model_name_or_path=f"../{folder.name}"),
    )
    assert np.array_equal(actions_of(place), expected)
