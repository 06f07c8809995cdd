"""Parts of an evaluation under a delay: an actor with a memory of each environment's last chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pitune import envs, rl
from pitune.policies.flow.delay import DelayConfig, Seam
from pitune.policies.flow.real_time import RealTimeConfig
from pitune.policies.policy import FlowPolicy
from pitune.policies.real_time.delayed_actor import DelayedActor

ENV = envs.EnvConfig(
    id="mock/Reach", num_envs=4, num_workers=0, reward="dense", max_episode_steps=11
)


@pytest.mark.parametrize("seam", ["plain", "ensemble", "real_time"])
def test_parts_under_a_fixed_delay_equal_the_whole_to_the_last_bit(
    seam: Seam, tiny_policy: Callable[..., FlowPolicy]
) -> None:
    policy = tiny_policy(horizon=8, executed=3)
    policy = policy.replace(sampler=replace(policy.sampler, real_time=RealTimeConfig()))
    env = envs.make(ENV)

    def rows(episodes: list[int]) -> list[rl.EpisodeOutcome]:
        actor = DelayedActor(policy, DelayConfig(steps=2, seam=seam))
        return list(rl.evaluate(env, actor, 18, episodes=episodes).rows)

    whole = rows(list(range(18)))
    parts = rows([17, 2, 4]) + rows([i for i in range(18) if i not in (17, 2, 4)])
    assert sorted(parts, key=lambda row: row.index) == whole


def test_drawn_delays_depend_on_the_episodes_beside_them(
    tiny_policy: Callable[..., FlowPolicy],
) -> None:
    """Negative control: therefore `--folder` refuses them."""
    policy, env = tiny_policy(horizon=8, executed=3), envs.make(ENV)

    def rows(episodes: list[int]) -> list[rl.EpisodeOutcome]:
        actor = DelayedActor(policy, DelayConfig(steps=0, max_steps=3))
        return list(rl.evaluate(env, actor, 18, episodes=episodes).rows)

    assert rows([9, 10, 17]) != [row for row in rows(list(range(18))) if row.index in (9, 10, 17)]
