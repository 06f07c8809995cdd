"""Guidance of a velocity: its algebra by hand, and the choice of its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pitune.policies.flow.guidance import GuidanceConfig, GuidedField, parts_of
from pitune.policies.flow.path import FlowOutput


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, TIME = random(3, 2, 4, 5), torch.tensor([[0.2, 0.9], [0.5, 1.0], [0.7, 0.3]])
V, U = random(3, 2, 4, 5, seed=1), random(3, 2, 4, 5, seed=2)


def guided(**settings: Any) -> Tensor:
    config = GuidanceConfig(**settings)
    field = GuidedField(lambda *_: FlowOutput(V), lambda *_: FlowOutput(U), config)
    return field(X, TIME).velocity


def test_scale_zero_is_the_condition_and_minus_one_drops_it() -> None:
    assert torch.equal(guided(scale=0.0), V)
    assert torch.allclose(guided(scale=-1.0), U, atol=1e-6)
    assert torch.allclose(guided(scale=2.0), V + 2 * (V - U))


def test_the_parts_of_a_difference_add_up_and_are_orthogonal() -> None:
    along, across = parts_of(V - U, V)
    assert torch.allclose(along + across, V - U, atol=1e-6)
    dot = (across.double() * V.double()).sum((-2, -1))
    assert float(dot.abs().max()) < 1e-5
    # along the reference, with one factor for each row's whole chunk
    factor = along / V
    assert torch.allclose(factor, factor[..., :1, :1].expand_as(factor), rtol=1e-3)
    assert len(factor[..., 0, 0].unique()) == 6


def test_a_reference_of_zero_has_no_part_along_it() -> None:
    along, across = parts_of(V, torch.zeros_like(V))
    assert not along.any()
    assert torch.equal(across, V)


@pytest.mark.parametrize("space", ["clean", "flow"])
def test_apg_that_keeps_both_parts_is_classifier_free(space: Any) -> None:
    all_of_it = guided(scale=1.5, form="apg", parallel=1.0, apg_space=space)
    assert torch.allclose(all_of_it, guided(scale=1.5), atol=1e-5)


def test_apg_drops_the_part_along_the_prediction_of_its_space() -> None:
    t = TIME[..., None, None]
    for space, reference in (("flow", V), ("clean", X - t * V)):
        found = guided(scale=1.0, form="apg", apg_space=space) - V
        dot = (found * reference).sum((-2, -1)) / reference.norm(dim=(-2, -1))
        assert float(dot.abs().max()) < 1e-4
    flow = guided(scale=1.0, form="apg", apg_space="flow")
    assert not torch.allclose(flow, guided(scale=1.0, form="apg"), atol=1e-2)


def test_the_size_of_a_clean_difference_is_bounded() -> None:
    settings: dict[str, Any] = {"form": "apg", "parallel": 1.0}
    found = guided(scale=1.0, norm_limit=0.5, **settings) - V
    clean = (TIME[..., None, None] * found).flatten(-2).norm(dim=-1)
    free = (TIME[..., None, None] * (V - U)).flatten(-2).norm(dim=-1)
    assert torch.allclose(clean, free.clamp(max=0.5), atol=1e-4)
    assert torch.allclose(guided(scale=1.0, norm_limit=1e3, **settings), V + (V - U), atol=1e-5)


def test_momentum_sums_the_differences_of_the_steps() -> None:
    config = GuidanceConfig(scale=1.0, form="apg", parallel=1.0, apg_space="flow", momentum=-0.5)
    field = GuidedField(lambda *_: FlowOutput(V), lambda *_: FlowOutput(U), config)
    first, second, third = (field(X, TIME).velocity - V for _ in range(3))
    assert torch.allclose(first, V - U, atol=1e-5)
    assert torch.allclose(second, 0.5 * (V - U), atol=1e-5)
    assert torch.allclose(third, 0.75 * (V - U), atol=1e-5)


@pytest.mark.parametrize(
    ("gradient", "expected"), [("both", (2.0, -1.0)), ("conditional", (2.0, 0))]
)
def test_the_gradient_is_of_both_velocities_or_of_the_condition_alone(
    gradient: Any, expected: tuple[float, float]
) -> None:
    a, b = torch.tensor(0.3, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    one = torch.ones(1, 1, 1, 1)
    config = GuidanceConfig(scale=1.0, gradient=gradient)
    field = GuidedField(lambda *_: FlowOutput(a * one), lambda *_: FlowOutput(b * one), config)
    velocity = field(one, torch.ones(1, 1)).velocity.sum()
    assert float(velocity.detach()) == pytest.approx(0.5)
    found = torch.autograd.grad(velocity, (a, b), allow_unused=True, materialize_grads=True)
    assert [float(g) for g in found] == pytest.approx(list(expected))


def test_settings_of_apg_need_it() -> None:
    with pytest.raises(
        ValueError, match=r"parallel, momentum belong to form='apg', but form='cfg'"
    ):
        GuidanceConfig(parallel=0.5, momentum=0.1)
    with pytest.raises(ValueError, match=r"scale=-1.5 must be at least -1"):
        GuidanceConfig(scale=-1.5)
