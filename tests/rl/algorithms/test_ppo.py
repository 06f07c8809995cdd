"""`ppo`: the loss against a hand-written one, ratios, probes that must change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import Normal

from pitune import envs, policies, rl
from pitune.policies import (
    FlowPolicy,
    FlowSDEConfig,
    LikelihoodConfig,
    ModelInput,
    likelihood_config,
)
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.gradient_step import minibatches
from pitune.rl.policy_gradient.advantage import generalized_advantage
from pitune.rl.policy_gradient.loss import with_one_step
from settings import changed, stand_still

MODES = {
    f"{kernel}, {steps} random, {ratio} ratio, {reduction}": likelihood_config(
        kernel, stochastic_steps=steps, ratio=ratio, reduction=reduction
    )
    for kernel, steps, ratio, reduction in (
        ("flow_sde", "all", "step", "sum"),
        ("flow_sde", "all", "joint", "sum"),
        ("flow_sde", "all", "joint", "mean"),
        ("flow_sde", "one", "step", "sum"),
        ("flow_sde", "one", "joint", "sum"),
        ("flow_noise", "all", "step", "sum"),
        ("flow_noise", "all", "joint", "sum"),
        ("flow_noise", "one", "step", "mean"),
    )
}
modes = pytest.mark.parametrize("likelihood", MODES.values(), ids=MODES.keys())
SETTINGS: dict[str, Any] = {"critic_warmup": 0, "minibatch_size": 8, "num_epochs": 2}


def new_ppo(policy: FlowPolicy, **changes: Any) -> rl.PPO:
    torch.manual_seed(0)
    return rl.PPO(changed(rl.PPOConfig(), **{**SETTINGS, **changes}), policy)


def gather(algorithm: rl.PPO, num_chunks: int = 4) -> TensorDictBase:
    """Return a rollout (4, T) on `mock/Reach`, with rewards that differ."""
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7)
    rollout = rl.Rollouts(envs.make(config), algorithm, num_chunks, seed=0).collect()
    generator = torch.Generator().manual_seed(0)  # no draw from the numbers of the update
    rollout["next", "reward_steps"] += torch.rand(4, num_chunks, 2, generator=generator)
    return rollout


def perturb(algorithm: rl.PPO, size: float) -> None:
    """Move the policy away from the one that gathered."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in algorithm.actor.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def gradients(algorithm: rl.PPO, loss: Tensor) -> Tensor:
    """Return the gradient of a loss with respect to all parameters of the actor, as one vector."""
    parts = torch.autograd.grad(loss, list(algorithm.actor.parameters()), allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if part is None else part).flatten()
            for p, part in zip(algorithm.actor.parameters(), parts, strict=True)
        ]
    )


# The loss


@modes
def test_loss_equals_one_written_by_hand_away_from_ratio_one(
    likelihood: LikelihoodConfig, tiny_policy: Callable
) -> None:
    algorithm = new_ppo(tiny_policy(), likelihood=likelihood, low=0.1, high=0.3)
    batch, _ = algorithm.prepare(gather(algorithm))
    perturb(algorithm, 0.005)
    batch["action_log_prob"] += 0.4 * torch.randn_like(batch["action_log_prob"])

    log_ratio = algorithm.actor.get_dist(batch).log_prob(batch["chain"]) - batch["action_log_prob"]
    advantage = batch["advantage"]
    if likelihood.ratio == "joint":
        log_ratio = log_ratio[:, None]
    ratio = log_ratio.exp()
    clipped = ratio.clamp(0.9, 1.3)
    by_hand = -torch.minimum(ratio * advantage, clipped * advantage).mean()

    assert (ratio > 1.3).any()  # else the comparison would be one of unclipped losses
    assert (ratio < 0.9).any()
    loss, _ = algorithm.loss(batch)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    first, second = gradients(algorithm, loss), gradients(algorithm, by_hand)
    assert torch.allclose(first, second, rtol=1e-4, atol=1e-6)
    assert first.norm() > 1e-3

    metrics = algorithm.actor_step(batch)
    k3 = (ratio - 1 - log_ratio).mean()
    assert metrics["clip_fraction"] == pytest.approx((clipped != ratio).float().mean().item())
    assert metrics["approx_kl"] == pytest.approx(k3.item(), rel=1e-4)
    assert metrics["ratio_deviation"] == pytest.approx((ratio - 1).abs().max().item(), rel=1e-4)
    assert metrics["approx_kl"] >= 0


