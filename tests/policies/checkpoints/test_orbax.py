"""`orbax`: the JAX checkpoints hold the weights of the PyTorch ones, number for number."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
from safetensors.torch import load_file
from torch import Tensor

from pitune.extras import install_command
from pitune.policies.checkpoints.orbax import HeadCounts, is_orbax, read_orbax

FIXTURES = Path(__file__).parents[2] / "fixtures"
PI0 = FIXTURES / "openpi_jax/pi0_tiny/released"
PI05 = FIXTURES / "openpi_jax/pi05_tiny/trained"
EXPERT = "paligemma_with_expert.gemma_expert.model."
VLM = "paligemma_with_expert.paligemma.model."
LAYERS = "PaliGemma.llm.layers."
torch.manual_seed(0)


def openpi_weights(name: str) -> dict[str, Tensor]:
    """Return what openpi's own converter wrote, less its dead head, the embedding renamed."""
    weights = load_file(FIXTURES / "openpi" / name / "checkpoint/model.safetensors")
    del weights["paligemma_with_expert.gemma_expert.lm_head.weight"]
    embedding = weights.pop("paligemma_with_expert.paligemma.lm_head.weight")
    return {**weights, f"{VLM}language_model.embed_tokens.weight": embedding}


def store(folder: Path, path: str = "") -> dict[str, Any]:
    return {"driver": "ocdbt", "base": f"file://{folder / 'params'}/", "path": path}


def write_leaf(folder: Path, leaf: str, value: Any, dtype: str = "<f4") -> None:
    """Write or replace a leaf."""
    spec = {
        "driver": "zarr",
        "kvstore": store(folder, f"params.{leaf}/"),
        "metadata": {"shape": value.shape, "chunks": value.shape, "dtype": dtype},
        "create": True,
        "delete_existing": True,
    }
    tensorstore.open(spec).result().write(value).result()


def remove(folder: Path, leaf: str, what: str = "/") -> None:
    """Remove the keys that begin with a leaf's name."""
    first = f"params.{leaf}{what}"
    keys = tensorstore.KvStore.KeyRange(first, first[:-1] + chr(ord(first[-1]) + 1))
    tensorstore.KvStore.open(store(folder)).result().delete_range(keys).result()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the π0 checkpoint to spoil."""
    shutil.copytree(PI0, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(("path", "name"), [(PI0, "pi0_tiny"), (PI05, "pi05_tiny")])
def test_the_weights_are_those_of_the_converted_checkpoint(path: Path, name: str) -> None:
    weights, heads = read_orbax(path)
    expected = openpi_weights(name)
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        assert weights[key].dtype == value.dtype == torch.float32
        assert torch.equal(weights[key], value), key
    sizes = json.loads((FIXTURES / "openpi" / name / "arch.json").read_text())
    assert heads == HeadCounts(
        num_heads=sizes["vlm"]["num_heads"],
        num_kv_heads=sizes["vlm"]["num_kv_heads"],
        head_dim=sizes["vlm"]["head_dim"],
        vision_heads=sizes["vision"]["num_attention_heads"],
    )


def test_every_weight_has_a_memory_of_its_own() -> None:
    weights, _ = read_orbax(PI0)
    assert all(value.is_contiguous() for value in weights.values())
    assert len({value.untyped_storage().data_ptr() for value in weights.values()}) == len(weights)
    assert all(
        value.untyped_storage().nbytes() == value.nbytes and value.storage_offset() == 0
        for value in weights.values()
    )


def test_the_params_folder_alone_will_do() -> None:
    assert is_orbax(PI0)
    assert is_orbax(PI0 / "params")
    assert not is_orbax(FIXTURES / "openpi/pi0_tiny/checkpoint")
    weights, _ = read_orbax(PI0 / "params")
    assert weights.keys() == openpi_weights("pi0_tiny").keys()


def test_bfloat16_stays_bfloat16(folder: Path) -> None:
    value = torch.randn(32, 32).bfloat16()
    bits = value.view(torch.int16).numpy().view(tensorstore.bfloat16.numpy_dtype)
    write_leaf(folder, "action_in_proj.kernel", bits, "bfloat16")
    weights, _ = read_orbax(folder)
    assert weights["action_in_proj.weight"].dtype == torch.bfloat16
    assert torch.equal(weights["action_in_proj.weight"], value.T)
    assert weights["action_in_proj.bias"].dtype == torch.float32


def test_several_key_and_value_heads_keep_their_order(folder: Path) -> None:
    for suffix, width in (("", 64), ("_1", 32)):
        value = np.random.default_rng(0).normal(size=(2, 2, 4, width, 16)).astype(np.float32)
        write_leaf(folder, f"{LAYERS}attn.kv_einsum{suffix}.w", value)
    weights, heads = read_orbax(folder)
    assert heads.num_kv_heads == 4
    x = torch.randn(32)
    for i, name in enumerate(("k_proj", "v_proj")):
        expected = torch.einsum("d,kdh->kh", x, torch.from_numpy(value[1, i])).flatten()
        actual = weights[f"{EXPERT}layers.1.self_attn.{name}.weight"] @ x
        torch.testing.assert_close(actual, expected)


def openpi_einsum(equation: str, x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Apply a weight and its update as openpi's `lora.Einsum` does, by two more einsums.

    L takes the place of the weight's last axis in the first, of the one before in the second.
    """
    inputs, weight, out = equation.replace("->", ",").split(",")
    low_out = out.replace(weight[-1], "L")
    low = torch.einsum(f"{inputs},{weight.replace(weight[-1], 'L')}->{low_out}", x, a)
    high = torch.einsum(f"{low_out},{weight.replace(weight[-2], 'L')}->{out}", low, b)
    return torch.einsum(equation, x, w) + high


