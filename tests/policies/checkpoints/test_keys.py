"""`keys`: the references' own lists of weights, and exports that are held to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from openpi_fixtures import FAMILIES, load_openpi, openpi_weights
from pitune.policies import save
from pitune.policies.checkpoints import external
from pitune.policies.checkpoints.keys import (
    EMBEDDING,
    LM_HEAD,
    check_written_keys,
    lerobot_keys,
    openpi_keys,
)
from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config, pi0, pi05

NORM = "paligemma_with_expert.gemma_expert.model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_list_for_openpi_is_that_of_its_own_checkpoint(family: str) -> None:
    stored = {key: tuple(value.shape) for key, value in openpi_weights(family).items()}
    assert openpi_keys(load_openpi(family).network.config) == stored


@pytest.mark.parametrize("family", FAMILIES)
def test_the_list_for_lerobot_is_openpis_with_a_prefix_and_the_embedding(family: str) -> None:
    stored = {f"model.{key}": tuple(value.shape) for key, value in openpi_weights(family).items()}
    stored[f"model.{EMBEDDING}"] = stored[f"model.{LM_HEAD}"]
    assert lerobot_keys(load_openpi(family).network.config) == stored


def test_the_other_familys_list_differs() -> None:
    ours, other = openpi_keys(pi0()), openpi_keys(pi05())
    assert "state_proj.weight" in ours.keys() - other.keys()
    assert "time_mlp_in.weight" in other.keys() - ours.keys()


def test_the_published_sizes_have_openpis_shapes() -> None:
    keys = openpi_keys(pi0())
    assert keys[LM_HEAD] == (257_152, 2048)
    assert keys["action_in_proj.weight"] == (1024, 32)
    assert keys["action_time_mlp_in.weight"] == (1024, 2048)
    assert sum(torch.Size(shape).numel() for shape in keys.values()) == 3_501_372_176


def test_a_network_without_a_language_model_has_no_list() -> None:
    sizes = Pi0Config(state_dim=4, action_dim=2, action_horizon=2, expert=LAPTOP_EXPERT)
    with pytest.raises(ValueError, match=r"openpi's model has a vision-language model, but vlm=No"):
        openpi_keys(sizes)


def lose(weights: dict[str, Tensor]) -> str:
    key = next(key for key in weights if key.endswith(NORM))
    del weights[key]
    return rf"missing keys \['{key}'\], surplus keys \[\], wrong shapes \(found, expected\) {{}}"


def add(weights: dict[str, Tensor]) -> str:
    weights["register_tokens"] = torch.zeros(4)
    return r"missing keys \[\], surplus keys \['register_tokens'\]"


def rename(weights: dict[str, Tensor]) -> str:
    key = next(key for key in weights if key.endswith("action_out_proj.bias"))
    weights[f"{key}s"] = weights.pop(key)
    return rf"missing keys \['{key}'\], surplus keys \['{key}s'\]"


def shorten(weights: dict[str, Tensor]) -> str:
    key = next(key for key in weights if key.endswith("action_out_proj.bias"))
    weights[key] = weights[key][:-1]
    return rf"wrong shapes \(found, expected\) {{'{key}': \(\(31,\), \(32,\)\)}}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", [lose, add, rename, shorten])
def test_weights_that_openpi_wrote_are_refused_once_they_are_changed(
    family: str, change: Callable[[dict[str, Tensor]], str]
) -> None:
    keys, weights = openpi_keys(load_openpi(family).network.config), openpi_weights(family)
    check_written_keys("openpi", keys, weights)
    message = change(weights)
    with pytest.raises(ValueError, match=rf"openpi cannot read these weights: .*{message}"):
        check_written_keys("openpi", keys, weights)


@pytest.mark.parametrize("format", ["openpi", "lerobot"])
@pytest.mark.parametrize("change", [lose, add, rename, shorten])
def test_an_export_that_the_reference_cannot_read_leaves_nothing(
    format: str,
    change: Callable[[dict[str, Tensor]], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = load_openpi("pi05", discrete_state=True)
    save(policy, tmp_path / "sound", format=format)
    original, messages = external.merged_state, []

    def drifted(network: torch.nn.Module) -> dict[str, Tensor]:
        weights = original(network)
        messages.append(change(weights))
        return weights

    monkeypatch.setattr(external, "merged_state", drifted)
    with pytest.raises(ValueError, match=f"{format} cannot read these weights") as error:
        save(policy, tmp_path / "drifted", format=format)
    prefix = "model." if format == "lerobot" else ""
    names = {"lose": NORM, "add": "register_tokens"}
    name = names.get(change.__name__, "action_out_proj.bias")
    assert f"'{prefix}{name}" in str(error.value)
    assert "save with format='pitune'" in str(error.value)
    assert messages
    assert [folder.name for folder in tmp_path.iterdir()] == ["sound"]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_openpi_export_has_exactly_openpis_keys(family: str, tmp_path: Path) -> None:
    save(load_openpi(family), tmp_path / "export", format="openpi")
    written = load_file(tmp_path / "export" / "model.safetensors")
    stored = openpi_weights(family)
    assert {k: v.shape for k, v in written.items()} == {k: v.shape for k, v in stored.items()}
