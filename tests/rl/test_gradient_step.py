"""One gradient step for every algorithm: in parts, with its own parameters only, and finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from pitune import envs, rl
from pitune.policies import FlowPolicy, likelihood_config
from pitune.rl.actor_critic.learner import FlowActorCritic
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.gradient_step import (
    gradient_step,
    merge_metrics,
    minibatches,
    run_epochs,
    split_rows,
)
from settings import changed

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # `es` has no gradient, so no minibatches
    **{name: (name, {}) for name in rl.presets() if name != "es"},
    "ppo, all options": (
        "ppo",
        {
            "kl_coefficient": 0.1,
            "bc_coefficient": 0.5,
            "scored_steps": "one",
            "normalize_returns": True,
            "value": 0.5,
        },
    ),
    "ppo, learned noise": (
        "ppo",
        {"likelihood": likelihood_config("flow_noise"), "entropy_coefficient": 0.1},
    ),
    "grpo, trajectories": ("grpo", {"level": "trajectory"}),
    "dsrl, sac": ("dsrl", {"variant": "sac", "entropy_in_target": True}),
    "wsrl, cloning": ("wsrl", {"cloning_coefficient": 0.5, "anchor_coefficient": 0.0}),
    "wsrl, demonstrations": ("wsrl", {"offline_share": 0.5}),
    "filtered_bc, clipped": ("filtered_bc", {"max_grad_norm": 0.1}),
}
OFF_POLICY = {"warmup_decisions": 0, "updates_per_decision": 0.5}
CHANGES: dict[str, dict[str, Any]] = {
    "ppo": {"critic_warmup": 0},
    "fpo": {"critic_warmup": 0},
    "epo": {"critic_warmup": 0},
    "grpo": {"min_kept": 0.0},
    "bc": {"learning_rate": 0.01},
    "filtered_bc": {"learning_rate": 0.01},
    **{word: OFF_POLICY for word in ("dsrl", "wsrl", "dgn")},
}


@pytest.fixture(autouse=True)
def _plain_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take steps that are proportional to the gradient: Adam's hide its scale."""

    def sgd(parameters: Any, **_: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.01)

    monkeypatch.setattr(torch.optim, "Adam", sgd)
    monkeypatch.setattr(torch.optim, "AdamW", sgd)


def mixed(rollout: TensorDictBase) -> TensorDictBase:
    """Return a rollout with rewards that differ, in which every other episode succeeds."""
    rollout = rollout.clone()
    if rollout.batch_size.numel() == 0:
        return rollout
    after = sub_dict(rollout, "next")
    done = after["done"].squeeze(-1)
    number = done.long().cumsum(1) - done.long() + torch.arange(len(done))[:, None]
    after["success"] = (done & (number % 2 == 0))[..., None]
    after["reward_steps"] += torch.rand(after["reward_steps"].shape)
    return rollout


def networks(algorithm: rl.Algorithm) -> dict[str, Tensor]:
    """Return the parameters of each network, as one vector."""
    modules = {"actor": algorithm.actor, **algorithm.networks}
    return {
        name: torch.cat([p.detach().flatten().double().clone() for p in module.parameters()])
        for name, module in modules.items()
    }


def after_update(
    name: str, num_parts: int, small_preset: Callable, policy: FlowPolicy
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """Return the networks of a case before and after one update, and its metrics."""
    word, changes = CASES[name]
    settings = {**CHANGES.get(word, {}), **changes, "num_parts": num_parts}
    torch.manual_seed(0)
    algorithm = rl.make(changed(small_preset(word), **settings), policy)
    env = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7)
    torch.manual_seed(0)
    rollout = mixed(rl.Rollouts(envs.make(env), algorithm, 9, seed=0).collect())
    before = networks(algorithm)
    metrics = algorithm.update(rollout)
    return before, networks(algorithm), metrics


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, float]:
    """Return the relative distance of two versions of each network."""
    return {key: float((first[key] - second[key]).norm() / first[key].norm()) for key in first}


