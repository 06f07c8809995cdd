"""`grpo`, `episodes`, `reference`: advantages by hand, groups that start alike, the KL."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import Normal

from observations import observed
from pitune import envs, policies, rl
from pitune.policies import FlowPolicy, LikelihoodActor, likelihood_config
from pitune.policies.flow.kernels import FlowSDE, Transition, kl_divergence, log_prob
from pitune.policies.flow.path import FlowOutput, TimeGrid
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.policy_gradient.advantage import group_relative
from pitune.rl.policy_gradient.episodes import episodes, grouped, ungrouped
from pitune.rl.policy_gradient.loss import log_ratios
from pitune.rl.policy_gradient.reference import Reference
from settings import changed, stand_still

SETTINGS: dict[str, Any] = {"group_size": 3, "minibatch_size": 8, "num_epochs": 2}
ALL = torch.ones(1, 4, dtype=torch.bool)


def new_grpo(policy: FlowPolicy, **changes: Any) -> rl.GRPO:
    torch.manual_seed(0)
    return rl.GRPO(changed(rl.GRPOConfig(), **{**SETTINGS, **changes}), policy)


def experience(algorithm: rl.Algorithm, num_envs: int = 6, num_chunks: int = 9) -> rl.Rollouts:
    """Rollouts on `mock/Reach`, whose episodes have at most four chunks of two steps."""
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=num_envs, num_workers=0, max_episode_steps=7)
    return rl.Rollouts(envs.make(config), algorithm, num_chunks, seed=0)


def mixed(rollout: TensorDictBase) -> TensorDictBase:
    """Return a rollout in which every other episode that ended is a success, with reward 1."""
    rollout = rollout.clone()
    after = sub_dict(rollout, "next")
    done = after["done"].squeeze(-1)
    number = done.long().cumsum(1) - 1
    envs_ = torch.arange(len(done))[:, None]
    success = done & ((number + envs_) % 2 == 0)
    after["success"], after["reward_steps"] = success[..., None], torch.zeros(*done.shape, 2)
    after["reward_steps"][..., 0] = success.float()
    return rollout


# Advantages


def test_advantages_worked_by_hand() -> None:
    """T-E1. One success of four: mean 1/4, deviation sqrt(3)/4."""
    score = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    found = group_relative(score, ALL, "group")
    assert found[0].tolist() == pytest.approx([math.sqrt(3), *[-1 / math.sqrt(3)] * 3], rel=1e-4)
    assert group_relative(score, ALL, "none")[0].tolist() == pytest.approx([0.75, *[-0.25] * 3])
    assert float(found.square().mean()) == pytest.approx(1, rel=1e-4)
    assert torch.allclose(group_relative(5 * score - 3, ALL, "group"), found, atol=1e-4)


def test_a_group_that_ended_alike_has_advantages_of_exactly_zero() -> None:
    for value in (0.0, 1.0, 0.1):
        for scale in ("group", "batch", "none"):
            found = group_relative(torch.full((1, 4), value), ALL, scale)
            assert found.abs().max() < 1e-6, (value, scale)
    assert group_relative(torch.ones(1, 4), ALL, "group").eq(0).all()


def test_groups_do_not_leak_into_each_other() -> None:
    """T-E2."""
    score = torch.rand(2, 4)
    before = group_relative(score, ALL.expand(2, 4), "group")
    score[0] = score[0].flip(0) * 3
    after = group_relative(score, ALL.expand(2, 4), "group")
    assert torch.equal(after[1], before[1])
    assert not torch.allclose(after[0], before[0])


def test_episodes_that_do_not_count_enter_no_mean() -> None:
    counted = torch.tensor([[True, True, True, False]])
    found = group_relative(torch.tensor([[1.0, 0.0, 0.0, 99.0]]), counted, "none")
    assert found[0].tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3, 0.0])


def test_the_gradient_of_groups_is_the_policy_gradient_of_the_expected_score() -> None:
    """T-E7: E[grad log p * A] is (1 - 1/G) times the gradient of E[score], by finite differences.

    A policy of two parameters: the score of an action a ~ N(w0, exp(w1)) is exp(-(a - 1)^2).
    """
    weights = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    noise = torch.randn(100_000, 4, dtype=torch.float64)

    def expected(w: Tensor) -> Tensor:
        grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
        action = w[0] + w[1].exp() * grid
        density = torch.exp(-grid.square() / 2) / math.sqrt(2 * math.pi)
        return torch.trapezoid(density * torch.exp(-(action - 1).square()), grid)

    step = 1e-5
    shifts = torch.eye(2, dtype=torch.float64) * step
    truth = torch.stack(
        [(expected(weights + s) - expected(weights - s)) / (2 * step) for s in shifts]
    ).detach()
    action = (weights[0] + weights[1].exp() * noise).detach()
    score = torch.exp(-(action - 1).square())
    log_prob = torch.distributions.Normal(weights[0], weights[1].exp()).log_prob(action)
    advantage = group_relative(score, torch.ones_like(score, dtype=torch.bool), "none")
    (found,) = torch.autograd.grad((log_prob * advantage).mean(), weights, retain_graph=True)
    assert torch.allclose(found, 0.75 * truth, atol=4e-3)
    assert float((found - truth).abs().max()) > 0.02  # the factor is seen
    # Negative control: a group's advantages that belong to other groups' members
    (wrong,) = torch.autograd.grad((log_prob * advantage.roll(1, 0)).mean(), weights)
    assert float((wrong - 0.75 * truth).abs().max()) > 0.02


# Episodes


def scripted(ends: list[list[int]], reward: float = 1.0) -> TensorDict:
    """Return a rollout whose environments' episodes have these numbers of chunks, then wait."""
    num, length = len(ends), max(sum(row) for row in ends) + 1
    done = torch.zeros(num, length, 1, dtype=torch.bool)
    duration = torch.zeros(num, length, 1, dtype=torch.int64)
    for i, row in enumerate(ends):
        done[i, torch.tensor(row).cumsum(0) - 1] = True
        duration[i, : sum(row)] = 2
    live = (duration > 0).expand(num, length, 2)
    after = {
        "done": done,
        "success": done.clone(),
        "invalid": torch.zeros_like(done),
        "duration": duration,
        "live": live,
        "reward_steps": reward * live.float(),
    }
    state = torch.arange(num * length, dtype=torch.float32).reshape(num, length, 1)
    return TensorDict({"state": state, "next": TensorDict(after, [num, length])}, [num, length])


