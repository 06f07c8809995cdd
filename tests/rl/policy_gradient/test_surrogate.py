"""`surrogate`, `loss`, `gradient_step`: against TorchRL, by hand, and as identities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives import ClipPPOLoss

from observations import observed
from pitune.policies import FlowPolicy, LikelihoodActor, likelihood_config
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.gradient_step import gradient_step, minibatches
from pitune.rl.policy_gradient.config import ClipConfig
from pitune.rl.policy_gradient.loss import PolicyLoss, policy_metrics
from pitune.rl.policy_gradient.surrogate import (
    asymmetric_surrogate,
    clipped_surrogate,
    ratio_metrics,
    trajectory_log_ratio,
    value_loss,
)

LOG_RATIO = torch.tensor([[-1.0, -0.1, 0.0, 0.1, 1.0, 4.0]]).T


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def acted(
    policy: FlowPolicy, num: int = 24, likelihood: str = "flow_sde", **settings: Any
) -> tuple[LikelihoodActor, TensorDict]:
    """Return an actor and decisions that a neighboring policy took, with advantages."""
    actor = LikelihoodActor(policy, likelihood_config(likelihood, **settings))
    batch = actor(observed(policy, torch.rand(num, 4)))
    batch["advantage"] = torch.randn(num, 1)
    batch["action_log_prob"] += 0.4 * torch.randn_like(batch["action_log_prob"])
    return actor, batch


def gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    parts = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([p.flatten() for p in parts if p is not None])


def surrogate(log_ratio: Tensor, advantage: Tensor) -> Tensor:
    return clipped_surrogate(log_ratio, advantage, 0.1, 0.3)


@pytest.mark.parametrize("ratio", ["step", "joint"])
@pytest.mark.parametrize("likelihood", ["flow_sde", "flow_noise"])
def test_the_loss_is_torchrls_bit_for_bit(
    ratio: str, likelihood: str, tiny_policy: Callable
) -> None:
    actor, batch = acted(tiny_policy(), likelihood=likelihood, ratio=ratio)
    theirs = ClipPPOLoss(
        actor,  # type: ignore[arg-type]  # TorchRL takes every module with `get_dist`
        None,
        clip_epsilon=(0.1, 0.3),
        entropy_bonus=True,
        entropy_coeff=0.01,
        functional=False,
    )
    theirs.set_keys(action="chain", sample_log_prob="action_log_prob")
    losses = theirs(batch)
    expected = losses["loss_objective"] + losses["loss_entropy"]
    ours = PolicyLoss(actor, surrogate, entropy_coefficient=0.01)
    found, tensors = ours(batch)
    assert torch.equal(found, expected)
    parameters = list(actor.parameters())
    assert torch.equal(gradient(found, parameters), gradient(expected, parameters))
    metrics = policy_metrics(tensors, ClipConfig(low=0.1, high=0.3))
    assert metrics["clip_fraction"] == float(losses["clip_fraction"]) > 0.2
    assert metrics["approx_kl"] == float(losses["mean_ratio"] - 1 + losses["kl_approx"])


def test_clipped_surrogate_by_hand() -> None:
    for sign in (1.0, -1.0):
        found = clipped_surrogate(LOG_RATIO, torch.full((6, 1), sign), 0.2, 0.3).flatten()
        ratios = [math.exp(x) for x in LOG_RATIO.flatten().tolist()]
        clipped = [min(max(r, 0.8), 1.3) for r in ratios]
        by_hand = [min(sign * r, sign * c) for r, c in zip(ratios, clipped, strict=True)]
        assert found.tolist() == pytest.approx(by_hand, rel=1e-5)


def test_dual_clip_bounds_the_loss_of_bad_decisions_only() -> None:
    """T-C8."""
    bad, good = torch.full((6, 1), -2.0), torch.full((6, 1), 2.0)
    free = clipped_surrogate(LOG_RATIO, bad, 0.2, 0.2)
    bounded = clipped_surrogate(LOG_RATIO, bad, 0.2, 0.2, dual_clip=3.0)
    assert float(free.min()) == pytest.approx(-2 * math.exp(4), rel=1e-5)
    assert float(bounded.min()) == -6.0  # three times the advantage
    assert torch.equal(bounded[:-1], free[:-1])
    assert torch.equal(
        clipped_surrogate(LOG_RATIO, good, 0.2, 0.2, dual_clip=3.0),
        clipped_surrogate(LOG_RATIO, good, 0.2, 0.2),
    )


def test_a_clip_around_another_center_still_has_a_gradient_where_one_around_1_has_none() -> None:
    """T-D3: ratio 3, of a policy whose predecessor already had 2.9, and a positive advantage."""
    log_ratio = torch.tensor([[math.log(3.0)]], requires_grad=True)
    center = torch.tensor([[math.log(2.9)]])
    around = clipped_surrogate(log_ratio, torch.ones(1, 1), 0.2, 0.2, center=center)
    assert around.item() == pytest.approx(3.0)
    assert gradient(around.sum(), [log_ratio]).item() == pytest.approx(3.0)
    flat = clipped_surrogate(log_ratio, torch.ones(1, 1), 0.2, 0.2)
    assert flat.item() == pytest.approx(1.2)
    assert gradient(flat.sum(), [log_ratio]).item() == 0
    same = clipped_surrogate(LOG_RATIO, torch.ones(6, 1), 0.2, 0.3, center=torch.zeros(6, 1))
    assert torch.allclose(same, clipped_surrogate(LOG_RATIO, torch.ones(6, 1), 0.2, 0.3))


def test_asymmetric_surrogate_calls_a_bad_decisions_ratio_back() -> None:
    """T-I9: at ratio 1 it is PPO's, in value and gradient; its optimum is 1 - clip_low."""
    for sign in (1.0, -1.0):
        start = torch.zeros(1, 1, requires_grad=True)
        advantage = torch.full((1, 1), sign)
        ours = asymmetric_surrogate(start, advantage, 0.1, 0.1)
        ppo = clipped_surrogate(start, advantage, 0.1, 0.1)
        assert ours.item() == ppo.item() == sign
        assert gradient(ours.sum(), [start]).item() == gradient(ppo.sum(), [start]).item() == sign
    at = {ratio: torch.tensor([[math.log(ratio)]], requires_grad=True) for ratio in (0.7, 0.9)}
    slopes = {
        ratio: gradient(asymmetric_surrogate(x, -torch.ones(1, 1), 0.1, 0.1).sum(), [x]).item()
        for ratio, x in at.items()
    }
    assert slopes[0.9] == pytest.approx(0, abs=1e-5)
    assert slopes[0.7] > 1  # upwards, where clipping has no gradient
    clipped = clipped_surrogate(at[0.7], -torch.ones(1, 1), 0.1, 0.1)
    assert gradient(clipped.sum(), [at[0.7]]).item() == 0
    both = asymmetric_surrogate(LOG_RATIO, torch.zeros(6, 1), 0.1, 0.1)
    assert both.eq(0).all()  # continuous where the advantage changes its sign