@pytest.mark.parametrize("name", CASES)
def test_minibatches_in_parts_move_every_network_alike(
    name: str, small_preset: Callable, tiny_policy: Callable
) -> None:
    before, whole, metrics = after_update(name, 1, small_preset, tiny_policy())
    _, parts, metrics_of_parts = after_update(name, 3, small_preset, tiny_policy())
    moved = {key: size for key, size in distance(before, whole).items() if "target" not in key}
    assert min(moved.values()) > 1e-5, moved
    assert max(distance(whole, parts).values()) < 1e-6
    for key, value in metrics.items():
        assert metrics_of_parts[key] == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), key


def test_a_scale_of_each_part_would_be_seen(
    small_preset: Callable, tiny_policy: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: values scaled by the mean of their part, not of the minibatch."""
    _, whole, _ = after_update("wsrl", 1, small_preset, tiny_policy())
    monkeypatch.setattr(FlowActorCritic, "_value_scale", lambda *_: None)
    _, parts, _ = after_update("wsrl", 3, small_preset, tiny_policy())
    assert distance(whole, parts)["actor"] > 5e-6


# The function


def weights_and_batch() -> tuple[nn.Parameter, TensorDict]:
    return nn.Parameter(torch.ones(3)), TensorDict({"x": torch.arange(21.0).view(7, 3)}, [7])


@pytest.mark.parametrize(("reduction", "same"), [("mean", True), ("sum", False)])
def test_a_loss_that_is_a_sum_is_another_in_parts(reduction: str, same: bool) -> None:
    """The sum is the negative control: a loss must be a mean over rows."""
    ends = []
    for num_parts in (1, 3):
        weight, batch = weights_and_batch()

        def loss(part: TensorDictBase, weight: Tensor = weight) -> tuple[Tensor, dict]:
            rows = (weight * part["x"]).square().sum(1)
            return getattr(rows, reduction)(), {}

        optimizer = torch.optim.SGD([weight], lr=1e-3)
        gradient_step(optimizer, loss, batch, name="w", step="0", num_parts=num_parts)
        ends.append(weight.detach())
    assert torch.allclose(ends[0], ends[1], rtol=1e-6) == same


def test_only_the_optimizers_parameters_get_a_gradient() -> None:
    weight, batch = weights_and_batch()
    other, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = torch.optim.SGD([weight, frozen], lr=0.1)
    gradient_step(
        optimizer,
        lambda part: ((weight * other * frozen * part["x"]).mean(), {}),
        batch,
        name="w",
        step="0",
    )
    assert weight.grad is not None
    assert other.grad is None
    assert frozen.grad is None
    assert frozen.eq(1).all()


def test_the_norm_is_that_before_scaling() -> None:
    for limit, step in ((math.inf, 5.0), (1.0, 1.0), (10.0, 5.0)):
        weight = nn.Parameter(torch.zeros(2))
        optimizer = torch.optim.SGD([weight], lr=1.0)

        def loss(
            part: TensorDictBase, weight: nn.Parameter = weight
        ) -> tuple[Tensor, dict[str, Tensor]]:
            return (weight * torch.tensor([3.0, 4.0])).sum(), {}

        _, norm = gradient_step(
            optimizer,
            loss,
            TensorDict({"x": torch.ones(2)}, [2]),
            name="w",
            step="0",
            max_grad_norm=limit,
        )
        assert norm == pytest.approx(5.0)
        assert float(weight.detach().norm()) == pytest.approx(step, rel=1e-4)


@pytest.mark.parametrize(
    ("num_steps", "advice"),
    [
        (0, "no step was taken before, so check the norm stats, the observations and the rewards"),
        (1, "lower its learning rate, check the scale of rewards and actions, or resume from the"),
    ],
)
def test_a_loss_that_is_not_finite_moves_nothing_and_names_its_step_and_causes(
    num_steps: int, advice: str
) -> None:
    """Also where it is the second part's. A learning rate is no cause before the first step."""
    weight, batch = weights_and_batch()
    optimizer = torch.optim.RMSprop([weight], lr=1e-3)

    def step() -> None:
        gradient_step(
            optimizer,
            lambda part: ((weight * part["x"]).mean(), {}),
            batch,
            name="critic",
            step="round 3",
            num_parts=2,
        )

    for _ in range(num_steps):
        step()
    before = weight.detach().clone()
    batch["x"][-1] = math.inf
    with pytest.raises(FloatingPointError, match=f"critic loss is inf in round 3; {advice}"):
        step()
    assert weight.equal(before)


def test_metrics_are_averaged_by_rows_or_joined() -> None:
    history = [
        {"mean": torch.tensor(1.0), "row": torch.zeros(3, 2)},
        {"mean": torch.tensor(5.0), "row": torch.ones(1, 2)},
    ]
    merged = merge_metrics(history, [0.75, 0.25])
    assert float(merged["mean"]) == 2.0
    assert merged["row"].tolist() == [[0.0, 0.0]] * 3 + [[1.0, 1.0]]


def test_metrics_carry_no_graph() -> None:
    weight, batch = weights_and_batch()

    def loss(part: TensorDictBase) -> tuple[Tensor, dict]:
        value = (weight * part["x"]).mean()
        return value, {"loss": value}

    optimizer = torch.optim.SGD([weight], lr=0.1)
    metrics, _ = gradient_step(optimizer, loss, batch, name="w", step="0", num_parts=2)
    assert not metrics["loss"].requires_grad
    assert float(metrics["loss"]) == pytest.approx(10.0)


def test_parts_hold_every_row_once_and_whole_groups_together() -> None:
    batch = TensorDict(
        {"row": torch.arange(7), "episode": torch.tensor([5, 5, 5, 2, 2, 9, 9])}, [7]
    )
    assert [len(part) for part in split_rows(batch, 3)] == [3, 3, 1]
    assert len(split_rows(batch, 100)) == 7
    for num_parts in (1, 2, 3, 100):
        parts = split_rows(batch, num_parts, "episode")
        assert len(parts) == min(num_parts, 3)
        assert sorted(torch.cat([part["row"] for part in parts]).tolist()) == list(range(7))
        owners = [set(part["episode"].tolist()) for part in parts]
        assert sum(len(owner) for owner in owners) == 3


@pytest.mark.parametrize("num_parts", [1, 3])
def test_each_step_has_a_gradient_of_its_own(num_parts: int) -> None:
    """Of the mean of x in two steps with x = 1, then x = 2: the steps are 1 and 2, not 1 and 3."""
    weight = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=1.0)

    def loss(batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        return (weight * batch["x"]).mean(), {}

    ends = []
    for x in (1.0, 2.0):
        batch = TensorDict({"x": torch.full((5,), x)}, [5])
        _, norm = gradient_step(
            optimizer, loss, batch, name="weight", step="update 0", num_parts=num_parts
        )
        assert norm == pytest.approx(x)
        ends.append(weight.item())
    assert ends == pytest.approx([-1.0, -3.0])


def test_minibatches_are_random_and_of_one_size() -> None:
    torch.manual_seed(0)
    rows = minibatches(10, 4, num_epochs=3)
    assert [len(part) for part in rows] == [4] * 6
    for epoch in range(3):
        both = torch.cat(rows[2 * epoch : 2 * epoch + 2])
        assert len(both.unique()) == 8
        assert both.tolist() != sorted(both.tolist())
    assert not torch.equal(rows[0], rows[2])
    whole = minibatches(3, 4, num_epochs=2)
    assert [sorted(part.tolist()) for part in whole] == [[0, 1, 2]] * 2


def test_an_update_ends_after_the_step_that_went_too_far() -> None:
    batch = TensorDict({"x": torch.arange(8)}, [8])
    rows = list(torch.arange(8).split(2))
    seen: list[list[int]] = []

    def step(part: TensorDictBase) -> dict[str, float]:
        seen.append(part["x"].tolist())
        divergence = (0.1, 0.3, 0.05, 0.0)[len(seen) - 1]
        return {"approx_kl": divergence, "ratio_deviation": float(len(seen))}

    found = run_epochs(batch, rows, step, target_kl=0.2)
    assert seen == [[0, 1], [2, 3]]
    assert found == {
        "ratio_deviation": 1.0,  # that of the first step
        "approx_kl": pytest.approx(0.2),
        "gradient_steps": 2.0,
    }
    seen.clear()
    assert run_epochs(batch, rows, step, target_kl=0.5)["gradient_steps"] == 4
