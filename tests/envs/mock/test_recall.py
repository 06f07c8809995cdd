"""`mock/Recall`: the goal is shown once, and nothing else in an observation depends on it."""

from __future__ import annotations

import pytest
import torch

from pitune import envs, rl
from pitune.envs.mock.recall import WAIT, Recall, RecallExpert


def test_only_the_first_observation_depends_on_the_goal() -> None:
    env = Recall(8)
    first = env.reset(torch.arange(8))["state"]
    directions = first[:, 2:4]
    assert torch.allclose(directions.norm(dim=1), torch.ones(8))
    assert len(directions.unique(dim=0)) > 1
    active = torch.ones(8, dtype=torch.bool)
    for _ in range(WAIT):  # also with actions that differ, which have no effect
        state = env.step(torch.rand(8, 2) * 2 - 1, active).obs["state"]
        assert len(state.unique(dim=0)) == 1
        assert state[:, 2:4].abs().max() == 0
    assert state[0].tolist() == [0.5, 0.5, 0.0, 0.0, 1.0]


def test_the_expert_solves_every_episode() -> None:
    env = envs.make(envs.EnvConfig(id="mock/Recall", num_envs=4))
    demonstrations = rl.collect_demonstrations(env, 20, seed=0)
    assert demonstrations.expert_success == ((20, 20),)
    assert int(torch.bincount(demonstrations.episode).max()) == 11


def test_a_wrong_goal_ends_the_episode_without_success() -> None:
    env = Recall(4)
    env.reset(torch.zeros(4, dtype=torch.int64))  # one goal for all
    active = torch.ones(4, dtype=torch.bool)
    for _ in range(WAIT):
        env.step(torch.zeros(4, 2), active)
    for _ in range(4):  # one goal of each
        result = env.step(env.directions, active)
        active = active & ~result.terminated
    assert not active.any()
    env.reset(torch.zeros(4, dtype=torch.int64))
    solved = torch.zeros(4, dtype=torch.bool)
    active = torch.ones(4, dtype=torch.bool)
    for _ in range(WAIT + 4):
        result = env.step(env.directions, active)
        solved |= result.info["success"]
        active = active & ~(result.terminated | result.truncated)
    assert solved.tolist() == [goal == int(env.chosen[0]) for goal in range(4)]


def test_a_memoryless_expert_is_right_in_one_of_four_episodes() -> None:
    """The control of the task: the same moves towards a goal that is guessed."""
    env = Recall(400)
    env.reset(torch.arange(400))
    truth = env.chosen.clone()
    generator = torch.Generator().manual_seed(0)
    env.chosen = torch.randint(4, (400,), generator=generator)
    expert, active = RecallExpert(env), torch.ones(400, dtype=torch.bool)
    for _ in range(WAIT + 4):
        active = active & ~env.step(expert.act(), active).terminated
    assert not active.any()
    assert 0.18 < float((env.chosen == truth).float().mean()) < 0.32


def test_settings_of_other_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reward='dense' is not supported by mock/Recall; "):
        envs.make(envs.EnvConfig(id="mock/Recall", reward="dense"))


def test_the_picture_shows_the_point_and_the_goals() -> None:
    env = Recall(1)
    env.reset(torch.tensor([0]))
    picture = env.render()[0]
    assert picture[32, 32].tolist() == [255, 255, 255]
    assert int((picture[..., 1] == 255).sum()) == 2  # the point and the right goal