@pytest.mark.parametrize(
    ("leaf", "equation", "name"),
    [
        ("q_einsum_1", "BTD,NDH->BTNH", "q_proj"),
        ("kv_einsum_1", "BSD,CKDH->CBSKH", "k_proj v_proj"),
        ("attn_vec_einsum_1", "BTNH,NHD->BTD", "o_proj"),
    ],
)
def test_lora_of_the_attention_is_folded_in(
    folder: Path, leaf: str, equation: str, name: str
) -> None:
    base, _ = read_orbax(folder)
    shapes = {"q": (2, 8, 32, 16), "k": (2, 2, 1, 32, 16), "a": (2, 8, 16, 32)}
    w, rank = 0.1 * torch.randn(shapes[leaf[0]]), 3
    a = torch.randn(*w.shape[:-1], rank)
    b = torch.randn(*w.shape[:-2], rank, w.shape[-1])
    for part, value in (("w", w), ("lora_a", a), ("lora_b", b)):
        write_leaf(folder, f"{LAYERS}attn.{leaf}.{part}", value.numpy())
    weights, _ = read_orbax(folder)
    x = torch.randn(2, 5, 8, 16) if leaf[0] == "a" else torch.randn(2, 5, 32)
    for layer in (0, 1):
        y = openpi_einsum(equation, x, w[layer], a[layer], b[layer])
        expected = list(y.flatten(3)) if leaf[0] == "k" else [y.flatten(2)]
        for one, parameter in zip(expected, name.split(), strict=True):
            key = f"{EXPERT}layers.{layer}.self_attn.{parameter}.weight"
            torch.testing.assert_close(x.flatten(2) @ weights.pop(key).T, one, rtol=1e-4, atol=1e-4)
            del base[key]
    assert weights.keys() == base.keys()
    assert all(torch.equal(weights[key], base[key]) for key in base)


def test_lora_of_the_feed_forward_part_is_folded_in(folder: Path) -> None:
    before, _ = read_orbax(folder)
    a, b = torch.randn(2, 2, 64, 3), torch.randn(2, 2, 3, 128)
    low, high = torch.randn(2, 128, 3), torch.randn(2, 3, 64)
    for name, value in (
        ("gating_einsum_lora_a", a),
        ("gating_einsum_lora_b", b),
        ("linear_lora_a", low),
        ("linear_lora_b", high),
    ):
        write_leaf(folder, f"{LAYERS}mlp.{name}", value.numpy())
    after, _ = read_orbax(folder)
    for layer in (0, 1):
        mlp = f"{VLM}language_model.layers.{layer}.mlp."
        for name, update in (
            ("gate_proj", a[layer, 0] @ b[layer, 0]),
            ("up_proj", a[layer, 1] @ b[layer, 1]),
            ("down_proj", low[layer] @ high[layer]),
        ):
            key = f"{mlp}{name}.weight"
            torch.testing.assert_close(after[key], before[key] + update.T)
        key = f"{EXPERT}layers.{layer}.mlp.up_proj.weight"
        assert torch.equal(after[key], before[key])


