"""`repeated`: rollouts are played again, and the collector goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pitune import envs, rl
from pitune.policies import DelayConfig
from pitune.rl.experience import repeated
from pitune.rl.experience.rollouts import Rollouts


def make_rollouts(algorithm: rl.Algorithm) -> Rollouts:
    config = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7)
    return Rollouts(envs.make(config), algorithm, num_chunks=4, seed=0)


@pytest.mark.parametrize("name", ["ppo", "dsrl", "grpo", "bc"])
@pytest.mark.parametrize("num", [0, 1, 3])
def test_a_repetition_goes_on_bit_for_bit(
    name: str, num: int, tiny_policy: Callable, small_preset: Callable
) -> None:
    algorithm = rl.make(small_preset(name), tiny_policy())
    first = make_rollouts(algorithm)
    first.restart(2)
    for _ in range(num):
        first.collect()
    state = first.state()
    assert state is not None
    random = torch.get_rng_state()
    expected = [first.collect() for _ in range(3)]

    # another process, in which the random numbers are others and the weights have changed
    second = make_rollouts(rl.make(small_preset(name), tiny_policy()))
    torch.set_rng_state(random)
    assert second.repeat(state)
    assert torch.equal(torch.get_rng_state(), random)
    for rollout in expected:
        again = second.collect()
        assert again.keys() == rollout.keys()
        assert (again == rollout).all()
    assert second.state() is not None


def test_a_late_chunk_is_repeated_too(tiny_policy: Callable, small_preset: Callable) -> None:
    policy = tiny_policy(horizon=4).with_delay(DelayConfig(steps=1))
    algorithm = rl.make(small_preset("ppo"), policy)
    first, second = make_rollouts(algorithm), make_rollouts(algorithm)
    first.collect()
    state, random = first.state(), torch.get_rng_state()
    assert state is not None
    assert second.repeat(state)
    expected = first.collect()
    torch.set_rng_state(random)
    assert (second.collect() == expected).all()


def test_episodes_that_went_differently_are_found_out(
    tiny_policy: Callable, small_preset: Callable
) -> None:
    algorithm = rl.make(small_preset("ppo"), tiny_policy())
    rollouts = make_rollouts(algorithm)
    rollouts.collect()
    state = rollouts.state()
    assert state is not None
    state["actions"][0] = -state["actions"][0]
    assert not rollouts.repeat(state)


def test_too_many_actions_are_dropped(
    tiny_policy: Callable, small_preset: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = make_rollouts(rl.make(small_preset("ppo"), tiny_policy()))
    rollouts.collect()
    monkeypatch.setattr(repeated, "MOST_BYTES", 400)
    rollouts.collect()
    assert rollouts.state() is None
    rollouts.restart(4)
    assert rollouts.state() is not None


def test_an_actor_that_reads_more_than_the_environment_gives_is_not_repeated(
    tiny_policy: Callable, small_preset: Callable
) -> None:
    """Its own entries are not in the stored actions."""
    algorithm = rl.make(small_preset("ppo"), tiny_policy())
    rollouts = make_rollouts(algorithm)
    algorithm.actor.in_keys = [*algorithm.actor.in_keys, "hidden"]
    assert rollouts.state() is None