def test_decisions_find_their_episodes() -> None:
    played = episodes(scripted([[2, 1], [1, 3]]), discount=1.0)
    assert played.number.tolist() == [[0, 0, 1, 2, 2], [0, 1, 1, 1, 2]]
    assert played.score.tolist() == [[4, 2], [2, 6]]
    assert played.start.squeeze(-1).tolist() == [[0, 2], [5, 6]]
    assert played.counted.all()
    assert played.success.all()


def test_discounting_runs_per_environment_step_from_the_episodes_start() -> None:
    played = episodes(scripted([[2, 1]]), discount=0.5)
    assert played.score.tolist() == [[1 + 0.5 + 0.25 + 0.125, 1.5]]


def test_episodes_that_did_not_end_or_broke_down_do_not_count() -> None:
    rollout = scripted([[2, 1], [3, 1]])
    rollout["next", "done"][0, 2] = False
    rollout["next", "invalid"][1, 2] = True
    assert episodes(rollout, 1.0).counted.tolist() == [[True, False], [False, True]]


def test_groups_are_neighbors_that_play_the_same_number() -> None:
    table = torch.arange(8).reshape(4, 2)  # environment, episode
    found = grouped(table, 2)
    assert found.tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert torch.equal(ungrouped(found, 2), table)


# Rollouts


