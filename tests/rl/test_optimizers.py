"""The optimizers of all algorithms: fused, close to torch's loop, and resumed exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pitune.rl import optimizers
from pitune.rl.optimizers import adam, adamw

ROOT = Path(__file__).parents[2]
MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda weights: adam(weights, lr=1e-2),
    "adamw": lambda weights: adamw(weights, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1),
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> torch.Tensor:
    x = torch.linspace(-1, 1, 30).view(10, 3)
    for _ in range(steps):
        optimizer.zero_grad()
        (network(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    return torch.cat([value.detach().flatten() for value in network.parameters()])


@pytest.mark.parametrize("name", MAKERS)
def test_a_fused_step_differs_from_the_loop_by_rounding(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = model()
    first = train(fused, MAKERS[name](fused.parameters()), 100)
    monkeypatch.setattr(optimizers, "FUSED_DEVICES", ())
    plain = model()
    optimizer = MAKERS[name](plain.parameters())
    assert optimizer.defaults["fused"] is None
    assert float((first - train(plain, optimizer, 100)).abs().max()) < 1e-5


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("began_fused", [True, False])
def test_a_resumed_run_goes_on_exactly_with_the_kernel_that_it_began_with(
    name: str, began_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run from before the fused kernel keeps the loop."""
    with monkeypatch.context() as patch:
        if not began_fused:
            patch.setattr(optimizers, "FUSED_DEVICES", ())
        whole = model()
        optimizer = MAKERS[name](whole.parameters())
    train(whole, optimizer, 5)
    weights = {key: value.clone() for key, value in whole.state_dict().items()}
    state = optimizer.state_dict()
    saved = {"state": {k: dict(v) for k, v in state["state"].items()}, **_groups(state)}
    saved = torch.load(_stored(saved), weights_only=True)
    expected = train(whole, optimizer, 5)

    resumed = model()
    resumed.load_state_dict(weights)
    again = MAKERS[name](resumed.parameters())
    again.load_state_dict(saved)
    assert bool(again.param_groups[0]["fused"]) == began_fused
    assert torch.equal(train(resumed, again, 5), expected)


def _groups(state: dict[str, Any]) -> dict[str, Any]:
    return {"param_groups": state["param_groups"]}


def _stored(state: Any) -> Any:
    from io import BytesIO

    buffer = BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("name", MAKERS)
def test_a_step_raises_the_version_of_the_weights_that_it_writes(name: str) -> None:
    network = model()
    frozen = nn.Parameter(torch.ones(2))
    optimizer = MAKERS[name]([*network.parameters(), frozen])
    before = [value._version for value in network.parameters()]
    train(network, optimizer, 1)
    after = [value._version for value in network.parameters()]
    assert all(new > old for new, old in zip(after, before, strict=True))
    assert frozen._version == 0  # it has no gradient


def test_no_other_module_makes_an_optimizer() -> None:
    for folder in ("rl", "policies", "experiments"):
        for file in (ROOT / folder).rglob("*.py"):
            if file != ROOT / "rl" / "optimizers.py":
                assert "torch.optim.Adam" not in file.read_text(), file
