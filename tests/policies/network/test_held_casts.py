"""Converted weights are held exactly until the weights change, and have exact gradients."""

from __future__ import annotations

import pickle
import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pitune.policies.finetuning.ema import EMA
from pitune.policies.network.held_casts import HeldCasts, hold_casts
from pitune.policies.network.layers import Linear
from pitune.rl.optimizers import adam

ROOT = Path(__file__).parents[3]
HALF = torch.bfloat16


def layer() -> Linear:
    torch.manual_seed(0)
    return Linear(4, 3)


def inputs() -> Tensor:
    return torch.linspace(-1, 1, 20).view(5, 4).to(HALF)


def unheld(module: Linear) -> Linear:
    hold_casts(module, enabled=False)
    return module


def test_a_weight_is_converted_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = layer()
    first = module.casts.of("weight", module.weight, HALF)
    assert module.casts.of("weight", module.weight, HALF).data_ptr() == first.data_ptr()
    with torch.no_grad():
        module.weight.mul_(2)
    second = module.casts.of("weight", module.weight, HALF)
    assert torch.equal(second, module.weight.to(HALF))
    assert not torch.equal(second, first)


@pytest.mark.parametrize("use", ["optimizer", "load", "lerp", "data", "average", "grad", "dtype"])
def test_every_change_of_a_weight_is_noticed(use: str) -> None:
    module, x = layer(), inputs()
    ema = EMA(module, 0.5)
    module(x)
    if use in ("optimizer", "average"):
        optimizer = adam(module.parameters(), lr=0.1)
        module(x).float().square().mean().backward()
        optimizer.step()
    elif use == "load":
        module.load_state_dict({key: value + 1 for key, value in module.state_dict().items()})
    elif use == "lerp":
        with torch.no_grad():
            torch._foreach_lerp_([module.weight], [torch.ones(3, 4)], 0.5)
    elif use == "data":
        module.weight.data = torch.ones(3, 4)
    elif use == "grad":
        with torch.no_grad():
            module.weight[0, 0] = 5.0
    elif use == "dtype":
        module.weight.data = module.weight.data.double() + 1
    plain = unheld(deepcopy(module))
    assert torch.equal(module(x), plain(x))
    if use == "average":
        with ema.swapped():
            assert torch.equal(module(x), unheld(deepcopy(module))(x))
        assert torch.equal(module(x), plain(x))


def test_an_average_that_moves_between_two_exchanges_is_noticed() -> None:
    """The weights themselves do not change in between, so only the average's place is known."""
    module, x = layer(), inputs()
    ema = EMA(module, 0.5)
    with torch.no_grad():
        module.weight.add_(1)
    for _ in range(2):
        with ema.swapped():
            assert torch.equal(module(x), unheld(deepcopy(module))(x))
        ema.update()


def test_each_use_has_its_own_gradient_in_the_precision_of_the_weight() -> None:
    """Two uses in one loss: the gradients are added in float32, as without held weights."""
    gradients = []
    for held in (True, False):
        module = layer()
        hold_casts(module, held)
        x = inputs()
        for _ in range(2):  # the second pass takes the held weights
            module.zero_grad()
            loss = module(x).float().square().mean() + module(3 * x + 0.1).float().mean()
            loss.backward()
        assert module.weight.grad is not None
        gradients.append((module.weight.grad, module.bias.grad))
    for ours, plain in zip(*gradients, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, plain)


def test_acting_without_a_gradient_does_not_spoil_the_next_gradient() -> None:
    module, x = layer(), inputs()
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            acted = module(x)
        assert not acted.requires_grad
        module(x).float().sum().backward()
    assert module.weight.grad is not None


def test_the_weight_itself_is_used_in_its_own_precision() -> None:
    module = layer()
    assert module.casts.of("weight", module.weight, torch.float32) is module.weight
    assert not module.casts._held


def test_converted_weights_are_neither_copied_nor_saved() -> None:
    module = layer()
    module(inputs())
    assert module.casts._held
    assert "casts" not in " ".join(module.state_dict())
    for copied in (deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert not copied.casts._held
        assert torch.equal(copied(inputs()), module(inputs()))
    assert not pickle.loads(pickle.dumps(HeldCasts()))._held


def test_sharded_layers_hold_nothing() -> None:
    module = nn.Sequential(layer(), layer())
    module[0](inputs())
    hold_casts(module, enabled=False)
    module[0](inputs())
    for first in (module[0], deepcopy(module)[0]):
        assert isinstance(first, Linear)
        assert not first.casts._held
        assert not first.casts.enabled


def test_no_module_writes_through_data() -> None:
    """Such a write raises no version. A new memory for `data` is noticed by its place."""
    written = re.compile(r"\.data\.(\w+_|__setitem__)\(|\.data\[[^\]]*\] ?[-+*/]?= ")
    for folder in ("policies/network", "policies/finetuning", "rl"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not written.search(file.read_text()), file
