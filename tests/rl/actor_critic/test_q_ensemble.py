"""`q_ensemble`: one forward for all members, subsets, targets."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch.nn.functional import layer_norm, linear

from pitune.rl.actor_critic.q_ensemble import (
    QEnsemble,
    make_target,
    polyak_update,
    reduce_ensemble,
    td_target,
)


def loop(ensemble: QEnsemble, x: torch.Tensor) -> torch.Tensor:
    """Return the values member by member, each an ordinary network (N, B)."""
    values = []
    for i in range(ensemble.num_members):
        y = x
        for layer, scale, shift in zip(
            ensemble.layers, ensemble.scale, ensemble.shift, strict=True
        ):
            weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
            y = linear(y, weight[i].T, bias[i, 0])
            y = torch.relu(layer_norm(y, y.shape[-1:], scale[i, 0], shift[i, 0]))
        values.append(linear(y, ensemble.head.weight[i].T, ensemble.head.bias[i, 0])[:, 0])
    return torch.stack(values)


@pytest.fixture
def ensemble() -> QEnsemble:
    torch.manual_seed(0)
    ensemble = QEnsemble(5, 4, (8, 6))
    for parameter in ensemble.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # norms that do something
    return ensemble


def test_the_vectorised_forward_is_the_loop_over_members(ensemble: QEnsemble) -> None:
    x = torch.randn(7, 5)
    values = ensemble(x[:, :2], x[:, 2:])
    assert values.shape == (4, 7)
    assert torch.allclose(values, loop(ensemble, x), atol=1e-6)
    assert values.std(0).min() > 1e-3  # the members differ


def test_gradients_are_those_of_the_loop_and_stay_with_their_member(ensemble: QEnsemble) -> None:
    x = torch.randn(7, 5)
    parameters = list(ensemble.parameters())
    of_loop = torch.autograd.grad(loop(ensemble, x).square().sum(), parameters)
    vectorised = torch.autograd.grad(ensemble(x).square().sum(), parameters)
    for a, b in zip(of_loop, vectorised, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    of_one = torch.autograd.grad(ensemble(x)[1].sum(), parameters)
    for gradient in of_one:
        assert gradient[1].abs().sum() > 0
        assert gradient[[0, 2, 3]].abs().sum() == 0


def test_members_start_as_linear_layers_do() -> None:
    torch.manual_seed(0)
    weight = QEnsemble(100, 10, (50,)).layers[0].get_parameter("weight").detach()
    assert float(weight.abs().max()) == pytest.approx(0.1, rel=0.01)
    assert float(weight.std()) == pytest.approx(0.1 / 3**0.5, rel=0.02)


def test_a_random_pair_of_ten_has_the_expected_least() -> None:
    """Critics that say 1 to 10: the least of two without replacement is 11 / 3 on average."""
    torch.manual_seed(0)
    values = torch.arange(1.0, 11.0)[:, None]
    pairs = [min(pair) for pair in combinations(range(1, 11), 2)]
    assert sum(pairs) / len(pairs) == pytest.approx(11 / 3)
    drawn = torch.stack([reduce_ensemble(values, "min", 2) for _ in range(4000)])
    assert float(drawn.mean()) == pytest.approx(11 / 3, abs=0.12)
    with_replacement = torch.randint(1, 11, (100_000, 2)).amin(1).float().mean()
    assert float(with_replacement) == pytest.approx(3.85, abs=0.03)  # what it must not be
    assert set(drawn.flatten().tolist()) == set(map(float, range(1, 10)))  # never the greatest


def test_a_subset_is_the_same_members_for_every_row() -> None:
    values = torch.arange(4.0)[:, None] + 10 * torch.arange(3.0)
    least = reduce_ensemble(values, "mean", 1)
    assert torch.equal(least - least[0], torch.tensor([0.0, 10.0, 20.0]))


def test_without_a_subset_all_members_speak() -> None:
    values = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    assert reduce_ensemble(values, "min").tolist() == [1.0, 2.0]
    assert reduce_ensemble(values, "mean").tolist() == [2.0, 3.5]
    assert reduce_ensemble(values, "min", 2).tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"subset=3 must be between 0 \(all\) and num_members=2"):
        reduce_ensemble(values, "min", 3)
    with pytest.raises(ValueError, match="num_members=0 must be at least 1"):
        QEnsemble(3, 0, (4,))


def test_targets_follow_and_get_no_gradient(ensemble: QEnsemble) -> None:
    target = make_target(ensemble)
    x = torch.randn(3, 5)
    assert torch.equal(target(x), ensemble(x))
    assert not any(p.requires_grad for p in target.parameters())
    for parameter in ensemble.parameters():
        parameter.data += 1
    before = [p.clone() for p in target.parameters()]
    polyak_update(target, ensemble, 0.25)
    for old, new, online in zip(before, target.parameters(), ensemble.parameters(), strict=True):
        assert torch.allclose(new, 0.75 * old + 0.25 * online)


def test_td_targets_by_hand() -> None:
    """Two steps of 0.9 with rewards 1 and 2; one step; an end; a time limit that goes on."""
    reward = torch.tensor([1 + 0.9 * 2, 1.0, 1.0, 0.0])
    discount = torch.tensor([0.81, 0.9, 0.9, 0.81])
    ended = torch.tensor([False, False, True, False])
    target = td_target(reward, discount, ended, torch.tensor([10.0, 10.0, 10.0, 5.0]))
    assert target.tolist() == pytest.approx([10.9, 10.0, 1.0, 4.05])


def test_members_agree_on_nearly_nothing_at_the_start() -> None:
    """A target is the least of members: apart from the start, it would sink below every reward."""
    torch.manual_seed(0)
    values = QEnsemble(20, 10, (256, 256))(torch.randn(500, 20))
    assert float(values.abs().max()) < 0.1
    assert float(values.std(0).min()) > 0  # they are not one and the same