def test_members_of_a_group_start_alike_and_act_differently(tiny_policy: Callable) -> None:
    """T-E3."""
    algorithm = new_grpo(tiny_policy())
    rollout = experience(algorithm).collect()
    first = rollout["state"][:, 0].reshape(2, 3, 4)
    assert torch.equal(first[:, 0], first[:, 1])
    assert torch.equal(first[:, 0], first[:, 2])
    assert not torch.equal(first[0], first[1])
    action = rollout["action"][:, 0].reshape(2, 3, -1)
    assert (action[:, 0] - action[:, 1]).abs().max() > 1e-2
    _, _, metrics = algorithm.prepare(rollout)
    assert metrics["group_start_spread"] == 0.0


def test_groups_that_do_not_start_alike_are_seen(tiny_policy: Callable) -> None:
    """Negative control: the same rollout, its environments shuffled."""
    algorithm = new_grpo(tiny_policy())
    rollout = experience(algorithm).collect()
    _, _, metrics = algorithm.prepare(sub_dict(rollout, torch.tensor([0, 3, 1, 4, 2, 5])))
    assert metrics["group_start_spread"] > 0.01


def test_each_environment_plays_equally_many_whole_episodes_then_waits(
    tiny_policy: Callable,
) -> None:
    algorithm = new_grpo(tiny_policy())
    rollouts = experience(algorithm, num_chunks=9)  # two episodes of at most four chunks
    starts = []
    for _ in range(3):
        steps = rollouts.num_env_steps
        rollout = rollouts.collect()
        assert rollout.batch_size == (6, 8)
        done, duration = rollout["next", "done"].squeeze(-1), rollout["next", "duration"]
        assert done.sum(1).tolist() == [2] * 6
        waiting = done.long().cumsum(1) - done.long() >= 2
        assert (duration.squeeze(-1)[waiting] == 0).all()
        assert (duration.squeeze(-1)[~waiting] > 0).all()
        assert not rollout["next", "live"][waiting].any()
        assert rollouts.num_env_steps - steps == int(duration.sum())
        starts.append(rollout["state"][:, 0])
    assert len(torch.cat(starts).unique(dim=0)) == 6  # two groups in three rollouts


def test_a_rollout_too_short_for_an_episode_is_refused(tiny_policy: Callable) -> None:
    message = r"num_chunks=3 does not hold an episode of mock/Reach: 7 steps in chunks of 2 are 4"
    with pytest.raises(ValueError, match=message):
        experience(new_grpo(tiny_policy()), num_chunks=3)


def test_environments_that_do_not_divide_into_groups_are_refused(tiny_policy: Callable) -> None:
    with pytest.raises(ValueError, match="num_envs=4 must be a multiple of group_size=3"):
        experience(new_grpo(tiny_policy()), num_envs=4)
    rollout = experience(new_grpo(tiny_policy())).collect()
    with pytest.raises(ValueError, match="num_envs=4 must be a multiple of group_size=3"):
        new_grpo(tiny_policy()).update(sub_dict(rollout, slice(4)))
    with pytest.raises(ValueError, match="group_size=1 must be at least 2"):
        rl.GRPOConfig(group_size=1)


# The batch


def test_all_decisions_of_an_episode_share_its_advantage(tiny_policy: Callable) -> None:
    algorithm = new_grpo(tiny_policy())
    rollout = mixed(experience(algorithm).collect())
    batch, num_kept, metrics = algorithm.prepare(rollout)
    assert num_kept == 4
    assert metrics["kept_groups"] == 1.0
    assert len(batch) == int((rollout["next", "duration"] > 0).sum())
    for episode in batch["episode"].unique():
        assert len(batch["advantage"][batch["episode"] == episode].unique()) == 1
    # groups of three with one success or two: +-sqrt(2) and its half
    found = sorted({round(x, 3) for x in batch["advantage"].flatten().tolist()})
    assert found == pytest.approx([-1.414, -0.707, 0.707, 1.414], abs=2e-3)


