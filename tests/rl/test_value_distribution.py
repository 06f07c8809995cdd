"""Categorical critics: bins and targets by hand, and their place in the algorithms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from pitune import rl
from pitune.rl.actor_critic.off_policy_config import OffPolicyConfig
from pitune.rl.actor_critic.q_ensemble import QEnsemble
from pitune.rl.actor_critic.td import OffPolicy, regression_loss
from pitune.rl.algorithms.ppo import critic_loss
from pitune.rl.policy_gradient.value import ValueCritic
from pitune.rl.value_distribution import DistributionConfig, Form

RECAP = DistributionConfig(form="nearest", num_bins=201, low=-1, high=0)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


# Bins and targets


def test_nearest_bins_are_exact_at_both_ends_and_in_the_middle() -> None:
    target = RECAP.target(column(-1.0, -0.5, 0.0))
    assert target.sum(-1).tolist() == [1, 1, 1]
    assert target.argmax(-1).tolist() == [0, 100, 200]
    assert RECAP.centers()[[0, 100, 200]].tolist() == [-1.0, -0.5, 0.0]
    assert (target @ RECAP.centers()).tolist() == [-1.0, -0.5, 0.0]


def test_a_target_between_two_bins_is_rounded_or_shared() -> None:
    bins = DistributionConfig(form="nearest", num_bins=3, low=0, high=2)
    assert bins.target(column(0.7)).tolist() == [[0, 1, 0]]
    shared = replace(bins, form="two_hot").target(column(0.7))
    assert torch.allclose(shared, torch.tensor([[0.3, 0.7, 0.0]]), atol=1e-6)


def test_the_mean_of_a_two_hot_target_is_the_value() -> None:
    bins = DistributionConfig(form="two_hot", num_bins=37, low=-3, high=2)
    value = torch.linspace(-3, 2, 101)[:, None]
    assert torch.allclose(bins.target(value) @ bins.centers()[:, None], value, atol=1e-6)


def test_a_gaussian_target_by_hand() -> None:
    """Three bins around 0, 1 and 2 with edges at -0.5, 0.5, 1.5 and 2.5; the value is 1."""
    bins = DistributionConfig(form="hl_gauss", num_bins=3, low=0, high=2, smoothing=0.75)

    def below(edge: float) -> float:
        return 0.5 * (1 + math.erf((edge - 1) / (0.75 * math.sqrt(2))))

    edges = [below(edge) for edge in (-0.5, 0.5, 1.5, 2.5)]
    by_hand = [(high - low) / (edges[-1] - edges[0]) for low, high in pairwise(edges)]
    assert bins.target(column(1.0))[0].tolist() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("form", ["hl_gauss", "two_hot", "nearest"])
def test_targets_are_distributions_and_values_outside_count_as_the_ends(form: Form) -> None:
    bins = DistributionConfig(form=form, num_bins=21, low=-1, high=1)
    inside, outside = bins.target(column(-1.0, 1.0)), bins.target(column(-9.0, 9.0))
    assert torch.allclose(inside.sum(-1), torch.ones(2))
    assert torch.equal(inside, outside)
    assert float(bins.clamped(column(-9.0, 9.0, 1.0, 0.0))) == 0.5
    assert float(bins.clamped(column(-1.04, 1.04))) == 0  # inside of the bins' edges


def test_the_cross_entropy_by_hand() -> None:
    bins = DistributionConfig(form="two_hot", num_bins=3, low=0, high=2)
    logits = torch.tensor([[0.0, math.log(2), 0.0]])  # shares 1/4, 1/2, 1/4
    loss = bins.cross_entropy(logits, column(1.5))
    assert float(loss) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    assert float(bins.value(logits)) == pytest.approx(1.0)


def test_bins_need_a_range() -> None:
    with pytest.raises(ValueError, match=r"low=1\.0 must be below high=1\.0"):
        DistributionConfig(low=1.0)


# Critics


def rows(num: int = 64) -> TensorDict:
    inputs = {"state": torch.rand(num, 4)}
    return TensorDict({"model_input": inputs, "elapsed": torch.rand(num, 1)}, [num])


@pytest.mark.parametrize("form", ["hl_gauss", "two_hot", "nearest"])
def test_a_categorical_value_learns_its_targets(form: Form) -> None:
    torch.manual_seed(0)
    bins = DistributionConfig(form=form, num_bins=51, low=0, high=4)
    critic, batch = ValueCritic(4, distribution=bins), rows()
    batch["value_target"] = batch["model_input", "state"].sum(-1, keepdim=True)
    batch["state_value"] = critic.value(batch).detach()
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    for _ in range(150):
        loss, metrics = critic_loss(critic, batch, math.inf)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = (critic.value(batch) - batch["value_target"]).abs().mean()
    assert float(error.detach()) < 0.15
    assert float(metrics["value_clamped"]) == 0
    assert batch["state_value"].mean() == pytest.approx(2.0, abs=0.05)  # the middle at first


def test_categorical_q_critics_have_a_gradient_to_the_action() -> None:
    torch.manual_seed(0)
    bins = DistributionConfig(form="hl_gauss", num_bins=11)
    critic = QEnsemble(3, 2, (16,), bins)
    torch.nn.init.normal_(critic.head.weight)
    action = torch.randn(5, 3, requires_grad=True)
    values = critic(action)
    assert values.shape == (2, 5)
    values.sum().backward()
    assert action.grad is not None
    assert float(action.grad.abs().min(0).values.max()) > 0


def test_the_loss_of_categorical_q_critics_by_hand() -> None:
    bins = DistributionConfig(form="two_hot", num_bins=3, low=0, high=2)
    critic = QEnsemble(1, 2, (), bins)
    with torch.no_grad():
        critic.head.weight.zero_()
        critic.head.bias[:] = torch.tensor([[[0.0, math.log(2), 0.0]], [[0.0, 0.0, 0.0]]])
    batch = TensorDict({"input": torch.zeros(2, 1), "target": torch.tensor([1.0, 3.0])}, [2])
    loss, metrics = regression_loss(critic, batch)
    # targets: the middle bin, and the highest one, because 3 lies outside
    first = (math.log(2) + math.log(4)) / 2
    assert float(loss) == pytest.approx(first + math.log(3))
    assert float(metrics["value_clamped"]) == 0.5
    assert float(metrics["q"]) == pytest.approx(1.0)


def test_off_policy_critics_and_their_targets_have_the_bins_of_the_config() -> None:
    bins = DistributionConfig(form="hl_gauss", num_bins=7)
    config = OffPolicyConfig(hidden=(8,), critic_distribution=bins)
    memory = OffPolicy(config, 3, torch.device("cpu"))
    assert memory.critic.head.bias.shape == memory.target.head.bias.shape == (2, 1, 7)
    assert OffPolicy(OffPolicyConfig(), 3, torch.device("cpu")).critic.head.bias.shape[-1] == 1


# Algorithms


@pytest.mark.parametrize("name", ["ppo", "fpo"])
def test_settings_that_need_a_critic_of_one_number_are_rejected(name: str) -> None:
    bins = DistributionConfig(form="hl_gauss")
    config: Any = rl.preset(name)
    scaled = replace(config.advantage, normalize_returns=True)
    with pytest.raises(ValueError, match=r"normalize_returns=True does not apply to a categorical"):
        replace(config, critic_distribution=bins, advantage=scaled)
    if name == "ppo":
        with pytest.raises(ValueError, match=r"clip\.value=0\.2 does not apply to a categorical"):
            replace(config, critic_distribution=bins, clip=replace(config.clip, value=0.2))


@pytest.mark.parametrize("name", ["ppo", "fpo", "epo"])
def test_policy_gradients_build_a_categorical_critic(name: str, tiny_policy: Callable) -> None:
    bins = DistributionConfig(form="hl_gauss", num_bins=9)
    config: Any = rl.preset(name)
    if name == "epo":
        config = replace(config, ppo=replace(config.ppo, critic_distribution=bins))
    else:
        config = replace(config, critic_distribution=bins)
    algorithm: Any = rl.make(config, tiny_policy())
    assert algorithm.critic.net[-1].out_features == 9