def test_one_flow_step_is_a_normal_policy_given_its_noise(tiny_policy: Callable) -> None:
    """T-C3. With K = 1 the chunk is Normal(noise - velocity, std), in its executed entries."""
    policy = tiny_policy(horizon=3, executed=2, flow_steps=1)
    likelihood = likelihood_config("flow_noise", std_min=0.3, std_max=0.3)
    algorithm = new_ppo(policy, likelihood=likelihood)
    batch, _ = algorithm.prepare(gather(algorithm))
    noise, chunk = batch["chain"].unbind(1)

    def log_prob() -> Tensor:
        time = torch.ones(len(batch), 1)
        velocity = policy.network.velocity(
            policy.encode(ModelInput.of(batch)), noise[:, None], time
        ).velocity
        normal = Normal((noise - velocity[:, 0])[:, :2], 0.3)
        return normal.log_prob(chunk[:, :2]).sum((-2, -1))

    old = log_prob().detach()
    assert torch.allclose(batch["action_log_prob"].squeeze(1), old, atol=1e-4)
    perturb(algorithm, 0.03)
    ratio = (log_prob() - old).exp()
    advantage = batch["advantage"].squeeze(1)
    surrogate = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    expected = gradients(algorithm, surrogate)
    found = gradients(algorithm, algorithm.loss(batch)[0])
    assert expected.norm() > 1e-3
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_advantages_are_those_of_the_rollout_under_the_present_critic(
    tiny_policy: Callable,
) -> None:
    algorithm = new_ppo(tiny_policy(), discount=0.9, gae_lambda=0.8, time_limit="bootstrap")
    rollout = gather(algorithm)
    rollout["next", "reward_steps"] += torch.rand(4, 4, 2)
    batch, metrics = algorithm.prepare(rollout)
    with torch.no_grad():
        rollout["state_value"] = algorithm.critic.value(rollout)
        rollout["next", "state_value"] = algorithm.critic.value(sub_dict(rollout, "next"))
    advantage, target = generalized_advantage(rollout, 0.9, 0.8, "bootstrap")
    centered = advantage - advantage.mean()
    standard = centered / centered.square().mean().sqrt()
    assert torch.allclose(batch["advantage"], standard.flatten(0, 1), atol=1e-3)
    assert torch.allclose(batch["value_target"], target.flatten(0, 1))
    assert metrics["advantage_std"] == pytest.approx(advantage.std().item())


# The ratio


@modes
def test_ratio_is_one_before_the_first_step(
    likelihood: LikelihoodConfig, tiny_policy: Callable
) -> None:
    algorithm = new_ppo(tiny_policy(horizon=3), likelihood=likelihood)
    metrics = algorithm.update(gather(algorithm))
    assert metrics["ratio_deviation"] < 1e-4
    assert metrics["approx_kl"] > 0  # and the steps after it moved


def dropout(algorithm: rl.PPO, rollout: TensorDictBase) -> None:
    """Score with another network than the one that acted."""
    network = algorithm.actor.policy.network
    original = network.velocity

    def velocity(*args: Any) -> Any:
        output = original(*args)
        return output._replace(velocity=torch.nn.functional.dropout(output.velocity, 0.3))

    network.velocity = velocity  # type: ignore[method-assign, assignment]


def other_step(algorithm: rl.PPO, rollout: TensorDictBase) -> None:
    """Score another flow step than the one that was random."""
    rollout["stochastic_step"] = 1 - rollout["stochastic_step"]


def other_noise(algorithm: rl.PPO, rollout: TensorDictBase) -> None:
    """Score with another noise level."""
    config = algorithm.actor.config
    assert isinstance(config, FlowSDEConfig)
    algorithm.actor.likelihood.config = replace(config, noise_level=0.55)


