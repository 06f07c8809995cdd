"""`ema`: the average by hand, and a training that does not notice it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pitune.policies.finetuning.ema import EMA


def make_module(seed: int = 0) -> nn.Sequential:
    """Two layers, the first of them frozen."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    return module


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA | None, seed: int) -> None:
    """Take one gradient step on a batch that the seed makes."""
    generator = torch.Generator().manual_seed(seed)
    loss = module(torch.randn(8, 3, generator=generator)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if ema is not None:
        ema.update()


def test_two_updates_worked_by_hand() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 8.0)
    ema = EMA(module, decay=0.75)
    for value in (4.0, 20.0):
        nn.init.constant_(module.weight, value)
        ema.update()
    # 8 -> 0.75 * 8 + 0.25 * 4 = 7 -> 0.75 * 7 + 0.25 * 20 = 10.25
    with ema.swapped():
        assert module.weight.item() == 10.25
    assert module.weight.item() == 20.0


def test_the_average_begins_at_the_pretrained_weights() -> None:
    module = make_module()
    before = weights(module)
    ema = EMA(module)
    with ema.swapped():
        assert same(weights(module), before)
    nn.init.zeros_(module[1].get_parameter("weight"))
    with ema.swapped():
        assert same(weights(module), before)


def test_without_decay_it_is_the_raw_weights() -> None:
    module = make_module()
    ema = EMA(module, decay=0.0)
    train(module, torch.optim.SGD(module[1].parameters(), lr=0.1), ema, 0)
    raw = weights(module)
    with ema.swapped():
        assert same(weights(module), raw)


def test_frozen_weights_are_not_copied() -> None:
    module = make_module()
    state = EMA(module).state_dict()
    assert {key.partition(".")[2] for key in state} == {"1.weight", "1.bias"}


def test_training_does_not_notice_the_average() -> None:
    plain, averaged = make_module(), make_module()
    ema = EMA(averaged)
    first = torch.optim.AdamW(plain[1].parameters(), lr=0.1)
    second = torch.optim.AdamW(averaged[1].parameters(), lr=0.1)
    for seed in range(5):
        train(plain, first, None, seed)
        train(averaged, second, ema, seed)
        with ema.swapped():
            assert not same(weights(averaged), weights(plain))
            averaged(torch.ones(1, 3))
    assert same(weights(averaged), weights(plain))


def test_swapping_copies_nothing_and_keeps_the_parameters() -> None:
    module = make_module()
    ema = EMA(module)
    parameter = module[1].get_parameter("weight")
    memory = parameter.data_ptr()
    with ema.swapped():
        assert module[1].get_parameter("weight") is parameter
        assert parameter.requires_grad
        assert parameter.data_ptr() != memory
    assert parameter.data_ptr() == memory


def test_an_error_inside_brings_the_raw_weights_back() -> None:
    module = make_module()
    ema = EMA(module)
    train(module, torch.optim.SGD(module[1].parameters(), lr=1.0), ema, 0)
    raw = weights(module)
    with pytest.raises(KeyError), ema.swapped():
        raise KeyError
    assert same(weights(module), raw)
    ema.update()


@pytest.mark.parametrize("inside", [False, True])
def test_resuming_continues_bit_for_bit(tmp_path: Path, inside: bool) -> None:
    module = make_module()
    ema = EMA(module, decay=0.9)
    optimizer = torch.optim.SGD(module[1].parameters(), lr=0.3)
    for seed in range(3):
        train(module, optimizer, ema, seed)
    if inside:
        with ema.swapped():  # where the policy is saved
            save_file(ema.state_dict(), tmp_path / "ema.safetensors")
    else:
        save_file(ema.state_dict(), tmp_path / "ema.safetensors")

    other = make_module()
    nn.init.zeros_(other[1].get_parameter("weight"))
    again = EMA(other, decay=0.9)
    again.load_state_dict(load_file(tmp_path / "ema.safetensors"))
    assert same(weights(other), weights(module))
    resumed = torch.optim.SGD(other[1].parameters(), lr=0.3)
    for seed in range(3, 6):
        train(module, optimizer, ema, seed)
        train(other, resumed, again, seed)
    assert same(weights(other), weights(module))
    with ema.swapped(), again.swapped():
        assert same(weights(other), weights(module))


def test_the_state_names_raw_and_average_weights() -> None:
    module = make_module()
    ema = EMA(module)
    train(module, torch.optim.SGD(module[1].parameters(), lr=1.0), ema, 0)
    raw, outside = weights(module), {k: v.clone() for k, v in ema.state_dict().items()}
    assert torch.equal(outside["raw.1.weight"], raw["1.weight"])
    with ema.swapped():
        assert same(ema.state_dict(), outside)
        assert torch.equal(outside["average.1.weight"], module[1].get_parameter("weight"))


@pytest.mark.parametrize("what", ["update", "swapped", "load_state_dict"])
def test_what_would_mix_them_up_is_refused_inside(what: str) -> None:
    module = make_module()
    ema = EMA(module)
    calls = {
        "update": ema.update,
        "swapped": lambda: ema.swapped().__enter__(),
        "load_state_dict": lambda: ema.load_state_dict(ema.state_dict()),
    }
    with ema.swapped(), pytest.raises(RuntimeError, match=f"{what} was called inside EMA.swapped"):
        calls[what]()
    calls["update"]()


def test_the_state_of_other_parameters_is_refused() -> None:
    ema = EMA(make_module())
    state = ema.state_dict()
    state["average.0.weight"] = state.pop("average.1.weight")
    state["raw.1.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match="does not fit the trained parameters") as error:
        ema.load_state_dict(state)
    for part in (
        "missing keys ['average.1.weight']",
        "surplus keys ['average.0.weight']",
        "{'raw.1.bias': ((7,), (2,))}",
    ):
        assert part in str(error.value)


def test_a_state_of_another_shape_is_not_spread_over_the_weights() -> None:
    ema = EMA(make_module())
    state = {**ema.state_dict(), "average.1.weight": torch.zeros(1)}
    with pytest.raises(
        ValueError, match=r"\{'average.1.weight': \(\(1,\), \(2, 4\)\)\}; train the"
    ):
        ema.load_state_dict(state)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 99.0])
def test_a_senseless_decay_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"decay={decay} must be in \[0, 1\)"):
        EMA(make_module(), decay)


def test_nothing_to_average_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter is trained, so there is nothing to average"):
        EMA(make_module().requires_grad_(False))


def test_bfloat16_masters_are_refused() -> None:
    module = make_module()
    module[1].bfloat16()
    with pytest.raises(ValueError, match=r"float32 .*'1.weight': torch.bfloat16.*apply_finetuning"):
        EMA(module)
    module = make_module()
    module[0].bfloat16()  # frozen
    EMA(module)