def test_groups_that_ended_alike_are_dropped_before_shaped_rewards_count(
    tiny_policy: Callable,
) -> None:
    algorithm = new_grpo(tiny_policy())
    rollout = mixed(experience(algorithm).collect())
    rollout["next", "success"][:3] = False  # the first group's episodes all fail
    rollout["next", "reward_steps"] += torch.rand(6, 8, 2)  # but their shaped rewards differ
    batch, num_kept, metrics = algorithm.prepare(rollout)
    assert num_kept == 2
    assert metrics["kept_groups"] == 0.5
    assert bool((batch["episode"] >= 6).all())  # two episodes of each environment
    assert metrics["solved_groups"] == 0.0


def test_a_group_without_a_counted_episode_is_not_solved(tiny_policy: Callable) -> None:
    algorithm = new_grpo(tiny_policy())
    rollout = mixed(experience(algorithm).collect())
    rollout["next", "success"][:3] = False
    rollout["next", "invalid"][:3] = rollout["next", "done"][:3]  # the simulators broke down
    assert algorithm.prepare(rollout)[2]["solved_groups"] == 0.0


def test_what_was_dropped_weighs_nothing(half_trained: Path) -> None:
    """T-E4, T-E5: the loss is that of a rollout from which dropped groups were removed."""
    algorithm = new_grpo(policies.load(half_trained))
    rollout = mixed(experience(algorithm, num_envs=18).collect())
    rollout["next", "success"][:3] = False
    whole, *_ = algorithm.prepare(rollout)
    removed, *_ = algorithm.prepare(sub_dict(rollout, slice(3, None)))
    assert torch.equal(whole["chain"], removed["chain"])
    losses = [algorithm.loss(part.exclude("episode"))[0] for part in (whole, removed)]
    assert torch.equal(losses[0], losses[1])
    spoiled = rollout.clone()
    waiting = spoiled["next", "duration"].squeeze(-1) == 0
    assert waiting.any()
    spoiled["chain"][waiting] += 100
    spoiled["next", "reward_steps"][waiting] = 100
    again, *_ = algorithm.prepare(spoiled)
    assert torch.equal(again["advantage"], whole["advantage"])
    assert torch.equal(again["chain"], whole["chain"])


@pytest.mark.parametrize("changes", [{}, {"level": "trajectory"}, {"weighting": "episode"}])
def test_ratio_is_one_before_the_first_step(changes: dict, tiny_policy: Callable) -> None:
    algorithm = new_grpo(tiny_policy(), **changes)
    metrics = algorithm.update(mixed(experience(algorithm).collect()))
    assert metrics["ratio_deviation"] < 1e-4
    assert metrics["approx_kl"] > 0
    assert metrics["gradient_steps"] > 1


def test_another_scorer_than_the_sampler_trips_the_ratio(tiny_policy: Callable) -> None:
    """Negative control of the test above."""
    algorithm = new_grpo(tiny_policy())
    rollout = mixed(experience(algorithm).collect())
    rollout["model_input", "state"] += 0.1
    assert algorithm.update(rollout)["ratio_deviation"] > 1e-2


def test_learning_rate_zero_changes_nothing(tiny_policy: Callable) -> None:
    algorithm = new_grpo(tiny_policy(), kl_coefficient=0.1)
    stand_still(algorithm)
    before = {k: v.clone() for k, v in algorithm.actor.state_dict().items()}
    metrics = algorithm.update(mixed(experience(algorithm).collect()))
    assert all(torch.equal(v, before[k]) for k, v in algorithm.actor.state_dict().items())
    assert metrics["clip_fraction"] == 0
    assert metrics["reference_kl"] < 1e-8
    assert metrics["grad_norm"] > 0


def test_episodes_weigh_alike_when_they_should(tiny_policy: Callable) -> None:
    sums = {}
    for weighting in ("episode", "decision"):
        algorithm = new_grpo(tiny_policy(), weighting=weighting)
        rollout = mixed(experience(algorithm).collect())
        rollout["next", "done"][0, 1] = True  # one episode is short
        batch, *_ = algorithm.prepare(rollout)
        algorithm.pending = [batch]
        batch = algorithm._whole_batch()
        assert float(batch["weight"].mean()) == pytest.approx(1)
        num = int(batch["episode"].max()) + 1
        sums[weighting] = torch.zeros(num).index_add(0, batch["episode"], batch["weight"][:, 0])
    assert float(sums["episode"].std()) < 1e-5
    assert float(sums["decision"].std()) > 0.1


