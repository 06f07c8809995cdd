"""`formats`: a checkpoint format that is added from outside the packages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openpi_fixtures import load_openpi, openpi_folder
from pitune.policies import PIPELINES, FlowPolicy, LoadConfig, Pi0, Pipeline, load, save
from pitune.policies.checkpoints.formats import (
    FORMATS,
    CheckpointFormat,
    load_network,
    recognize,
    register_format,
)
from pitune.policies.network.config import Pi0Config


def read_flat(folder: Path, config: LoadConfig, pipeline: Pipeline | None) -> FlowPolicy:
    """Read `flat.json` (sizes) and `flat.safetensors`, with the norm stats of openpi's fixture."""
    policy = load_openpi("pi0")
    network = Pi0(Pi0Config.from_dict(json.loads((folder / "flat.json").read_text())))
    network.load_state_dict(load_file(folder / "flat.safetensors"))
    return FlowPolicy(network, policy.preprocessor.config, policy.sampler)


def write_flat(policy: FlowPolicy, folder: Path) -> list[str]:
    from dataclasses import asdict

    (folder / "flat.json").write_text(json.dumps(asdict(policy.network.config)))
    save_file(policy.network.state_dict(), folder / "flat.safetensors")
    return ["it has its own norm stats"]


FLAT = CheckpointFormat(
    name="flat",
    files="flat.json",
    recognize=lambda folder: (folder / "flat.json").is_file(),
    read=read_flat,
    write=write_flat,
    ignored_options=frozenset({"flow_steps", "pipeline"}),
)


@pytest.fixture
def _flat() -> Iterator[None]:
    register_format(FLAT)
    yield
    del FORMATS["flat"]


@pytest.mark.usefixtures("_flat")
def test_a_format_from_outside_is_written_recognized_and_read(tmp_path: Path) -> None:
    policy = load_openpi("pi0")
    with pytest.warns(UserWarning, match="flat will differ: it has its own norm stats"):
        save(policy, tmp_path / "flat", format="flat")
    # openpi's format would take any safetensors, but later formats are asked first
    assert recognize(tmp_path / "flat") == "flat"
    again = load(tmp_path / "flat")
    for key, value in policy.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[key], value)
    network = load_network(tmp_path / "flat", action_horizon=3)
    assert network.config == policy.network.config  # which holds its own horizon
    assert recognize(openpi_folder("pi0")) == "openpi"


@pytest.mark.usefixtures("_flat")
def test_errors_list_a_format_from_outside(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"expected one of .*params/ \(orbax\).* flat\.json"
    ):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"writable are \['openpi', 'lerobot', 'pitune', 'flat'\]"):
        save(load_openpi("pi0"), tmp_path / "x", format="onnx")


@pytest.mark.usefixtures("_flat")
@pytest.mark.parametrize(
    ("config", "pipeline", "name"),
    [
        (LoadConfig(flow_steps=3), None, "flow_steps=3"),
        (LoadConfig(), PIPELINES["pi0_libero"], r"pipeline=Pipeline\(.*\)"),
    ],
)
def test_an_option_that_a_format_from_outside_ignores_is_rejected(
    config: LoadConfig, pipeline: Pipeline | None, name: str, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="flat will differ"):
        save(load_openpi("pi0"), tmp_path / "flat", format="flat")
    with pytest.raises(ValueError, match=rf"{name} does not apply to .*, which is a flat checkpoi"):
        load(tmp_path / "flat", config, pipeline)


def test_a_pipeline_is_not_ignored_by_our_own_format(
    tmp_path: Path, tiny_policy: Callable[..., FlowPolicy]
) -> None:
    save(tiny_policy(), tmp_path / "ours")
    with pytest.raises(ValueError, match=r"leave it out \(it is for openpi, orbax\)"):
        load(tmp_path / "ours", pipeline=PIPELINES["pi0_libero"])


def test_a_read_only_format_is_not_written(tmp_path: Path) -> None:
    register_format(replace(FLAT, name="read_only", write=None))
    try:
        with pytest.raises(ValueError, match="format='read_only' can be read but not written"):
            save(load_openpi("pi0"), tmp_path / "x", format="read_only")
    finally:
        del FORMATS["read_only"]


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match=r"format='openpi' is registered already; registered are"):
        register_format(replace(FLAT, name="openpi"))


def test_an_ignored_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"ignored_options=\['flowsteps'\] of format 'flat' are no"
    ):
        register_format(replace(FLAT, ignored_options=frozenset({"flowsteps"})))
    assert "flat" not in FORMATS