def test_ratio_metrics_see_a_ratio_below_one_too() -> None:
    metrics = ratio_metrics(torch.tensor([[math.log(0.5)], [0.0]]), 0.2, 0.2)
    assert metrics["ratio_deviation"] == pytest.approx(0.5)
    assert metrics["clip_fraction"] == 0.5
    assert metrics["approx_kl"] == pytest.approx((0.5 - 1 + math.log(2)) / 2, rel=1e-5)


def test_value_clip_takes_the_worse_of_the_two_errors() -> None:
    target, old = torch.full((3, 1), 1.0), torch.zeros(3, 1)
    value = torch.tensor([[0.1], [0.5], [2.5]], requires_grad=True)
    free = value_loss(value, old, target, math.inf)
    assert free.item() == pytest.approx((0.9**2 + 0.5**2 + 1.5**2) / 3)
    clipped = value_loss(value, old, target, 0.2)
    assert clipped.item() == pytest.approx((0.9**2 + 0.8**2 + 1.5**2) / 3)
    grad = gradient(clipped, [value])
    assert grad[1] == 0  # moved towards its target by more than the clip
    assert grad[0] < 0 < grad[2]


def test_a_trajectorys_ratio_is_the_geometric_mean_of_its_decisions() -> None:
    log_ratio = torch.tensor([[0.1, 0.3], [0.5, 0.7], [-0.2, 0.0]])
    found = trajectory_log_ratio(log_ratio, torch.tensor([7, 7, 2]))
    assert found.flatten().tolist() == pytest.approx([0.4, 0.4, -0.1])


