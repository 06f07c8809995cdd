"""`lora`: identities of low-rank updates, on a whole tiny π0."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from pitune.policies.network.config import Family, tiny
from pitune.policies.network.layers import Linear
from pitune.policies.network.lora import LoRAConfig, add_lora, merge_lora, merged_state
from pitune.policies.network.pi0 import Pi0

BOTH = LoRAConfig(rank=4, alpha=6.0, targets=("*_proj", "fc1"))
Q_PROJ = "paligemma_with_expert.gemma_expert.model.layers.{}.self_attn.q_proj"


def make_network(family: Family = "pi0") -> Pi0:
    torch.manual_seed(0)
    return Pi0(tiny(family, image_size=28))


def velocity(network: Pi0) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    context = network.encode(
        torch.randn(2, 32, generator=generator),
        images=torch.rand(2, 2, 3, 28, 28, generator=generator) * 2 - 1,
        tokens=torch.randint(1024, (2, 6), generator=generator),
    )
    x = torch.randn(2, 3, 10, 32, generator=generator)
    flow_time = torch.rand(2, 3, generator=generator)
    return network.velocity(context, x, flow_time).velocity


def randomize(network: Pi0) -> None:
    """Give the adapters the numbers that training might."""
    torch.manual_seed(2)
    for name, parameter in network.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, std=0.1)


def adapters(network: Pi0) -> dict[str, Tensor]:
    return {key: value for key, value in network.named_parameters() if "lora_" in key}


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_fresh_adapters_change_nothing(family: Family) -> None:
    network = make_network(family)
    before = velocity(network)
    names = add_lora(network, BOTH)
    assert torch.equal(velocity(network), before)
    assert len(adapters(network)) == 2 * len(names)
    randomize(network)
    assert (velocity(network) - before).abs().max() > 1e-3


def test_a_layer_computes_the_formula() -> None:
    torch.manual_seed(0)
    layer = Linear(7, 5)
    network = torch.nn.ModuleDict({"only": layer})
    add_lora(network, LoRAConfig(rank=3, alpha=6.0, targets=("only",)))
    a, b = layer.lora_a, layer.lora_b
    assert a is not None
    assert b is not None
    assert a.shape == (3, 7)
    assert torch.equal(b, torch.zeros(5, 3))
    with torch.no_grad():
        b.normal_()
    x = torch.randn(2, 7)
    expected = x @ layer.weight.T + layer.bias + 2.0 * (x @ a.T @ b.T)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)


def test_the_first_factor_keeps_the_size_of_its_input() -> None:
    torch.manual_seed(0)
    network = torch.nn.ModuleDict({"only": Linear(256, 4)})
    add_lora(network, LoRAConfig(rank=512, alpha=1, targets=("only",)))
    a = dict(network.named_parameters())["only.lora_a"]
    x = torch.randn(64, 256)
    assert 0.95 < (x @ a.T).std() < 1.05
    kurtosis = (a / a.std()).pow(4).mean()
    assert 2.9 < kurtosis < 3.1  # 3 of a Gaussian, 1.8 of a uniform law


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_merged_equals_unmerged(family: Family) -> None:
    network = make_network(family)
    targets = (*BOTH.targets, *(("dense",) if family == "pi05" else ()))
    add_lora(network, LoRAConfig(rank=4, alpha=6.0, targets=targets))
    randomize(network)
    unmerged = velocity(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}

    state = merged_state(network)
    assert list(state) == list(make_network(family).state_dict())
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    other = make_network(family)
    other.load_state_dict(state)
    error = (velocity(other) - unmerged).norm() / unmerged.norm()
    assert error < 1e-6  # relative: rounding in every layer of float32 (the maximum varies by CPU)

    merge_lora(network)
    assert torch.equal(velocity(network), velocity(other))
    assert not adapters(network)
    add_lora(network, BOTH)  # and there is room for the next ones
    assert torch.equal(velocity(network), velocity(other))


def test_merged_equals_unmerged_to_rounding_in_one_layer() -> None:
    network = make_network()
    add_lora(network, BOTH)
    randomize(network)
    layer = network.get_submodule(Q_PROJ.format(0))
    x = torch.randn(5, 32)
    weight = merged_state(network)[f"{Q_PROJ.format(0)}.weight"]
    torch.testing.assert_close(layer(x), x @ weight.T, rtol=0, atol=1e-6)


def test_an_update_has_its_rank() -> None:
    network = make_network()
    key = f"{Q_PROJ.format(1)}.weight"
    before = network.state_dict()[key].clone()
    add_lora(network, BOTH)
    randomize(network)
    update = merged_state(network)[key] - before
    singular = torch.linalg.svdvals(update.double())
    assert (singular > 1e-5 * singular[0]).sum() == 4


def test_only_the_adapters_get_gradients_of_a_frozen_base() -> None:
    network = make_network()
    network.requires_grad_(False)
    names = add_lora(network, LoRAConfig(rank=2, alpha=2, targets=("gemma_expert.*.q_proj",)))
    assert names == [Q_PROJ.format(0), Q_PROJ.format(1)]
    randomize(network)
    velocity(network).square().mean().backward()
    with_gradient = {key for key, value in network.named_parameters() if value.grad is not None}
    assert with_gradient == adapters(network).keys()
    assert with_gradient == {f"{name}.lora_{ab}" for name in names for ab in "ab"}
    for value in adapters(network).values():
        assert value.grad is not None
        assert value.grad.abs().max() > 0


def test_bfloat16_weights_keep_float32_adapters() -> None:
    network = make_network().bfloat16()
    add_lora(network, BOTH)
    randomize(network)
    assert {value.dtype for value in adapters(network).values()} == {torch.float32}
    state = merged_state(network)
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    layer = network.get_submodule(Q_PROJ.format(0))
    lora_a, lora_b = layer.get_parameter("lora_a"), layer.get_parameter("lora_b")
    exact = layer.get_parameter("weight").float() + 1.5 * lora_b @ lora_a
    assert torch.equal(state[f"{Q_PROJ.format(0)}.weight"], exact.bfloat16())
    merge_lora(network)
    assert all(torch.equal(network.state_dict()[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("target", "number"),
    [
        ("q_proj", 2 + 2 + 3),
        ("gemma_expert.*.q_proj", 2),
        ("language_model.layers.0.*", 7),
        ("action_in_proj", 1),
        ("*", 2 * 7 + 2 * 7 + 3 * 6 + 1 + 5),
        (Q_PROJ.format(0), 1),
    ],
)
def test_targets_match_the_end_of_a_name(target: str, number: int) -> None:
    assert len(add_lora(make_network(), LoRAConfig(rank=1, alpha=1, targets=(target,)))) == number


def test_a_layer_that_two_targets_match_gets_one_adapter() -> None:
    network = make_network()
    names = add_lora(network, LoRAConfig(rank=1, alpha=1, targets=("q_proj", "*.q_proj")))
    assert len(names) == len(set(names)) == 7


@pytest.mark.parametrize("target", ["time_mlp_in", "proj", "gemma_expert.*.qproj", "layers"])
def test_the_error_for_a_target_without_match_lists_the_layers(target: str) -> None:
    network = make_network()  # π0 has action_time_mlp_in, which is not time_mlp_in
    with pytest.raises(ValueError, match=f"LoRA target '{target.replace('*', '[*]')}' m") as error:
        add_lora(network, LoRAConfig(rank=1, alpha=1, targets=("q_proj", target)))
    assert Q_PROJ.format("*") in str(error.value)
    assert "'action_time_mlp_in'" in str(error.value)
    assert not adapters(network)  # all or nothing


def test_a_second_adapter_is_refused() -> None:
    network = make_network()
    add_lora(network, LoRAConfig(rank=1, alpha=1, targets=("gemma_expert.*.q_proj",)))
    with pytest.raises(ValueError, match=r"layers \[.*1.self_attn.q_proj'\] have a low-rank upd"):
        add_lora(network, BOTH)
    assert len(adapters(network)) == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank=0 must be at least 1"),
        ({"alpha": -1.0}, "alpha=-1.0 must be above 0"),
        ({"targets": ("",)}, r"targets\[0\]='' must not be empty"),
        ({"targets": ()}, "LoRA's targets are empty; name layers"),
    ],
)
def test_senseless_settings_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**values)


def test_a_network_with_adapters_can_be_copied_and_loaded() -> None:
    network = make_network()
    add_lora(network, BOTH)
    randomize(network)
    again = make_network()
    add_lora(again, BOTH)
    again.load_state_dict(network.state_dict())
    assert torch.equal(velocity(again), velocity(network))
    assert torch.equal(velocity(copy.deepcopy(network)), velocity(network))
