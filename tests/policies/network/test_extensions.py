"""`extensions`: a parameter group that pretrained weights lack, added from outside the packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openpi_fixtures import FAMILIES, load_openpi, openpi_folder, openpi_weights
from pitune.policies import (
    FinetuneConfig,
    FlowPolicy,
    LoadConfig,
    Pi0,
    Pi0Config,
    apply_finetuning,
    load,
    save,
)
from pitune.policies.checkpoints.weights import build, rename_weights
from pitune.policies.finetuning.memory import parameter_report
from pitune.policies.network import extensions
from pitune.policies.network.extensions import Extension, new_parameters, register_extension

KEY = "extensions.token_gain.gain"


# begin of the code that a user writes
@register_extension("token_gain")
class TokenGain(Extension):
    """Scales each feature of the action tokens, by 1 at first."""

    def __init__(self, config: Pi0Config, start: float = 0.0) -> None:
        super().__init__()
        self.start = start
        self.gain = nn.Parameter(torch.empty(config.expert.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gain, self.start)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, M, H, D)
        return tokens + self.gain * tokens


# end of the code that a user writes


def velocity(network: Pi0) -> Tensor:
    """Return the velocity for an observation with pictures and a prompt."""
    generator = torch.Generator().manual_seed(0)
    images = 2 * torch.rand(2, 3, 3, 224, 224, generator=generator) - 1
    tokens = torch.randint(1024, (2, 6), generator=generator)
    x = torch.randn(2, 2, 10, 32, generator=generator)
    state = torch.randn(2, 32, generator=generator)
    flow_time = torch.tensor([[0.2, 0.9], [0.5, 1.0]])
    context = network.encode(state, images=images, tokens=tokens)
    return network.velocity(context, x, flow_time).velocity


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pretrained_checkpoint_loads_and_computes_the_same_numbers(family: str) -> None:
    plain = load_openpi(family)
    extended = load_openpi(family, extensions=("token_gain",))
    assert new_parameters(extended.network) == {KEY: "token_gain"}
    gain = extended.network.state_dict()[KEY]
    assert torch.equal(gain, torch.zeros(32))
    with torch.no_grad():
        expected = velocity(plain.network)
        assert torch.equal(velocity(extended.network), expected)
        gain += 0.1  # the control: it is in the computation
        assert not torch.allclose(velocity(extended.network), expected, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_is_built_around_pretrained_weights_with_the_extensions_initialized(
    family: str,
) -> None:
    weights = rename_weights(openpi_weights(family))
    sizes = replace(load_openpi(family).network.config, extensions={"token_gain": {"start": 0.25}})
    network = build(sizes, weights, Path("here"))
    assert torch.equal(network.state_dict()[KEY], torch.full((32,), 0.25))
    for key, value in weights.items():
        assert torch.equal(network.state_dict()[key], value)
    assert all(value.requires_grad for value in network.parameters())
    del weights["action_in_proj.bias"]  # published weights stay strict
    with pytest.raises(ValueError, match=r"missing keys \['action_in_proj.bias'\], surplus keys"):
        build(sizes, weights, Path("here"))


def test_it_has_a_row_of_its_own_in_the_memory_table() -> None:
    policy = load_openpi("pi0", extensions=("token_gain",))
    policy = apply_finetuning(policy, FinetuneConfig(trainable=("token_gain",)))
    report = parameter_report(policy)
    names = ["action_expert", "vlm", "vision", "projections", "token_gain"]
    assert [row.group for row in report.rows] == names
    row = report.rows[-1]
    assert (row.parameters, row.trained, row.weight_bytes) == (32, 32, 128)
    assert (row.gradient_bytes, row.adam_bytes) == (128, 256)
    assert report.trained == 32
    assert "token_gain" in report.text()
    plain = parameter_report(load_openpi("pi0"))
    assert [row.parameters for row in report.rows[:-1]] == [row.parameters for row in plain.rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_trains_alone_and_nothing_else_moves(family: str) -> None:
    policy = load_openpi(family, extensions=("token_gain",))
    policy = apply_finetuning(policy, FinetuneConfig(trainable=("token_gain",), dtype="bfloat16"))
    trained = [name for name, value in policy.named_parameters() if value.requires_grad]
    assert trained == [f"network.{KEY}"]
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    velocity(policy.network).square().mean().backward()
    gradient = policy.get_parameter(trained[0]).grad
    assert gradient is not None
    assert gradient.dtype == torch.float32
    assert gradient.abs().max() > 0
    torch.optim.AdamW((v for v in policy.parameters() if v.requires_grad), lr=1e-3).step()
    after = policy.state_dict()
    assert [name for name in after if not torch.equal(after[name], before[name])] == trained


def test_all_trains_it_and_a_frozen_one_stays_float32() -> None:
    policy = load_openpi("pi0", extensions=("token_gain",))
    apply_finetuning(policy, FinetuneConfig())
    assert policy.network.get_parameter(KEY).requires_grad
    apply_finetuning(policy, FinetuneConfig(trainable=("vlm",), dtype="bfloat16"))
    assert not policy.network.get_parameter(KEY).requires_grad
    assert policy.network.get_parameter(KEY).dtype == torch.float32


def test_a_network_without_it_cannot_train_it() -> None:
    with pytest.raises(ValueError, match=r"groups \['token_gain'\] that this network lacks; it ha"):
        apply_finetuning(load_openpi("pi0"), FinetuneConfig(trainable=("token_gain",)))


@pytest.fixture
def extended(tmp_path: Path) -> tuple[FlowPolicy, Path]:
    """A policy whose extension was trained, and its checkpoint in our format."""
    policy = load_openpi("pi0")
    policy.network.add_extension("token_gain", start=0.5)
    with torch.no_grad():
        policy.network.get_parameter(KEY).copy_(torch.linspace(0, 1, 32))
    save(policy, tmp_path / "ours")
    return policy, tmp_path / "ours"


def test_our_format_saves_and_loads_it(extended: tuple[FlowPolicy, Path]) -> None:
    policy, folder = extended
    again = load(folder)
    assert again.network.config == policy.network.config
    assert again.network.config.extensions == {"token_gain": {"start": 0.5}}
    assert again.state_dict().keys() == policy.state_dict().keys()
    for key, value in policy.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def lose(weights: dict[str, Tensor]) -> None:
    del weights[f"network.{KEY}"]


def shorten(weights: dict[str, Tensor]) -> None:
    weights[f"network.{KEY}"] = torch.zeros(31)


@pytest.mark.parametrize("change", [lose, shorten])
def test_once_saved_it_is_loaded_strictly(
    extended: tuple[FlowPolicy, Path], change: Callable[[dict[str, Tensor]], None]
) -> None:
    file = extended[1] / "policy.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    with pytest.raises(ValueError, match=rf"does not fit the network: .*'network\.{KEY}'"):
        load(extended[1])


def test_a_checkpoint_whose_extension_nobody_registered_names_it(
    extended: tuple[FlowPolicy, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(extensions._EXTENSIONS, "token_gain")
    message = r"unknown extension 'token_gain'; registered are \[.*\]. Import the module that regi"
    with pytest.raises(ValueError, match=message):
        load(extended[1])


@pytest.mark.parametrize("format", ["openpi", "lerobot"])
def test_formats_that_cannot_hold_it_refuse_it_by_name(format: str, tmp_path: Path) -> None:
    policy = load_openpi("pi05", extensions=("token_gain",), discrete_state=True)
    key = f"model.{KEY}" if format == "lerobot" else KEY
    message = rf"{format} cannot read these weights: missing keys \[\], surplus keys \['{key}'\]"
    with pytest.raises(ValueError, match=message):
        save(policy, tmp_path / "export", format=format)
    assert list(tmp_path.iterdir()) == []
    save(load_openpi("pi05", discrete_state=True), tmp_path / "export", format=format)


def test_an_extension_anywhere_in_the_network_is_a_group_of_its_own() -> None:
    class Inner(Extension):
        group = "inner"

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def reset_parameters(self) -> None:
            nn.init.ones_(self.weight)

    policy = load_openpi("pi0")
    policy.network.expert.layers[1].inner = Inner()
    name = "paligemma_with_expert.gemma_expert.model.layers.1.inner.weight"
    assert new_parameters(policy.network) == {name: "inner"}
    assert parameter_report(policy).rows[-1].group == "inner"
    apply_finetuning(policy, FinetuneConfig(trainable=("vlm",), dtype="bfloat16"))
    assert policy.network.get_parameter(name).dtype == torch.float32


def test_a_parameter_that_reset_parameters_forgets_is_named() -> None:
    @register_extension("forgetful")
    class Forgetful(TokenGain):
        def __init__(self, config: Pi0Config) -> None:
            super().__init__(config)
            self.shift = nn.Parameter(torch.zeros(3))

    try:
        sizes = replace(load_openpi("pi0").network.config, extensions={"forgetful": {}})
        message = r"reset_parameters of extension extensions.forgetful \(Forgetful\) gave no value"
        with pytest.raises(ValueError, match=rf"{message} to \['shift'\]; initialize every"):
            build(sizes, rename_weights(openpi_weights("pi0")), Path("here"))
    finally:
        del extensions._EXTENSIONS["forgetful"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_buffer_that_reset_parameters_forgets_is_named(dtype: torch.dtype) -> None:
    @register_extension("forgetful_table")
    class Table(TokenGain):
        def __init__(self, config: Pi0Config) -> None:
            super().__init__(config)
            self.register_buffer("table", torch.ones(3, dtype=dtype))

    try:
        sizes = replace(load_openpi("pi0").network.config, extensions={"forgetful_table": {}})
        with pytest.raises(ValueError, match=r"gave no value to \['table'\]"):
            build(sizes, rename_weights(openpi_weights("pi0")), Path("here"))
    finally:
        del extensions._EXTENSIONS["forgetful_table"]


def test_an_extension_must_define_its_initialization() -> None:
    with pytest.raises(NotImplementedError, match="Extension must define reset_parameters"):
        Extension().reset_parameters()


@pytest.mark.parametrize("name", ["token_gain", "vlm", "all", "keys", "two words"])
def test_a_name_that_is_taken_or_reserved_is_refused(name: str) -> None:
    class Other(TokenGain):
        pass

    with pytest.raises(ValueError, match=rf"name='{name}' is taken, reserved or no identifier"):
        register_extension(name)(Other)
    assert register_extension("token_gain")(TokenGain) is TokenGain  # as a notebook does


def test_an_extension_is_added_once_and_by_a_registered_name() -> None:
    config = LoadConfig(pipeline="pi0_libero", extensions=("token_gain", "token_gain"))
    with pytest.raises(ValueError, match=r"has the extension 'token_gain' already; its extensions"):
        load(openpi_folder("pi0"), config)
    with pytest.raises(ValueError, match=r"unknown extension 'registers'; registered are \["):
        load_openpi("pi0", extensions=("registers",))


def test_an_unknown_group_lists_the_registered_extensions() -> None:
    with pytest.raises(ValueError, match=r"unknown groups \['gain'\]; valid are .*'token_gain'"):
        FinetuneConfig(trainable=("gain",))