def other_scaling(algorithm: rl.PPO, rollout: TensorDictBase) -> None:
    """Score states that other norm statistics have scaled."""
    rollout["model_input", "state"] += 0.1


@pytest.mark.parametrize("defect", [dropout, other_step, other_noise, other_scaling])
def test_a_scorer_that_is_not_the_sampler_trips_the_ratio(
    defect: Callable, tiny_policy: Callable
) -> None:
    """T-C5, the negative control of the test above."""
    likelihood = FlowSDEConfig(stochastic_steps="one")
    algorithm = new_ppo(tiny_policy(), likelihood=likelihood)
    rollout = gather(algorithm)
    defect(algorithm, rollout)
    assert algorithm.update(rollout)["ratio_deviation"] > 1e-2


def test_statistics_that_change_after_acting_do_not_reach_the_scorer(
    tiny_policy: Callable,
) -> None:
    """The states that the actor read are stored as they were scaled."""
    algorithm = new_ppo(tiny_policy())
    rollout = gather(algorithm)
    algorithm.actor.policy.preprocessor.state_offset.add_(0.1)
    assert algorithm.update(rollout)["ratio_deviation"] < 1e-4


@modes
def test_learning_rate_zero_changes_nothing(
    likelihood: LikelihoodConfig, tiny_policy: Callable
) -> None:
    algorithm = new_ppo(tiny_policy(), likelihood=likelihood)
    stand_still(algorithm)
    before = weights(algorithm.actor), weights(algorithm.critic)
    metrics = algorithm.update(gather(algorithm))
    assert same(weights(algorithm.actor), before[0])
    assert same(weights(algorithm.critic), before[1])
    assert metrics["clip_fraction"] == 0
    assert abs(metrics["approx_kl"]) < 1e-6
    assert metrics["ratio_deviation"] < 1e-4
    assert metrics["gradient_steps"] == 4  # 16 decisions in minibatches of 8, twice
    assert metrics["grad_norm"] > 0


# Scoring one step per row


def repeated_batch(algorithm: rl.PPO, times: int) -> TensorDictBase:
    batch, _ = algorithm.prepare(gather(algorithm))
    return TensorDict.cat([batch] * times)


def test_scoring_one_step_has_the_mean_gradient_of_scoring_all(tiny_policy: Callable) -> None:
    """Every row stands 500 times in the batch and draws its step anew each time."""
    algorithm = new_ppo(tiny_policy(flow_steps=3), scored_steps="one")
    batch = repeated_batch(algorithm, 500)
    perturb(algorithm, 0.01)
    expected = gradients(algorithm, algorithm.loss(batch)[0])
    drawn = with_one_step(batch, 3)
    found = gradients(algorithm, algorithm.loss(drawn)[0])
    assert float((found - expected).norm() / expected.norm()) < 0.1
    # Negative control: always the same step is another gradient.
    for step in range(3):
        old = batch["action_log_prob"][:, step : step + 1]
        fixed = batch.copy().update(
            {"stochastic_step": torch.full((len(batch),), step), "action_log_prob": old}
        )
        biased = gradients(algorithm, algorithm.loss(fixed)[0])
        assert float((biased - expected).norm() / expected.norm()) > 0.3


def test_the_step_to_score_is_drawn_uniformly_with_its_own_log_prob(tiny_policy: Callable) -> None:
    algorithm = new_ppo(tiny_policy(flow_steps=3), scored_steps="one")
    batch = repeated_batch(algorithm, 200)
    drawn = with_one_step(batch, 3)
    share = torch.bincount(drawn["stochastic_step"], minlength=3) / len(batch)
    assert share.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    rows = torch.arange(len(batch))
    own = batch["action_log_prob"][rows, drawn["stochastic_step"]]
    assert torch.equal(drawn["action_log_prob"], own[:, None])
    scored = algorithm.actor.get_dist(drawn).log_prob(drawn["chain"])
    assert torch.allclose(scored, own[:, None], atol=1e-4)
    assert "stochastic_step" not in batch.keys()


