"""`fpo`: its ratio, its surrogates, FPO++ as settings; see test_policies_likelihood too."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase

from pitune import envs, policies, rl
from pitune.policies import (
    FlowPolicy,
    FlowSDEConfig,
    ModelInput,
    likelihood_config,
    likelihood_name,
)
from pitune.policies.flow.ode import integrate
from pitune.rl.algorithms.fpo import plus_plus
from pitune.rl.policy_gradient.loss import log_ratios
from settings import changed, stand_still

SETTINGS: dict[str, Any] = {"critic_warmup": 0, "minibatch_size": 8, "num_epochs": 2}
MODES = {"fpo": lambda c: c, "fpo++": plus_plus}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())


def new_fpo(policy: FlowPolicy, mode: Callable = MODES["fpo"], **changes: Any) -> rl.FPO:
    torch.manual_seed(0)
    return rl.FPO(mode(changed(rl.FPOConfig(), **{**SETTINGS, **changes})), policy)


def gather(algorithm: rl.FPO, num_chunks: int = 4) -> TensorDictBase:
    """Return a rollout (4, T) on `mock/Reach`."""
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7)
    rollout = rl.Rollouts(envs.make(config), algorithm, num_chunks, seed=0).collect()
    rollout["next", "reward_steps"] += torch.rand(4, num_chunks, 2)
    return rollout


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


@modes
def test_ratio_is_one_before_the_first_step_and_moves_after(
    mode: Callable, tiny_policy: Callable
) -> None:
    algorithm = new_fpo(tiny_policy(horizon=3), mode)
    metrics = algorithm.update(gather(algorithm))
    assert metrics["ratio_deviation"] < 1e-4
    assert metrics["approx_kl"] > 0
    assert metrics["gradient_steps"] == 4


@modes
def test_statistics_that_change_before_the_loss_trip_the_ratio(
    mode: Callable, tiny_policy: Callable
) -> None:
    """Negative control: the defect of a published code, which normalized anew in between.

    Here the scaled state is stored, so new statistics alone reach nothing.
    """
    algorithm = new_fpo(tiny_policy(), mode)
    rollout = gather(algorithm)
    anew = rollout.clone()
    algorithm.actor.policy.preprocessor.state_offset.add_(0.1)
    assert algorithm.update(rollout)["ratio_deviation"] < 1e-4
    algorithm = new_fpo(tiny_policy(), mode)
    algorithm.actor.policy.preprocessor.state_offset.add_(0.1)
    anew["model_input", "state"] = algorithm.actor.policy.preprocessor.normalize_state(
        anew["state"]
    )
    assert algorithm.update(anew)["ratio_deviation"] > 1e-3


def test_other_draws_than_those_of_acting_trip_the_ratio(tiny_policy: Callable) -> None:
    algorithm = new_fpo(tiny_policy())
    rollout = gather(algorithm)
    rollout["draw_noise"] = torch.randn_like(rollout["draw_noise"])
    assert algorithm.update(rollout)["ratio_deviation"] > 1e-2


@modes
def test_learning_rate_zero_changes_nothing(mode: Callable, tiny_policy: Callable) -> None:
    algorithm = new_fpo(tiny_policy(), mode)
    stand_still(algorithm)
    before = weights(algorithm.actor)
    metrics = algorithm.update(gather(algorithm))
    assert torch.equal(weights(algorithm.actor), before)
    assert metrics["clip_fraction"] == 0
    assert metrics["grad_norm"] > 0


def test_the_loss_by_hand_with_the_ratio_of_the_mean_loss(tiny_policy: Callable) -> None:
    algorithm = new_fpo(tiny_policy(horizon=3), low=0.1, high=0.2)
    batch, _ = algorithm.prepare(gather(algorithm))
    with torch.no_grad():
        algorithm.actor.policy.network.action_out_proj.bias.add_(0.3)
    policy = algorithm.actor.policy
    chunk = policy.preprocessor.unnormalize_action(batch["chain"][:, -1])
    inputs = ModelInput.of(batch)
    losses = torch.stack(
        [
            policy.loss(inputs, chunk, batch["draw_noise"][:, i], batch["draw_time"][:, i])[:, :2]
            for i in range(4)
        ],
        1,
    ).sum((2, 3))  # over executed entries, per draw (B, 4)
    ratio = (-batch["action_log_prob"] - losses.mean(1)).exp()[:, None]
    assert (ratio < 0.9).any()
    advantage = batch["advantage"]
    by_hand = -torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.2) * advantage).mean()
    assert float(algorithm.loss(batch)[0]) == pytest.approx(float(by_hand), rel=1e-4)
    inverted = -torch.minimum(advantage / ratio, (1 / ratio).clamp(0.9, 1.2) * advantage).mean()
    assert float(by_hand) != pytest.approx(float(inverted), rel=1e-2)  # the control


def test_plus_plus_has_a_ratio_per_draw_and_its_own_surrogate(tiny_policy: Callable) -> None:
    algorithm = new_fpo(tiny_policy(), plus_plus)
    batch, _ = algorithm.prepare(gather(algorithm))
    log_ratio, _ = log_ratios(algorithm.actor, batch)
    assert log_ratio.shape == (len(batch), 16)
    far = torch.full((1, 1), math.log(0.5), requires_grad=True)
    gain = algorithm._surrogate(far, -torch.ones(1, 1))
    assert gain.item() == pytest.approx(-0.5 - 0.25 / (2 * 0.2))
    by_hand = 0.5 * (-1 - 2 * (0.5 - 1) / (2 * 0.2))  # ratio 0.5; above 0, so it is called back
    assert torch.autograd.grad(gain.sum(), far)[0].item() == pytest.approx(by_hand)


def test_log_ratios_are_clamped_without_gradient(tiny_policy: Callable) -> None:
    algorithm = new_fpo(tiny_policy(), log_ratio_clamp=0.5, low=0.9, high=9.0)
    far = torch.tensor([[3.0]], requires_grad=True)
    gain = algorithm._surrogate(far, torch.ones(1, 1))
    assert gain.item() == pytest.approx(math.exp(0.5))
    assert torch.autograd.grad(gain.sum(), far)[0].item() == 0


def test_losses_are_clamped(tiny_policy: Callable) -> None:
    likelihood = likelihood_config("flow_matching", ratio="step", reduction="mean", loss_clamp=0.5)
    batch, _ = (a := new_fpo(tiny_policy(), likelihood=likelihood)).prepare(gather(a))
    assert float(batch["action_log_prob"].min()) == -0.5
    free, _ = (a := new_fpo(tiny_policy())).prepare(gather(a))
    assert float(free["action_log_prob"].min()) < -0.5


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_exploration_is_the_deployed_flow_plus_noise_on_executed_actions(
    tiny_policy: Callable, std: float
) -> None:
    likelihood = replace(rl.FPOConfig().likelihood, action_noise=std)
    algorithm = new_fpo(tiny_policy(horizon=3), likelihood=likelihood)
    batch = gather(algorithm, 40).flatten()
    policy = algorithm.actor.policy
    noise = batch["chain"][:, 0]
    deployed = integrate(
        policy.field(policy.encode(ModelInput.of(batch))), noise, policy.grid, "euler"
    )
    away = (batch["chain"][:, -1] - deployed).detach()
    executed = policy.executed_mask().bool()
    assert float(away[:, executed].std()) == pytest.approx(std, rel=0.1, abs=1e-5)
    assert float(away[:, ~executed].abs().max()) < 1e-5  # what is not executed has none
    assert algorithm.actor.terminal_std(batch) == std


def test_warmup_leaves_the_actor_alone(tiny_policy: Callable) -> None:
    algorithm = new_fpo(tiny_policy(), critic_warmup=1)
    before, rollout = weights(algorithm.actor), gather(algorithm)
    algorithm.update(rollout)
    assert torch.equal(weights(algorithm.actor), before)
    algorithm.update(rollout)
    assert not torch.equal(weights(algorithm.actor), before)


def test_another_likelihood_is_refused() -> None:
    with pytest.raises(
        ValueError, match="likelihood=FlowSDEConfig must be a FlowMatchingConfig for fpo; the other"
    ):
        rl.FPOConfig(likelihood=FlowSDEConfig())  # type: ignore[arg-type]


@pytest.mark.slow
@modes
def test_fpo_improves_a_half_trained_policy(mode: Callable, half_trained: Path) -> None:
    torch.manual_seed(0)
    policy = policies.load(half_trained)
    config = envs.EnvConfig(id="mock/Reach", num_envs=50, num_workers=0, max_episode_steps=10)
    env = envs.make(config)
    settings = rl.FPOConfig(
        update=rl.UpdateConfig(minibatch_size=250), critic_warmup=2, actor_learning_rate=5e-4
    )
    algorithm = rl.FPO(mode(settings), policy)
    before = rl.evaluate(env, algorithm.actor, 200)
    rollouts = rl.Rollouts(env, algorithm, 10, seed=0)
    for _ in range(40):
        algorithm.update(rollouts.collect())
    after = rl.evaluate(env, algorithm.actor, 200)
    assert before.interval is not None
    assert after.interval is not None
    assert after.interval[0] > before.interval[1]


def test_settings_of_plus_plus_keep_the_others() -> None:
    config = changed(rl.FPOConfig(), discount=0.9)
    assert plus_plus(config).advantage.discount == 0.9
    assert likelihood_name(plus_plus(config).likelihood) == "flow_matching"


@pytest.mark.parametrize(
    ("log_ratio", "advantage"), [(3.0, 1.0), (3.0, -1.0), (-3.0, 1.0), (-3.0, -1.0)]
)
def test_log_ratios_are_clamped_on_both_sides(
    log_ratio: float, advantage: float, tiny_policy: Callable
) -> None:
    """Inside a clip that is wider than the clamp."""
    algorithm = new_fpo(tiny_policy(), log_ratio_clamp=0.5, low=0.9, high=9.0)
    far = torch.tensor([[log_ratio]], requires_grad=True)
    gain = algorithm._surrogate(far, torch.full((1, 1), advantage))
    assert gain.item() == pytest.approx(advantage * math.exp(math.copysign(0.5, log_ratio)))
    assert torch.autograd.grad(gain.sum(), far)[0].item() == 0
    near = torch.tensor([[0.1 * log_ratio]], requires_grad=True)
    gain = algorithm._surrogate(near, torch.full((1, 1), advantage))
    assert gain.item() == pytest.approx(advantage * math.exp(0.1 * log_ratio))
    assert torch.autograd.grad(gain.sum(), near)[0].item() == pytest.approx(gain.item())


def test_the_sides_of_the_clip_are_its_own(tiny_policy: Callable) -> None:
    algorithm = new_fpo(tiny_policy(), low=0.1, high=0.4)
    for log_ratio, advantage, expected in ((1.0, 1.0, 1.4), (-1.0, -1.0, -0.9)):
        gain = algorithm._surrogate(torch.tensor([[log_ratio]]), torch.full((1, 1), advantage))
        assert gain.item() == pytest.approx(expected)
    algorithm = new_fpo(tiny_policy(), plus_plus, low=0.1, high=0.4)
    gain = algorithm._surrogate(torch.tensor([[math.log(0.5)]]), -torch.ones(1, 1))
    assert gain.item() == pytest.approx(-0.5 - 0.25 / (2 * 0.1))


def test_the_reported_loss_is_the_mean_flow_matching_loss(tiny_policy: Callable) -> None:
    algorithm = new_fpo(tiny_policy())
    batch, metrics = algorithm.prepare(gather(algorithm))
    policy, inputs = algorithm.actor.policy, ModelInput.of(batch)
    chunk = policy.preprocessor.unnormalize_action(batch["chain"][:, -1])
    losses = [
        policy.loss(inputs, chunk, batch["draw_noise"][:, i], batch["draw_time"][:, i])
        for i in range(batch["draw_time"].shape[1])
    ]
    expected = torch.stack(losses).sum((2, 3)).mean()  # summed over the executed entries
    assert metrics["flow_loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert metrics["flow_loss"] > 0
