"""`ppo`'s options: each does what it says, and the defaults are without them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase

from pitune import envs, rl
from pitune.policies import (
    FlowNoiseConfig,
    FlowPolicy,
    FlowSDEConfig,
    LikelihoodActor,
    LikelihoodConfig,
    likelihood_config,
)
from pitune.rl.algorithms.ppo import critic_loss
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.policy_gradient.loss import log_ratios
from pitune.rl.policy_gradient.reference import Reference, frozen_copy
from pitune.rl.policy_gradient.surrogate import implied_clip
from pitune.rl.policy_gradient.value import ValueCritic
from settings import changed

SETTINGS: dict[str, Any] = {"critic_warmup": 0, "minibatch_size": 8, "num_epochs": 2}


def new_ppo(policy: FlowPolicy, **changes: Any) -> rl.PPO:
    torch.manual_seed(0)
    return rl.PPO(changed(rl.PPOConfig(), **{**SETTINGS, **changes}), policy)


def gather(algorithm: rl.PPO) -> TensorDictBase:
    """Return a rollout (4, 4) on `mock/Reach`, with rewards that differ."""
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7)
    rollout = rl.Rollouts(envs.make(config), algorithm, 4, seed=0).collect()
    rollout["next", "reward_steps"] += torch.rand(4, 4, 2)
    return rollout


def weights(algorithm: rl.PPO) -> torch.Tensor:
    modules = (algorithm.actor, algorithm.critic)
    return torch.cat([p.detach().flatten().clone() for m in modules for p in m.parameters()])


@pytest.mark.parametrize("likelihood", [FlowSDEConfig(), FlowNoiseConfig(ratio="joint")])
def test_a_minibatch_in_parts_is_the_minibatch(
    likelihood: LikelihoodConfig, tiny_policy: Callable
) -> None:
    ends: list[torch.Tensor] = []
    before = torch.zeros(())
    for num_parts in (1, 2, 3):
        algorithm = new_ppo(tiny_policy(), likelihood=likelihood, num_parts=num_parts)
        before = weights(algorithm)
        algorithm.update(gather(algorithm))
        ends.append(weights(algorithm))
    assert float((ends[0] - before).norm()) > 1e-3
    for end in ends[1:]:
        assert float((end - ends[0]).norm()) < 0.02 * float((ends[0] - before).norm())


def test_options_that_are_off_change_nothing(tiny_policy: Callable) -> None:
    """Bit for bit: bounds that nothing reaches, and re-scoring by the very same numbers."""
    plain = new_ppo(tiny_policy())
    plain.update(gather(plain))
    far = new_ppo(tiny_policy(), dual=1e6, value=1e6)
    far.update(gather(far))
    assert torch.equal(weights(plain), weights(far))


def test_value_clip_and_dual_clip_reach_the_loss(tiny_policy: Callable) -> None:
    plain = new_ppo(tiny_policy())
    plain.update(gather(plain))
    clipped = new_ppo(tiny_policy(), value=1e-4)
    clipped.update(gather(clipped))
    assert not torch.equal(weights(plain), weights(clipped))
    algorithm = new_ppo(tiny_policy(), dual=1.5)
    batch, _ = algorithm.prepare(gather(algorithm))
    batch["action_log_prob"] -= 3.0  # ratios of 20
    batch["advantage"] = torch.full_like(batch["advantage"], -1.0)
    assert float(algorithm.loss(batch)[0]) == pytest.approx(1.5)


def test_the_divergence_keeps_the_policy_near_the_pretrained_one(tiny_policy: Callable) -> None:
    moved = {}
    for value in (0.0, 300.0):
        algorithm = new_ppo(
            tiny_policy(),
            target_kl=math.inf,
            actor_learning_rate=1e-3,
            num_epochs=30,
            kl_coefficient=value,
        )
        reference = Reference(algorithm.actor)
        rollout = gather(algorithm)
        batch, _ = algorithm.prepare(rollout)
        metrics = algorithm.update(rollout)
        assert ("reference_kl" in metrics) == (value > 0)
        _, dist = log_ratios(algorithm.actor, batch)
        moved[value] = float(reference.divergence(batch, dist, "kernel").mean())
    assert moved[300.0] < 0.1 * moved[0.0]


def test_a_frozen_copy_shares_frozen_weights_and_copies_trained_ones(
    tiny_policy: Callable,
) -> None:
    policy = tiny_policy()
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("action_out_proj" in name)
    copy = frozen_copy(policy)
    assert not any(p.requires_grad for p in copy.parameters())
    start = {name: p.clone() for name, p in policy.named_parameters()}
    pairs = zip(policy.named_parameters(), copy.parameters(), strict=True)
    for (name, parameter), copied in pairs:
        assert (parameter is copied) == ("action_out_proj" not in name)
        if parameter.requires_grad:
            parameter.data += 1.0
    assert all(torch.equal(p, start[name]) for name, p in copy.named_parameters())


def test_cloning_enters_the_loss_with_its_weight(tiny_policy: Callable) -> None:
    algorithm = new_ppo(tiny_policy(), bc_coefficient=0.5)
    batch, _ = algorithm.prepare(gather(algorithm))
    loss, parts = algorithm.loss(algorithm.loss.with_draws(batch))
    assert parts["reference_bc"] > 0.1
    assert torch.allclose(loss, parts["policy_loss"] + 0.5 * parts["reference_bc"], rtol=1e-5)
    assert "reference_bc" in algorithm.update(gather(algorithm))


def test_cloning_the_reference_brings_a_policy_back(tiny_policy: Callable) -> None:
    """The gradient of the cloning loss moves a policy that left towards the one that it left."""
    torch.manual_seed(0)
    policy = tiny_policy()
    actor = LikelihoodActor(policy, FlowSDEConfig())
    reference = Reference(actor)
    batch = sub_dict(gather(new_ppo(tiny_policy())), (slice(None), 0))
    bias = policy.network.action_out_proj.bias
    slopes = []
    for shift in (0.3, -0.3):
        with torch.no_grad():
            bias += shift
        losses = []
        for _ in range(300):
            drawn = batch.copy().update(reference.cloning_draws(actor, len(batch)))
            losses.append(reference.cloning_loss(actor, drawn).mean())
        slopes.append(torch.autograd.grad(torch.stack(losses).mean(), bias)[0])
        with torch.no_grad():
            bias -= shift
    assert bool((slopes[0] > slopes[1]).all())


# Re-scoring


def test_rescoring_finds_no_gap_where_there_is_none(tiny_policy: Callable) -> None:
    algorithm = new_ppo(tiny_policy(), rescore=True)
    metrics = algorithm.update(gather(algorithm))
    assert metrics["log_prob_gap_max"] < 1e-4
    assert metrics["ratio_deviation"] == 0.0  # the very same forward


def test_rescoring_logs_the_gap_and_starts_from_ratio_one(tiny_policy: Callable) -> None:
    """A scorer that differs from the sampler: the gap is logged, and no ratio is wrong by it."""
    gaps = {}
    for rescore in (False, True):
        algorithm = new_ppo(tiny_policy(), rescore=rescore)
        rollout = gather(algorithm)
        rollout["model_input", "state"] += 0.1
        gaps[rescore] = algorithm.update(rollout)
    assert gaps[False]["ratio_deviation"] > 1e-2
    assert "log_prob_gap" not in gaps[False]
    assert gaps[True]["log_prob_gap"] > 1e-3
    assert gaps[True]["ratio_deviation"] < 1e-4


# Returns


def test_rescaling_changes_no_value_but_the_units_of_the_loss(tiny_policy: Callable) -> None:
    torch.manual_seed(0)
    critic = ValueCritic(tiny_policy().preprocessor.model_state_dim)
    torch.nn.init.normal_(critic.net[-1].get_parameter("weight"))
    batch = sub_dict(gather(new_ppo(tiny_policy())), (slice(None), 0))
    before = critic.value(batch)
    target = 40 + 10 * torch.randn(512, 1)
    assert torch.equal(critic.scaled(target), target)
    for _ in range(3):
        critic.rescale(target)
        assert torch.allclose(critic.value(batch), before, atol=1e-3)
    assert float(critic.return_mean) == pytest.approx(float(target.mean()), rel=1e-3)
    assert float(critic.return_std) == pytest.approx(float(target.std()), rel=1e-2)
    assert float(critic.scaled(target).std()) == pytest.approx(1, rel=1e-2)


def test_returns_that_are_all_equal_are_not_blown_up(tiny_policy: Callable) -> None:
    critic = ValueCritic(tiny_policy().preprocessor.model_state_dim)
    critic.rescale(torch.zeros(8, 1))
    assert float(critic.return_std) == pytest.approx(1e-2)


def test_scaled_returns_are_learned_at_any_scale_of_reward(tiny_policy: Callable) -> None:
    explained = {}
    for normalize in (False, True):
        algorithm = new_ppo(
            tiny_policy(), normalize_returns=normalize, critic_warmup=100, num_epochs=20
        )
        rollout = gather(algorithm)
        rollout["next", "reward_steps"] += torch.arange(4.0)[:, None, None]  # by environment
        rollout["next", "reward_steps"] *= 1000
        for _ in range(6):
            metrics = algorithm.update(rollout)
        explained[normalize] = metrics["explained_variance"]
        assert ("return_std" in metrics) == normalize
    assert explained[True] > 0.8
    assert explained[False] < 0.2


def test_values_are_clipped_in_the_units_they_are_learned_in(tiny_policy: Callable) -> None:
    algorithm = new_ppo(tiny_policy(), normalize_returns=True, value=0.5)
    rollout = gather(algorithm)
    rollout["next", "reward_steps"] *= 1000
    batch, _ = algorithm.prepare(rollout)
    assert torch.allclose(algorithm.critic.value(batch), batch["state_value"], atol=1e-2)
    found = float(critic_loss(algorithm.critic, batch, 0.5)[0])
    std = float(algorithm.critic.return_std)
    error = (batch["state_value"] - batch["value_target"]).square().mean() / std**2
    assert found == pytest.approx(float(error), rel=1e-3)


# What is reported


def test_implied_clip_by_hand() -> None:
    text = implied_clip(0.2, 0.2, "sum", 16, 1)
    assert "product, 16 entries x 1 flow steps, clipped to [0.8, 1.2]" in text
    assert f"[{0.8 ** (1 / 16):.4g}, {1.2 ** (1 / 16):.4g}] per entry" in text
    assert "[0.8, 1.2] for the likelihood of all 16" in text
    text = implied_clip(0.2, 0.2, "mean", 16, 1)
    assert "geometric mean over entries" in text
    assert "[0.8, 1.2] per entry" in text
    assert f"[{0.8**16:.3g}, {1.2**16:.3g}] for the likelihood" in text
    assert "16 entries x 4 flow steps" in implied_clip(0.2, 0.2, "sum", 16, 4)


@pytest.mark.parametrize(("ratio", "steps"), [("step", 1), ("joint", 2)])
def test_the_notes_of_a_run_explain_its_clip_range(
    ratio: Any, steps: int, tiny_policy: Callable
) -> None:
    algorithm = new_ppo(tiny_policy(horizon=3), likelihood=FlowSDEConfig(ratio=ratio))
    (note,) = algorithm.notes()
    assert f"4 entries x {steps} flow steps" in note
    others = (
        rl.GRPO(rl.GRPOConfig(likelihood=algorithm.config.likelihood), tiny_policy(horizon=3)),
        rl.EPO(rl.EPOConfig(ppo=algorithm.config), tiny_policy(horizon=3)),
    )
    assert [other.notes() for other in others] == [[note], [note]]
    assert rl.FPO(rl.FPOConfig(), tiny_policy()).notes() == []
    losses = likelihood_config("flow_matching")
    assert new_ppo(tiny_policy(), likelihood=losses).notes() == []


@pytest.mark.parametrize("steps", ["all", "one"])
def test_the_terminal_deviation_is_the_one_that_the_last_step_really_has(
    steps: Any, tiny_policy: Callable
) -> None:
    """Flow-SDE's last step has noise_level / sqrt(K (K - 1)), not noise_level."""
    likelihood = FlowSDEConfig(noise_level=0.5, stochastic_steps=steps)
    algorithm = new_ppo(tiny_policy(horizon=3, flow_steps=4), likelihood=likelihood)
    metrics = algorithm.update(gather(algorithm))
    assert metrics["terminal_std"] == pytest.approx(0.5 / math.sqrt(12), rel=1e-4)
    constant = likelihood_config("flow_noise", std_min=0.3, std_max=0.3)
    algorithm = new_ppo(tiny_policy(), likelihood=constant)
    assert algorithm.update(gather(algorithm))["terminal_std"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_parts": 0}, "num_parts=0 must be at least 1"),
        ({"dual": 0.9}, r"dual=0.9 must be above 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(rl.PPOConfig(), **changes)


def test_a_likelihood_without_gradient_is_refused_in_training() -> None:
    for config in (rl.PPOConfig, rl.GRPOConfig):
        with pytest.raises(
            ValueError, match="the likelihood 'ode' has no gradient, it is for tests"
        ):
            config(likelihood=likelihood_config("ode"))
    with pytest.raises(ValueError, match="scored_steps='one' does not apply to the likelihood"):
        rl.PPOConfig(likelihood=likelihood_config("flow_matching"), scored_steps="one")


@pytest.mark.parametrize("kernel", ["velocity_gaussian", "flow_matching"])
@pytest.mark.parametrize("ratio", ["step", "joint"])
def test_every_likelihood_trains_by_one_word(
    kernel: Any, ratio: Any, tiny_policy: Callable
) -> None:
    algorithm = new_ppo(
        tiny_policy(),
        likelihood=likelihood_config(kernel, ratio=ratio),
        kl_coefficient=0.1,
        kl_space="velocity",
    )
    before = weights(algorithm)
    metrics = algorithm.update(gather(algorithm))
    assert metrics["ratio_deviation"] < 1e-4
    assert metrics["approx_kl"] > 0
    assert (metrics["terminal_std"] > 0) == (kernel == "velocity_gaussian")
    assert not torch.equal(weights(algorithm), before)


def test_a_divergence_of_steps_needs_steps(tiny_policy: Callable) -> None:
    likelihood = likelihood_config("flow_matching")
    algorithm = new_ppo(tiny_policy(), likelihood=likelihood, kl_coefficient=0.1)
    with pytest.raises(ValueError, match="'flow_matching' has none; take kl_space='velocity'"):
        algorithm.update(gather(algorithm))