def test_half_an_update_is_refused(folder: Path) -> None:
    write_leaf(folder, f"{LAYERS}mlp_1.linear_lora_a", np.zeros((2, 64, 3), np.float32))
    with pytest.raises(ValueError, match=r"surplus leaves \['PaliGemma/.*/mlp_1/linear_lora_a'\]"):
        read_orbax(folder)


def test_an_update_of_another_shape_is_refused(folder: Path) -> None:
    write_leaf(folder, f"{LAYERS}mlp_1.linear_lora_a", np.zeros((2, 64, 3), np.float32))
    write_leaf(folder, f"{LAYERS}mlp_1.linear_lora_b", np.zeros((2, 4, 32), np.float32))
    with pytest.raises(ValueError, match=r"update of leaf .*mlp_1/linear does not fit it: shapes"):
        read_orbax(folder)


def test_a_missing_and_a_surplus_leaf_are_named(folder: Path) -> None:
    remove(folder, "state_proj.bias")
    write_leaf(folder, "value_head.kernel", np.zeros((32, 1), np.float32))
    message = (
        r"does not hold a pi0 policy of openpi: missing leaves \['state_proj/bias'\], surplus "
        r"leaves \['value_head/kernel'\]; take a complete"
    )
    with pytest.raises(ValueError, match=message):
        read_orbax(folder)


@pytest.mark.parametrize("leaf", ["state_proj.kernel", f"{LAYERS}attn.q_einsum_1.w"])
def test_a_missing_leaf_is_named(folder: Path, leaf: str) -> None:
    remove(folder, leaf)
    named = leaf.replace(".", "/")
    with pytest.raises(ValueError, match=rf"missing leaves \['{named}'\], surplus leaves \[\]"):
        read_orbax(folder)


def test_a_leaf_of_another_rank_is_refused(folder: Path) -> None:
    write_leaf(folder, f"{LAYERS}attn.q_einsum.w", np.zeros((2, 64, 128), np.float32))
    message = r"leaf PaliGemma/llm/layers/attn/q_einsum/w has shape \(2, 64, 128\); .* 3 axes after"
    with pytest.raises(ValueError, match=message):
        read_orbax(folder)


def test_towers_with_layers_missing_are_refused(folder: Path) -> None:
    write_leaf(folder, f"{LAYERS}mlp_1.linear", np.zeros((1, 64, 32), np.float32))
    with pytest.raises(ValueError, match=r"mlp_1/linear has 1 layers, .* has 2; the leaves of a"):
        read_orbax(folder)


def test_lost_numbers_are_not_taken_for_zeros(folder: Path) -> None:
    remove(folder, "state_proj.kernel", "/0")
    with pytest.raises(ValueError, match=r"damaged or cut short .*take a complete checkpoint"):
        read_orbax(folder)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.9])
def test_a_file_cut_short_is_refused(folder: Path, kept: float) -> None:
    for file in (folder / "params/ocdbt.process_0/d").iterdir():
        content = file.read_bytes()
        file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"damaged or cut short .*take a complete checkpoint"):
        read_orbax(folder)


def test_lost_files_are_noticed(folder: Path) -> None:
    shutil.rmtree(folder / "params/ocdbt.process_0/d")
    with pytest.raises(ValueError, match=r"damaged or cut short .*take a complete checkpoint"):
        read_orbax(folder)


def test_a_damaged_description_is_refused(folder: Path) -> None:
    (folder / "params/_METADATA").write_text('{"use_')
    with pytest.raises(ValueError, match=r"_METADATA is damaged or cut short"):
        read_orbax(folder)


def test_a_path_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no manifest.ocdbt in .*nowhere or .*params; pass"
    ):
        read_orbax(tmp_path / "nowhere")


def test_without_tensorstore_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    assert is_orbax(PI0)
    with pytest.raises(ModuleNotFoundError, match=re.escape(f"run {install_command('orbax')}")):
        read_orbax(PI0)
