"""`native`: what is written comes back exactly, and half of it never does."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pitune.policies import (
    FlowPolicy,
    GemmaConfig,
    NormStats,
    Pi0Config,
    PreprocessorConfig,
    SamplerConfig,
    load,
    save,
)
from pitune.policies.checkpoints import files, native
from pitune.policies.checkpoints.files import atomic_folder

EXPERT = GemmaConfig(width=16, depth=2, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8)


@pytest.fixture
def policy() -> FlowPolicy:
    """A policy none of whose settings is a default."""
    torch.manual_seed(0)
    network = Pi0Config(state_dim=4, action_dim=3, action_horizon=5, expert=EXPERT)
    stats = PreprocessorConfig(
        state=NormStats.of(torch.randn(50, 3)),
        action=NormStats.of(torch.randn(50, 2) / 3),
        normalization="quantile",
        epsilon=1e-3,
        min_scale=0.03,
    )
    sampler = SamplerConfig(flow_steps=3, execution_horizon=2, solver="heun")
    return FlowPolicy(network, stats, sampler)


@pytest.fixture
def folder(policy: FlowPolicy, tmp_path: Path) -> Path:
    """A sound checkpoint."""
    save(policy, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def change_description(folder: Path, **values: Any) -> None:
    file = folder / "policy.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_policy_comes_back_exactly(policy: FlowPolicy, folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == ["policy.json", "policy.safetensors"]
    loaded = load(folder)
    assert loaded.network.config == policy.network.config
    assert loaded.preprocessor.config == policy.preprocessor.config
    assert loaded.sampler == policy.sampler
    before, after = policy.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    inputs = policy.model_input({"state": torch.randn(16, 3)})
    noise = torch.randn(16, 5, 3)
    assert torch.equal(loaded.sample_actions(inputs, noise), policy.sample_actions(inputs, noise))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_delay_that_pitune_0_3_stored_with_the_sampler_is_found(folder: Path) -> None:
    file = folder / "policy.json"
    description = json.loads(file.read_text())
    del description["real_time_delay"]
    values = {"method": "trained", "schedule": "exp", "max_weight": 5.0, "jacobian": "full"}
    description["sampler"]["real_time"] = {**values, "max_delay": 2}
    file.write_text(json.dumps(description))
    policy = load(folder)
    assert policy.info.real_time_delay == 2
    assert policy.sampler.real_time is not None
    assert policy.sampler.real_time.method == "trained"


def test_a_path_may_be_text(policy: FlowPolicy, tmp_path: Path) -> None:
    save(policy, str(tmp_path / "deep" / "down"))
    assert load(str(tmp_path / "deep" / "down")).sampler == policy.sampler


def test_loaded_weights_owe_nothing_to_the_random_state(folder: Path) -> None:
    # an untrained network is drawn before its weights are replaced; the weights must not show it
    torch.manual_seed(1)
    first = load(folder).state_dict()
    torch.manual_seed(2)
    second = load(folder).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_folder_that_exists_is_refused_and_left_alone(policy: FlowPolicy, folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with torch.no_grad():
        policy.network.action_out_proj.bias.add_(1)
    with pytest.raises(FileExistsError, match="checkpoint exists already; pass another path"):
        save(policy, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_writer_leaves_nothing(
    policy: FlowPolicy, tmp_path: Path, error: BaseException
) -> None:
    def write() -> None:
        with atomic_folder(tmp_path / "half") as folder:
            native.write_policy(policy, folder)
            assert not (tmp_path / "half").exists()  # a reader finds nothing until all is written
            raise error

    with pytest.raises(type(error)):
        write()
    assert list(tmp_path.iterdir()) == []
    save(policy, tmp_path / "half")  # and the place is free again
    load(tmp_path / "half")


def test_a_writer_that_fails_between_the_files_leaves_nothing(
    policy: FlowPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.json, "dumps", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(policy, tmp_path / "half")
    assert list(tmp_path.iterdir()) == []


def test_the_rest_of_a_killed_writer_is_not_in_the_way(policy: FlowPolicy, tmp_path: Path) -> None:
    rest = tmp_path / f"tmp_checkpoint_{os.getpid()}"  # a container gives the same id again
    rest.mkdir()
    (rest / "half.safetensors").write_bytes(b"half")
    save(policy, tmp_path / "checkpoint")
    names = {file.name for file in (tmp_path / "checkpoint").iterdir()}
    assert names == {"policy.json", "policy.safetensors"}


@pytest.mark.parametrize("kept", [0, 4, 100, -1, -1000])
def test_weights_cut_short_are_refused(folder: Path, kept: int) -> None:
    file = folder / "policy.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"policy.safetensors is damaged or cut short"):
        load(folder)


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {name} in .*a checkpoint is a folder with"):
        load(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nowhere"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", '{"format": "pitune", "vers'])
def test_a_description_cut_short_is_refused(folder: Path, text: str) -> None:
    (folder / "policy.json").write_text(text)
    with pytest.raises(ValueError, match=r"policy.json is not a valid JSON object .* damaged"):
        load(folder)


def test_a_description_that_is_not_text_is_refused(folder: Path) -> None:
    (folder / "policy.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ValueError, match=r"policy.json is not a valid JSON object"):
        load(folder)


@pytest.mark.parametrize(
    "values", [{"version": 4}, {"version": None}, {"format": "openpi"}, {"version": "1"}]
)
def test_another_format_or_version_is_refused(folder: Path, values: dict[str, Any]) -> None:
    change_description(folder, **values)
    with pytest.raises(ValueError, match=r"has format, version .*; this pitune reads"):
        load(folder)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"pitune"'])
def test_a_description_of_something_else_is_refused(folder: Path, text: str) -> None:
    (folder / "policy.json").write_text(text)
    with pytest.raises(ValueError, match=r"policy.json .*damaged"):
        load(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"network": None},
        {"network": {"width": 3}},
        {"sampler": {"flow_steps": 3, "steps": 4}},
        {"sampler": None},
        {"preprocessor": {}},
        {"preprocessor": {"state": [1, 2], "action": [3]}},
    ],
)
def test_a_description_with_other_fields_is_refused(folder: Path, values: dict[str, Any]) -> None:
    change_description(folder, **values)
    with pytest.raises(ValueError, match=r"policy.json does not describe a policy .*damaged"):
        load(folder)


def test_renamed_and_misshapen_weights_are_named(folder: Path) -> None:
    file = folder / "policy.safetensors"
    weights = load_file(file)
    weights["network.state_projection.weight"] = weights.pop("network.state_proj.weight")
    weights["network.action_out_proj.bias"] = torch.zeros(7)
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"does not fit the network") as error:
        load(folder)
    assert "missing keys ['network.state_proj.weight']" in str(error.value)
    assert "surplus keys ['network.state_projection.weight']" in str(error.value)
    assert "{'network.action_out_proj.bias': ((7,), (3,))}" in str(error.value)


def test_weights_of_another_size_of_network_are_refused(folder: Path) -> None:
    description = json.loads((folder / "policy.json").read_text())
    change_description(folder, network={**description["network"], "action_dim": 4})
    with pytest.raises(ValueError, match=r"network\.action_in_proj\.weight"):
        load(folder)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_loading_never_unpickles(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "exploded"
    content = pickle.dumps(Bomb(mark))
    for name in ("policy.pt", "algorithm.pt", "policy.pkl", "model.pt"):
        (folder / name).write_bytes(content)
    load(folder)
    assert not mark.exists()
    (folder / "policy.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is a pickle"):
        load(folder)
    assert not mark.exists()
    pickle.loads(content)  # the control: the bomb works
    assert mark.exists()
