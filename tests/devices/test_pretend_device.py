"""The pretend device follows the rules of CUDA and counts what waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pretend_device import Kind, count, device
from torch import Tensor, nn


def numbers() -> Tensor:
    return torch.tensor([1.0, -2.0, 3.0]).to(device())


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("to host", lambda x: x.sum().item()),
        ("to host", lambda x: float(x[0])),
        ("to host", lambda x: bool(x.any())),
        ("to host", lambda x: int(x.sum())),
        ("to host", lambda x: x.cpu()),
        ("to host", lambda x: x.tolist()),
        ("to host", lambda x: x.to("cpu")),
        ("sync", lambda x: x.nonzero()),
        ("sync", lambda x: x[x > 0]),
        ("sync", lambda x: x.unique()),
        ("sync", lambda x: x.masked_select(x > 0)),
        ("to device", lambda x: torch.arange(3).to(x.device)),
        ("to device", lambda x: torch.tensor([1.0], device=x.device)),
        ("to device", lambda x: torch.as_tensor([1.0], device=x.device)),
        ("index", lambda x: x[torch.tensor([0, 2])]),
    ],
)
def test_each_wait_and_transfer_is_counted_with_its_line(
    kind: Kind, read: Callable[[Tensor], Any]
) -> None:
    x = numbers()
    with count() as events:
        read(x)
    line = f"tests/devices/test_pretend_device.py:{read.__code__.co_firstlineno}"
    assert dict(events.lines) == {(kind, line): 1}


@pytest.mark.parametrize(
    "work",
    [
        lambda x: (x + 1).square().mean(),
        lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
        lambda x: x[torch.arange(2, device=device())],
        lambda x: x.clamp(torch.tensor(0.0), torch.tensor(1.0)),
        lambda x: torch.zeros(3, device=device()).copy_(x),
        lambda x: torch.randn(3, device=device()) * x,
        lambda x: x.to(torch.float64),
    ],
)
def test_work_on_the_device_is_not_counted(work: Callable[[Tensor], Tensor]) -> None:
    x = numbers()
    with count() as events:
        assert work(x).device.type == "pretend"
    assert not events.lines, events.text()


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(3)]),
        lambda x: torch.stack([x, torch.ones(3)]),
        lambda x: torch.where(torch.ones(3, dtype=torch.bool), x, x),
        lambda x: x @ torch.ones(3),
        lambda x: x.mul_(torch.ones(3)),
        lambda x: nn.functional.linear(x, torch.ones(2, 3)),
    ],
)
def test_tensors_of_two_devices_do_not_mix(mix: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        mix(numbers())


def test_a_tensor_of_the_device_becomes_no_array() -> None:
    with pytest.raises(TypeError, match="copy it to the host first"):
        numbers().numpy()


def test_training_on_the_device_equals_training_on_the_host() -> None:
    weights = []
    for where in (torch.device("cpu"), device()):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(where)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 3, device=where)).square().mean().backward()
            optimizer.step()
        weights.append(torch.cat([value.detach().cpu().flatten() for value in model.parameters()]))
    assert torch.equal(*weights)


def test_memory_that_is_exchanged_has_the_new_numbers() -> None:
    weight = nn.Parameter(numbers())
    other = torch.zeros(3, device=device())
    weight.data, other = other, weight.data
    assert weight.tolist() == [0.0, 0.0, 0.0]
    assert other.tolist() == [1.0, -2.0, 3.0]