def test_minibatches_of_trajectories_hold_whole_episodes(tiny_policy: Callable) -> None:
    algorithm = new_grpo(tiny_policy(), level="trajectory")
    batch, *_ = algorithm.prepare(mixed(experience(algorithm).collect()))
    algorithm.pending = [batch]
    batch = algorithm._whole_batch()
    lengths = torch.bincount(batch["episode"])
    for rows in algorithm._minibatches(batch):
        inside = torch.bincount(batch["episode"][rows], minlength=len(lengths))
        assert bool(((inside == 0) | (inside == lengths)).all())


# Resampling


def test_an_update_waits_until_enough_groups_are_kept(tiny_policy: Callable) -> None:
    algorithm = new_grpo(tiny_policy(), min_kept=0.75)  # three of four groups
    rollout = mixed(experience(algorithm).collect())
    rollout["next", "success"][:3] = False  # two of four are left
    before = {k: v.clone() for k, v in algorithm.actor.state_dict().items()}
    metrics = algorithm.update(rollout)
    assert metrics["gradient_steps"] == 0
    assert metrics["pending_groups"] == 2
    assert all(torch.equal(v, before[k]) for k, v in algorithm.actor.state_dict().items())
    num = len(algorithm.pending[0])
    metrics = algorithm.update(rollout)
    assert metrics["gradient_steps"] == 2 * (2 * num // 8)  # both rollouts, two epochs
    assert algorithm.pending == []
    assert metrics["ratio_deviation"] < 1e-4  # the policy did not move in between


def test_nothing_but_failures_leaves_the_policy_alone(tiny_policy: Callable) -> None:
    algorithm = new_grpo(tiny_policy(), min_kept=0.0)
    rollout = experience(algorithm).collect()
    rollout["next", "success"][:] = False
    before = {k: v.clone() for k, v in algorithm.actor.state_dict().items()}
    metrics = algorithm.update(rollout)
    assert metrics["kept_groups"] == metrics["gradient_steps"] == 0
    assert all(torch.equal(v, before[k]) for k, v in algorithm.actor.state_dict().items())


def test_what_waits_survives_a_file(tiny_policy: Callable, tmp_path: Path) -> None:
    first = new_grpo(tiny_policy(), min_kept=0.75)
    rollout = mixed(experience(first).collect())
    rollout["next", "success"][:3] = False
    first.update(rollout)
    torch.save(first.training_state(), tmp_path / "state.pt")
    second = new_grpo(tiny_policy(), min_kept=0.75)
    second.load_training_state(torch.load(tmp_path / "state.pt", weights_only=True))
    metrics = []
    for algorithm in (first, second):
        torch.manual_seed(1)
        metrics.append(algorithm.update(rollout))
    assert metrics[0] == metrics[1]
    assert metrics[0]["gradient_steps"] > 0


# The reference


def test_kl_of_a_step_is_that_of_samples_and_of_the_velocities() -> None:
    """T-B10: closed form, Monte Carlo and velocity form of the divergence of one Flow-SDE step."""
    torch.manual_seed(0)
    grid, level, k = TimeGrid(4), 0.5, 1
    x = torch.randn(1, 1, 3, 2, dtype=torch.float64)
    v, w = torch.randn(2, 1, 1, 3, 2, dtype=torch.float64)
    step = torch.full((1, 1), k)
    new, old = (FlowSDE(level)(x, FlowOutput(u), step, grid) for u in (v, w))
    closed = kl_divergence(new, old).sum().item()
    samples = new.mean + new.std * torch.randn(200_000, 1, 3, 2, dtype=torch.float64)
    log_ratio = log_prob(new, samples) - log_prob(old, samples)
    assert log_ratio.sum((1, 2, 3)).mean().item() == pytest.approx(closed, rel=0.02)
    t, dt = 0.75, 0.25
    g = level * math.sqrt(t / (1 - t))
    weight = dt / 2 * (1 / g + g * (1 - t) / (2 * t)) ** 2
    assert weight * (v - w).square().sum().item() == pytest.approx(closed, rel=1e-6)
    same = kl_divergence(new, new)
    assert same.abs().max() < 1e-12
    wider = Transition(old.mean, 1.5 * old.std.expand_as(old.mean))
    for first, second in ((new, wider), (wider, new)):
        normals = (Normal(t.mean, t.std.expand_as(t.mean)) for t in (first, second))
        expected = torch.distributions.kl_divergence(*normals)
        assert torch.allclose(kl_divergence(first, second), expected)
    fixed = Transition(new.mean, torch.zeros_like(new.mean))
    assert kl_divergence(fixed, fixed).eq(0).all()


@pytest.mark.parametrize("kernel", ["flow_sde", "flow_noise"])
@pytest.mark.parametrize("space", ["kernel", "velocity"])
def test_the_divergence_starts_at_zero_and_grows(
    kernel: str, space: Any, tiny_policy: Callable
) -> None:
    torch.manual_seed(0)
    actor = LikelihoodActor(tiny_policy(horizon=3), likelihood_config(kernel))
    reference = Reference(actor)
    obs = observed(actor.policy, torch.rand(16, 4))
    batch = actor(obs).set("advantage", torch.zeros(16))

    def divergence() -> Tensor:
        _, dist = log_ratios(actor, batch)
        return reference.divergence(batch, dist, space)

    assert divergence().shape == (16, 2)
    assert divergence().abs().max() < 1e-6
    with torch.no_grad():
        actor.policy.network.action_out_proj.bias.add_(0.1)
    moved = divergence()
    assert (moved > 0).all()
    if space == "velocity":
        assert torch.allclose(moved, torch.tensor(0.01), rtol=1e-3)  # mean over executed entries
    assert not any(p.requires_grad for p in reference.actor.parameters())


@pytest.mark.parametrize("changes", [{}, {"kl_space": "velocity"}])
def test_a_large_coefficient_keeps_the_policy_in_place(
    changes: dict, tiny_policy: Callable
) -> None:
    """T-E6."""
    moved = {}
    for coefficient in (0.0, 100.0):
        algorithm = new_grpo(
            tiny_policy(),
            kl_coefficient=coefficient,
            target_kl=math.inf,
            learning_rate=1e-3,
            num_epochs=20,
            **changes,
        )
        rollout = mixed(experience(algorithm).collect())
        reference = Reference(algorithm.actor)
        algorithm.update(rollout)
        batch, *_ = algorithm.prepare(rollout)
        _, dist = log_ratios(algorithm.actor, batch)
        moved[coefficient] = float(reference.divergence(batch, dist, "kernel").mean())
    assert moved[0.0] > 0.05
    assert moved[100.0] < 0.1 * moved[0.0]


# Learning


@pytest.mark.slow
def test_grpo_improves_a_half_trained_policy(half_trained: Path) -> None:
    torch.manual_seed(0)
    policy = policies.load(half_trained)
    config = envs.EnvConfig(id="mock/Reach", num_envs=80, num_workers=0, max_episode_steps=10)
    env = envs.make(config)
    algorithm = rl.GRPO(
        rl.GRPOConfig(group_size=8, update=rl.UpdateConfig(minibatch_size=250), learning_rate=5e-4),
        policy,
    )
    before = rl.evaluate(env, algorithm.actor, 240)
    rollouts = rl.Rollouts(env, algorithm, 10, seed=0)
    for _ in range(40):
        algorithm.update(rollouts.collect())
    after = rl.evaluate(env, algorithm.actor, 240)
    assert before.success_rate is not None
    assert before.interval is not None
    assert after.interval is not None
    assert before.success_rate < 0.75  # or there is little left to learn
    assert after.interval[0] > max(0.8, before.interval[1])
