"""Rollouts, evaluation and training under a decision delay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pitune import envs, policies, rl
from pitune.envs import ChunkEnv, DelayedChunkEnv, EpisodeSeeds
from pitune.policies import (
    Actor,
    DelayConfig,
    DelayedActor,
    FlowPolicy,
    FlowSDEConfig,
    LikelihoodActor,
    RealTimeConfig,
)
from pitune.rl.experience.rollouts import Rollouts, chunk_env_for
from settings import changed

E, H, h = 4, 8, 4
REACH = envs.EnvConfig(id="mock/Reach", num_envs=E, num_workers=0)
DELAY = DelayConfig(steps=2)
SEAMS = ("plain", "trained", "guided")


@pytest.fixture
def late_policy(tiny_policy: Callable) -> Callable[..., FlowPolicy]:
    def make(seam: str = "trained", delay: DelayConfig = DELAY) -> FlowPolicy:
        policy: FlowPolicy = tiny_policy(horizon=H, executed=h)
        if seam == "plain":
            return policy.with_delay(delay)
        policy = policy.replace(info=replace(policy.info, real_time_delay=4))
        settings = RealTimeConfig(method=seam)  # type: ignore[arg-type]
        policy = policy.replace(sampler=replace(policy.sampler, real_time=settings))
        return policy.with_delay(replace(delay, seam="real_time"))

    return make


@pytest.mark.parametrize("seam", SEAMS)
@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_an_evaluation_in_the_late_environment_equals_that_of_a_delayed_actor(
    seam: str, steps: int, late_policy: Callable
) -> None:
    env = envs.make(replace(REACH, reward="dense"))
    policy = late_policy(seam, DelayConfig(steps=steps))
    inside = rl.evaluate(env, Actor(policy), num_episodes=6)
    outside = rl.evaluate(env, DelayedActor(policy, policy.sampler.delay), num_episodes=6)
    for own, other in zip(inside.rows, outside.rows, strict=True):
        assert own.seed == other.seed
        assert own.episode_return == pytest.approx(other.episode_return, abs=1e-4)

    # negative control: the delay matters
    if steps:
        prompt = rl.evaluate(env, Actor(policy.with_delay(DelayConfig())), num_episodes=6)
        pairs = zip(inside.rows, prompt.rows, strict=True)
        assert any(abs(own.episode_return - other.episode_return) > 1e-2 for own, other in pairs)


def test_without_a_delay_the_environment_is_the_plain_one(late_policy: Callable) -> None:
    env = envs.make(REACH)
    seeds = EpisodeSeeds(E, seed=0, split="train")
    prompt = chunk_env_for(late_policy("plain", DelayConfig()), env, seeds, None)
    assert type(prompt) is ChunkEnv
    assert isinstance(chunk_env_for(late_policy(), env, seeds, None), DelayedChunkEnv)


@pytest.mark.parametrize("seam", SEAMS)
@pytest.mark.parametrize("name", sorted(set(rl.presets()) - {"dgn", "recap"}))
def test_every_other_algorithm_trains_under_a_delay(
    name: str, seam: str, late_policy: Callable, small_preset: Callable, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    algorithm = rl.make(small_preset(name), late_policy(seam, DelayConfig(steps=1, max_steps=2)))
    rollouts = Rollouts(envs.make(REACH), algorithm, num_chunks=12, seed=0)
    for _ in range(2):
        rollout = rollouts.collect()
        metrics = algorithm.update(rollout)
    assert abs(metrics.get("ratio_deviation", 0.0)) < 1e-5
    assert all(value == value for value in metrics.values())
    policy = algorithm.actor.policy
    if "action" in rollout.keys():
        steps = h + policy.remainder_steps
        assert rollout["action"].shape == (E, rollout.shape[1], steps, 2)

    # the checkpoint acts under the same delay, and alone
    policies.save(policy, tmp_path / "policy")
    loaded = policies.load(tmp_path / "policy")
    assert loaded.sampler.delay == policy.sampler.delay
    results = [rl.evaluate(envs.make(REACH), Actor(p), 3) for p in (policy, loaded)]
    if name != "epo":  # a member's offset is not in the shared weights
        assert [row.episode_return for row in results[0].rows] == [
            row.episode_return for row in results[1].rows
        ]
    assert policies.infer(loaded, {"state": torch.zeros(4).numpy()}).shape == (H, 2)


def test_a_steered_policy_reads_the_old_chunk_under_every_delay(
    late_policy: Callable, small_preset: Callable
) -> None:
    algorithm = rl.make(small_preset("dsrl"), late_policy())
    policy = algorithm.actor.policy
    assert policy.noise_source is not None
    policy.noise_source.steered.fill_(True)
    env = envs.make(REACH)
    for steps in (0, 1, 4):  # trained with 2
        late = policy.with_delay(DelayConfig(steps=steps, seam="real_time"))
        inside = rl.evaluate(env, Actor(late), 3)
        outside = rl.evaluate(env, DelayedActor(policy, late.sampler.delay), 3)
        for own, other in zip(inside.rows, outside.rows, strict=True):
            assert own.episode_return == pytest.approx(other.episode_return, abs=1e-4)


def test_the_ratio_of_a_stored_rollout_is_one(late_policy: Callable) -> None:
    policy = late_policy("trained", DelayConfig(steps=0, max_steps=2))
    algorithm = rl.make(rl.PPOConfig(), policy)
    rollout = Rollouts(envs.make(REACH), algorithm, num_chunks=12, seed=0).collect()
    flat = rollout.reshape(-1)
    actor = LikelihoodActor(policy, FlowSDEConfig())
    with torch.no_grad():
        log_prob = actor.get_dist(flat).log_prob(flat["chain"])
    torch.testing.assert_close(log_prob, flat["action_log_prob"], atol=1e-5, rtol=1e-5)
    assert set(flat["delay"].tolist()) == {-1, 0, 1, 2}
    # negative control: without the old chunk the score is another one
    inputs = flat["model_input"].clone()
    inputs["delay"] = torch.full_like(inputs["delay"], -1)
    with torch.no_grad():
        other = actor.get_dist(flat.clone().set("model_input", inputs)).log_prob(flat["chain"])
    assert (other - flat["action_log_prob"])[flat["delay"] > 0].abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dgn", {}, "dgn compares demonstrations with decisions under a delay of 2 steps"),
        (
            "wsrl",
            {"offline_share": 0.5},
            r"offline_share compares.*set off_policy\.offline_share=0",
        ),
        (
            "dsrl",
            {"offline_share": 0.5},
            r"offline_share compares.*set off_policy\.offline_share=0",
        ),
    ],
)
def test_demonstrations_beside_late_decisions_are_refused(
    name: str,
    settings: dict[str, Any],
    message: str,
    late_policy: Callable,
    small_preset: Callable,
) -> None:
    config = changed(small_preset(name), **settings)
    with pytest.raises(ValueError, match=message):
        rl.make(config, late_policy())
