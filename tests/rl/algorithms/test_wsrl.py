"""`wsrl` and the learner under it: the warm-up, the demonstrations, the policy's steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rewards import rewarded
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import ExplorationType, set_exploration_type

from observations import observed
from pitune import envs, rl
from pitune.policies import ModelInput
from pitune.rl import WSRL, ActorCriticConfig, OffPolicyConfig, WSRLConfig
from pitune.rl.actor_critic.critic_input import critic_input, executed_chunk
from pitune.rl.actor_critic.learner import FlowActorCritic
from pitune.rl.datasets.demonstrations import demonstrations_for
from pitune.rl.experience.sub_dict import sub_dict

SMALL = OffPolicyConfig(
    capacity=500,
    minibatch_size=8,
    num_critics=3,
    critic_subset=2,
    hidden=(8,),
    warmup_decisions=32,
    warmup_rounds=6,
    updates_per_decision=0.5,
)


@pytest.fixture
def new(tiny_policy: Callable, demonstrations_file: Path) -> Callable[..., WSRL]:
    def make(exploration_std: float = 0.1, actor_every: int = 2, **changes: Any) -> WSRL:
        torch.manual_seed(0)
        settings = replace(SMALL, demonstrations=demonstrations_file, **changes)
        learner = ActorCriticConfig(off_policy=settings, actor_every=actor_every)
        config = WSRLConfig(learner=learner, exploration_std=exploration_std, warmup_std=0.0)
        return WSRL(config, tiny_policy())

    return make


def experience(algorithm: WSRL) -> rl.Rollouts:
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7)
    return rl.Rollouts(envs.make(config), algorithm, 4, seed=0)


def weights(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_critics_read_states_within_bounds(new: Callable) -> None:
    """A dimension that hardly moved in the demonstrations would drown the others."""
    policy = new().actor.policy
    scaling = policy.preprocessor
    normalized = torch.tensor([[0.5, -4.0, 80.0, -30.0]])
    state = normalized * scaling.state_scale + scaling.state_offset
    read = critic_input(policy, observed(policy, state))
    assert torch.allclose(read, torch.tensor([[0.5, -4.0, 5.0, -5.0]]), atol=1e-5)


# The warm-up


def test_the_warm_up_collects_exactly_its_number_of_transitions_with_the_frozen_policy(
    new: Callable,
) -> None:
    algorithm = new()
    rollouts = experience(algorithm)
    policy, critic = algorithm.actor.policy, algorithm.learner.off_policy.critic
    start, start_critic = weights(policy), weights(critic)
    assert algorithm.update(rewarded(rollouts.collect())) == {
        "replay_size": 16.0,
        "rounds": 0.0,
        "informative": 1.0,
    }
    assert same(weights(policy), start)
    assert same(weights(critic), start_critic)
    metrics = algorithm.update(rewarded(rollouts.collect()))
    assert (metrics["replay_size"], metrics["rounds"]) == (32.0, 6.0)
    assert same(weights(policy), start)  # only the critics were fitted
    assert not same(weights(critic), start_critic)
    assert not algorithm.optimizers["actor"].state
    metrics = algorithm.update(rewarded(rollouts.collect()))
    assert (metrics["replay_size"], metrics["rounds"]) == (48.0, 8.0)
    assert not same(weights(policy), start)


def test_without_a_warm_up_the_policy_moves_at_once(new: Callable) -> None:
    algorithm = new(warmup_decisions=0)
    start = weights(algorithm.actor.policy)
    metrics = algorithm.update(rewarded(experience(algorithm).collect()))
    assert metrics["rounds"] == 8.0
    assert not same(weights(algorithm.actor.policy), start)


def test_the_warm_up_explores_with_the_policys_own_noise_only(new: Callable) -> None:
    algorithm = new()
    obs = observed(algorithm.actor.policy, torch.rand(5, 4))
    noise = algorithm.actor.policy.draw_noise(5)
    expected = algorithm.actor.policy.sample_actions(ModelInput.of(obs), noise)
    given = obs.clone().set("noise", noise)
    with set_exploration_type(ExplorationType.RANDOM):
        assert torch.equal(algorithm.actor(given.clone())["action"], expected)
        rollouts = experience(algorithm)
        for _ in range(2):
            algorithm.update(rewarded(rollouts.collect()))
        assert algorithm.exploring.perturb is not None
        torch.manual_seed(0)
        many = algorithm.actor(observed(algorithm.actor.policy, torch.rand(4000, 4)))
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        torch.manual_seed(0)
        plain = algorithm.actor(observed(algorithm.actor.policy, torch.rand(4000, 4)))
    # the same starting noise was drawn, so the difference is what was added
    added = (many["action"] - plain["action"]) / algorithm.actor.policy.preprocessor.action_scale
    assert float(added.std()) == pytest.approx(0.1, rel=0.02)
    assert float(added.mean()) == pytest.approx(0.0, abs=0.005)


def test_the_warm_up_may_have_noise_of_its_own(new: Callable) -> None:
    algorithm = new()
    noisy = WSRL(replace(algorithm.config, warmup_std=0.3), algorithm.actor.policy)
    seen = torch.zeros(5000, 4)
    assert noisy.exploring.perturb is not None
    assert float(noisy.exploring.perturb(seen).std()) == pytest.approx(0.3, rel=0.03)
    rollouts = experience(noisy)
    for _ in range(2):
        noisy.update(rewarded(rollouts.collect()))
    assert float(noisy.exploring.perturb(seen).std()) == pytest.approx(0.1, rel=0.03)


# The demonstrations


def test_demonstrations_become_the_transitions_of_their_chunks() -> None:
    """Episodes of three steps and one; chunks of two."""
    state = torch.arange(4.0)[:, None]
    demonstrations = rl.Demonstrations(
        obs={"state": state}, action=10 * state, episode=torch.tensor([0, 0, 0, 1])
    )
    rows = demonstrations.transitions(2)
    assert rows["action"].squeeze(-1).tolist() == [[0, 10], [10, 20], [20, 20], [30, 30]]
    assert rows["duration"].flatten().tolist() == [2, 2, 1, 1]
    assert rows["live"].tolist() == [[True, True], [True, True], [True, False], [True, False]]
    assert rows["reward_steps"].tolist() == [[0, 0], [0, 1], [1, 0], [1, 0]]
    assert rows["terminated"].flatten().tolist() == [False, True, True, True]
    assert not rows["truncated"].any()
    assert rows["next", "state"][0].item() == 2.0  # the only one that matters


def test_online_memory_never_holds_demonstrations(new: Callable) -> None:
    algorithm = new(offline_share=0.5)
    rollouts = experience(algorithm)
    memory = algorithm.learner.off_policy
    for _ in range(3):
        algorithm.update(rewarded(rollouts.collect()))
    assert len(memory.replay) == 48
    assert memory.demonstrations is not None
    key = ("obs", "model_input", "state")
    offline = {tuple(row) for row in memory.demonstrations.all()[key].tolist()}
    online = {tuple(row) for row in memory.replay.all()[key].tolist()}
    assert offline
    assert not offline & online
    drawn = [tuple(row) for row in memory.sample()[key].tolist()]
    assert [row in offline for row in drawn] == [False] * 4 + [True] * 4


def test_without_a_share_the_demonstrations_are_not_even_read(new: Callable) -> None:
    algorithm = new()
    assert algorithm.learner.off_policy.demonstrations is None
    assert algorithm.learner.cloned is None
    config = WSRLConfig(learner=ActorCriticConfig(off_policy=replace(SMALL, offline_share=0.5)))
    with pytest.raises(FileNotFoundError, match="no demonstrations at nowhere"):
        WSRL(config.with_demonstrations(Path("nowhere")), algorithm.actor.policy)


def test_rows_of_demonstrations_are_those_of_rollouts(new: Callable) -> None:
    algorithm = new(offline_share=0.5)
    algorithm.update(rewarded(experience(algorithm).collect()))
    memory = algorithm.learner.off_policy
    assert memory.demonstrations is not None
    online, offline = memory.replay.all()[0], memory.demonstrations.all()[0]
    shapes = [
        {key: value.shape for key, value in rows.flatten_keys(".").items()}
        for rows in (online, offline)
    ]
    assert shapes[0] == shapes[1]


# The policy's steps


def test_no_gradient_reaches_parameters_that_are_not_stepped(new: Callable) -> None:
    algorithm = new()
    rollouts = experience(algorithm)
    for _ in range(3):
        algorithm.update(rewarded(rollouts.collect()))
    learner = algorithm.learner
    policy, critic = algorithm.actor.policy, learner.off_policy.critic
    batch = learner.off_policy.sample()
    for step, moved, still in (
        (learner.critic_step, critic, policy),
        (learner.actor_step, policy, critic),
    ):
        moved.zero_grad(set_to_none=True)
        still.zero_grad(set_to_none=True)
        before = weights(still)
        step(batch)
        assert same(weights(still), before)
        assert all(p.grad is None for p in still.parameters())
        assert any(p.grad is not None for p in moved.parameters())


def test_the_policy_follows_the_critics(new: Callable, tiny_policy: Callable) -> None:
    """With a critic that knows the best action the policy goes there; with its negative, away."""
    best: list[float] = []
    away: list[float] = []
    for sign, found in ((1.0, best), (-1.0, away)):
        learner = FlowActorCritic(
            tiny_policy(),
            ActorCriticConfig(off_policy=SMALL, actor_learning_rate=3e-3, anchor_coefficient=0.0),
        )

        def value(seen: Tensor, chunk: Tensor, time: Tensor, sign: float = sign) -> Tensor:
            return -sign * (chunk - 0.3).square().sum(-1)[None]

        learner.off_policy.critic.forward = value  # type: ignore[assignment]
        torch.manual_seed(0)
        policy = learner.policy
        obs = observed(policy, torch.rand(64, 4))
        batch = TensorDict({"obs": obs, "elapsed": torch.zeros(64, 1)}, batch_size=[64])
        noise = policy.draw_noise(64)
        for _ in range(61):
            context = policy.encode(ModelInput.of(obs))
            found.append(float((executed_chunk(policy, context, noise) - 0.3).square().mean()))
            learner.actor_step(batch)
    assert best[-1] < 0.1 * best[0]
    assert away[-1] > away[0]


def test_cloning_keeps_the_policy_near_the_demonstrations(
    tiny_policy: Callable, demonstrations_file: Path
) -> None:
    settings = replace(SMALL, demonstrations=demonstrations_file)
    losses = {}
    for coefficient in (0.0, 10.0):
        torch.manual_seed(0)
        config = ActorCriticConfig(
            off_policy=settings,
            actor_learning_rate=3e-3,
            cloning_coefficient=coefficient,
            anchor_coefficient=0.0,
        )
        learner = FlowActorCritic(tiny_policy(), config)
        demonstrated = demonstrations_for(learner.policy, demonstrations_file).chunks(2)
        chunks = sub_dict(demonstrated, slice(64))
        batch = TensorDict(
            {"obs": chunks.select("model_input"), "elapsed": torch.zeros(64, 1)}, batch_size=[64]
        )
        for _ in range(60):
            metrics = learner.actor_step(batch)
        assert ("cloning_loss" in metrics) is (coefficient > 0)
        torch.manual_seed(0)
        losses[coefficient] = float(
            learner.policy.loss(ModelInput.of(chunks), chunks["action"]).mean()
        )
    assert losses[10.0] < 0.8 * losses[0.0]


def test_an_anchor_bounds_how_far_the_policy_follows_the_critics(tiny_policy: Callable) -> None:
    """Pulled by a value of slope 1 per entry, the policy stops where the anchor pulls as hard.

    The loss is -mean(a) + c * mean((a - a0)^2), with the value's size held at 1: least where every
    entry is 1 / (2 c) away from where it was.
    """
    obs = observed(tiny_policy(), torch.rand(32, 4))
    batch = TensorDict({"obs": obs, "elapsed": torch.zeros(32, 1)}, batch_size=[32])
    away = {}
    for coefficient in (0.0, 20.0):
        torch.manual_seed(0)
        config = ActorCriticConfig(
            off_policy=SMALL, actor_learning_rate=3e-3, anchor_coefficient=coefficient
        )
        learner = FlowActorCritic(tiny_policy(), config)

        def value(seen: Tensor, chunk: Tensor, time: Tensor) -> Tensor:
            pull = chunk.mean(-1)
            return (1.0 + pull - pull.detach())[None]

        learner.off_policy.critic.forward = value  # type: ignore[assignment]
        policy = learner.policy
        noise = policy.draw_noise(32)
        start = executed_chunk(policy, policy.encode(ModelInput.of(obs)), noise).detach()
        first = learner.actor_step(batch)
        for _ in range(150):
            metrics = learner.actor_step(batch)
        end = executed_chunk(policy, policy.encode(ModelInput.of(obs)), noise).detach()
        away[coefficient] = float((end - start).mean())
        assert ("anchor_distance" in metrics) is (coefficient > 0)
    assert first["anchor_distance"] == 0.0
    assert away[0.0] > 0.5
    assert away[20.0] == pytest.approx(1 / (2 * 20.0), rel=0.3)


def test_a_loss_that_is_not_finite_stops(new: Callable) -> None:
    algorithm = new(warmup_decisions=0)
    algorithm.update(rewarded(experience(algorithm).collect()))
    batch = algorithm.learner.off_policy.sample()
    batch["obs", "model_input", "state"][:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"actor loss is nan in round \d+; lower"):
        algorithm.learner.actor_step(batch)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="actor_every=0 must be at least 1"):
        ActorCriticConfig(actor_every=0)
    with pytest.raises(ValueError, match=r"offline_share=1\.0 must be at least 0 and below 1"):
        OffPolicyConfig(offline_share=1.0)
    with pytest.raises(ValueError, match="demonstrations do not record; pass offline_share=0 or"):
        OffPolicyConfig(offline_share=0.5, time_limit="terminal")