@pytest.mark.parametrize("num_parts", [2, 3, 5])
def test_a_step_in_parts_is_the_step_of_the_whole(num_parts: int, tiny_policy: Callable) -> None:
    """Five parts of 24 rows are of unequal sizes."""
    results = []
    for parts in (1, num_parts):
        torch.manual_seed(0)
        actor, batch = acted(tiny_policy())
        batch["weight"] = torch.linspace(0.5, 1.5, 24)[:, None]
        loss = PolicyLoss(actor, surrogate, kl_coefficient=0.1)
        with torch.no_grad():  # away from the reference
            for parameter in actor.parameters():
                parameter.add_(0.01)
        optimizer = torch.optim.SGD(actor.parameters(), lr=1.0)
        before = torch.cat([p.detach().flatten().clone() for p in actor.parameters()])
        metrics, norm = gradient_step(
            optimizer,
            loss,
            batch,
            name="actor",
            step="update 0",
            max_grad_norm=0.5,
            num_parts=parts,
        )
        step = torch.cat([p.detach().flatten() for p in actor.parameters()]) - before
        numbers = policy_metrics(metrics, ClipConfig(low=0.1, high=0.3))
        results.append((step, torch.tensor([norm, *numbers.values()])))
    assert float(results[0][0].norm()) == pytest.approx(0.5, rel=1e-3)
    assert float((results[1][0] - results[0][0]).norm()) < 1e-4
    assert torch.allclose(results[1][1], results[0][1], rtol=1e-4, atol=1e-5)


def test_parts_that_all_weigh_the_same_would_be_seen() -> None:
    """Negative control: parts of unequal sizes, each counted as one."""
    x = torch.arange(5.0)
    parts = x.split(2)
    assert torch.stack([p.mean() for p in parts]).mean() != x.mean()
    weighed = sum(float(p.mean()) * len(p) / 5 for p in parts)
    assert weighed == pytest.approx(float(x.mean()))


def test_a_loss_that_is_not_finite_names_its_network_and_update() -> None:
    weight = torch.nn.Parameter(torch.tensor(float("nan")))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    batch = TensorDict({"x": torch.ones(2)}, [2])
    with pytest.raises(FloatingPointError, match="critic loss is nan in update 7; no step was t"):
        gradient_step(
            optimizer,
            lambda part: ((weight * part["x"]).mean(), {}),
            batch,
            name="critic",
            step="update 7",
        )


def test_every_row_is_in_one_minibatch_of_each_epoch() -> None:
    rows = minibatches(12, 4, 2)
    assert sorted(torch.cat(rows[:3]).tolist()) == list(range(12))
    assert sorted(torch.cat(rows[3:]).tolist()) == list(range(12))
    assert not torch.equal(rows[0], rows[3])


def test_each_decision_counts_by_its_weight(tiny_policy: Callable) -> None:
    actor, batch = acted(tiny_policy())
    loss = PolicyLoss(actor, surrogate)
    chosen = torch.zeros(24, 1)
    chosen[:6] = 4.0  # a quarter of the decisions, so that the weights are 1 on average
    weighted, whole = loss(batch.copy().set("weight", chosen))[0], loss(batch)[0]
    few = loss(sub_dict(batch, slice(6)))[0]
    assert torch.allclose(weighted, few, atol=1e-6)
    assert not torch.allclose(whole, few, atol=1e-3)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_value_clip_bounds_both_directions(sign: float) -> None:
    """A value that has moved by 0.5 towards a target at 1 counts as moved by 0.2."""
    value = torch.tensor([[sign * 0.5]], requires_grad=True)
    loss = value_loss(value, torch.zeros(1, 1), torch.full((1, 1), sign), 0.2)
    assert loss.item() == pytest.approx(0.8**2)
    assert gradient(loss, [value]).item() == 0


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.4), (0.3, 0.05)])
def test_the_parabola_has_the_width_of_the_lower_clip(low: float, high: float) -> None:
    """Its maximum is at the ratio 1 - low, whatever the upper clip."""
    ratio = torch.linspace(0.5, 1.5, 2001)[:, None]
    gain = asymmetric_surrogate(ratio.log(), -torch.ones(2001, 1), low, high)
    assert float(ratio[gain.argmax()]) == pytest.approx(1 - low, abs=1e-3)
    good = asymmetric_surrogate(ratio.log(), torch.ones(2001, 1), low, high)
    assert float(good.max()) == pytest.approx(1 + high, abs=1e-3)