def test_updates_that_score_one_step_begin_at_ratio_one(tiny_policy: Callable) -> None:
    algorithm = new_ppo(tiny_policy(), scored_steps="one")
    metrics = algorithm.update(gather(algorithm))
    assert metrics["ratio_deviation"] < 1e-4
    assert metrics["gradient_steps"] == 4


@pytest.mark.parametrize(
    "likelihood", [FlowSDEConfig(stochastic_steps="one"), FlowSDEConfig(ratio="joint")]
)
def test_scoring_one_step_needs_a_ratio_per_step(likelihood: LikelihoodConfig) -> None:
    with pytest.raises(ValueError, match="a joint ratio is not a mean over its steps"):
        rl.PPOConfig(scored_steps="one", likelihood=likelihood)


# The update


def test_critic_warmup_leaves_the_actor_alone(tiny_policy: Callable) -> None:
    """T-C6, with a learned noise, which belongs to the actor too."""
    likelihood = likelihood_config("flow_noise")
    algorithm = new_ppo(tiny_policy(), likelihood=likelihood, critic_warmup=2)
    rollout = gather(algorithm)
    actor, critic = weights(algorithm.actor), weights(algorithm.critic)
    for _ in range(2):
        metrics = algorithm.update(rollout)
        assert same(weights(algorithm.actor), actor)
        assert not same(weights(algorithm.critic), critic)
        assert "ratio_deviation" not in metrics
        critic = weights(algorithm.critic)
    metrics = algorithm.update(rollout)
    assert "ratio_deviation" in metrics
    changed = [
        key for key, value in weights(algorithm.actor).items() if not value.equal(actor[key])
    ]
    assert any(key.startswith("policy.") for key in changed)
    assert any(key.startswith("likelihood.head.") for key in changed)


def test_the_critic_learns_its_targets(tiny_policy: Callable) -> None:
    algorithm = new_ppo(tiny_policy(), critic_warmup=100, num_epochs=20)
    rollout = gather(algorithm)
    rollout["next", "reward_steps"] += 1.0
    losses = [algorithm.update(rollout)["value_loss"] for _ in range(4)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_policy_that_moved_too_far_ends_its_update(tiny_policy: Callable) -> None:
    settings: dict[str, Any] = {"actor_learning_rate": 0.05, "num_epochs": 4}
    far = new_ppo(tiny_policy(), target_kl=0.01, **settings)
    # The first step still sees the policy that gathered; the second sees what it did.
    assert far.update(gather(far))["gradient_steps"] == 2
    free = new_ppo(tiny_policy(), target_kl=float("inf"), **settings)
    assert free.update(gather(free))["gradient_steps"] == 8


def test_a_ragged_last_minibatch_is_dropped_and_a_large_one_shrunk(tiny_policy: Callable) -> None:
    ragged = new_ppo(tiny_policy(), minibatch_size=6, num_epochs=3)
    assert ragged.update(gather(ragged))["gradient_steps"] == 6
    large = new_ppo(tiny_policy(), minibatch_size=1000, num_epochs=3)
    assert large.update(gather(large))["gradient_steps"] == 3
    rows = minibatches(16, 6, 3)
    assert [len(part) for part in rows] == [6] * 6
    for epoch in (rows[:2], rows[2:4], rows[4:]):
        assert len(torch.cat(epoch).unique()) == 12


@pytest.mark.parametrize("scored_steps", ["all", "one"])
def test_an_update_does_not_touch_its_rollout(scored_steps: Any, tiny_policy: Callable) -> None:
    algorithm = new_ppo(tiny_policy(), scored_steps=scored_steps)
    rollout: TensorDictBase = gather(algorithm).to(
        "cpu"
    )  # from here on a move to the CPU is no copy
    before = rollout.clone().flatten_keys()
    algorithm.update(rollout)
    after = rollout.flatten_keys()
    assert same(dict(before.items()), dict(after.items()))


def test_decisions_in_a_simulator_that_broke_down_are_dropped(tiny_policy: Callable) -> None:
    algorithm = new_ppo(tiny_policy())
    rollout = gather(algorithm)
    broken = torch.zeros(4, 4, 1, dtype=torch.bool)
    broken[1, 2] = broken[3, 0] = True
    rollout["next", "invalid"] = broken
    rollout["next", "truncated"] |= broken
    rollout["next", "done"] |= broken
    batch, _ = algorithm.prepare(rollout)
    assert len(batch) == 14
    kept = rollout["chain"][~broken.squeeze(-1)]
    assert torch.equal(batch["chain"], kept)
    assert batch["advantage"].mean().abs() < 1e-5
    assert batch["advantage"].std(correction=0) == pytest.approx(1, abs=1e-2)


def test_numbers_that_are_not_finite_stop_the_update(tiny_policy: Callable) -> None:
    algorithm = new_ppo(tiny_policy())
    rollout = gather(algorithm)
    spoiled = rollout.clone()
    spoiled["next", "reward_steps"][0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="critic loss is nan in update 0; no step was t"):
        algorithm.update(spoiled)
    algorithm = new_ppo(tiny_policy())
    next(algorithm.actor.parameters()).data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="actor loss is nan in update 0"):
        algorithm.update(rollout)


def test_entropy_bonus_widens_a_learned_noise(tiny_policy: Callable) -> None:
    likelihood = likelihood_config("flow_noise")
    entropies = {}
    for coefficient in (0.0, 10.0):
        algorithm = new_ppo(
            tiny_policy(),
            likelihood=likelihood,
            entropy_coefficient=coefficient,
            actor_learning_rate=0.01,
            target_kl=float("inf"),
        )
        rollout = gather(algorithm)
        batch, _ = algorithm.prepare(rollout)
        for _ in range(3):
            metrics = algorithm.update(rollout)
        dist = algorithm.actor.get_dist(batch)
        dist.log_prob(batch["chain"])
        entropies[coefficient] = float(dist.entropy().mean().detach())
        assert ("entropy" in metrics) == (coefficient > 0)
    # The noise starts at sqrt(0.08 * 0.16): an entropy of ln(0.113) + 1.419 = -0.760.
    assert entropies[10.0] > -0.7
    assert entropies[10.0] > entropies[0.0] + 0.05


def test_every_parameter_of_the_policy_is_trained(tiny_policy: Callable) -> None:
    likelihood = likelihood_config("flow_noise")
    algorithm = new_ppo(tiny_policy(), likelihood=likelihood)
    trained = {
        id(p) for group in algorithm.optimizers["actor"].param_groups for p in group["params"]
    }
    assert trained == {id(p) for p in algorithm.actor.parameters()}
    assert {id(p) for p in algorithm.actor.policy.parameters()} < trained
    critic = {id(p) for p in algorithm.critic.parameters()}
    assert not trained & critic
    assert {
        id(p) for group in algorithm.optimizers["critic"].param_groups for p in group["params"]
    } == critic


# Learning


@pytest.mark.slow
def test_ppo_improves_a_half_trained_policy(half_trained: Path) -> None:
    torch.manual_seed(0)
    policy = policies.load(half_trained)
    config = envs.EnvConfig(id="mock/Reach", num_envs=50, num_workers=0, max_episode_steps=10)
    env = envs.make(config)
    algorithm = rl.PPO(
        rl.PPOConfig(
            update=rl.UpdateConfig(minibatch_size=250), critic_warmup=2, actor_learning_rate=5e-4
        ),
        policy,
    )
    before = rl.evaluate(env, algorithm.actor, 200)
    rollouts = rl.Rollouts(env, algorithm, 10, seed=0)
    for _ in range(40):
        algorithm.update(rollouts.collect())
    after = rl.evaluate(env, algorithm.actor, 200)
    assert before.success_rate is not None
    assert before.interval is not None
    assert after.interval is not None
    assert before.success_rate < 0.75  # or there is little left to learn
    assert after.interval[0] > max(0.8, before.interval[1])
