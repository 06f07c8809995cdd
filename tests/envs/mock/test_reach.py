"""`mock/Reach` and `mock/Script`: hand-computed numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pitune.envs.mock.reach import Reach, Script


def all_active(env: Reach | Script) -> torch.Tensor:
    return torch.ones(env.spec.num_envs, dtype=torch.bool)


def make_at(point: tuple[float, float], *goals: tuple[float, float], **options: Any) -> Reach:
    """Return one Reach environment with the given point and goals."""
    env = Reach(1, num_tasks=len(goals), **options)
    env.reset(torch.tensor([0]))
    env.point[0], env.goals[0] = torch.tensor(point), torch.tensor(goals)
    return env


# Reach


def test_the_expert_takes_the_steps_of_the_straight_line() -> None:
    """500 starts, each solved in exactly the number of steps that was computed before."""
    env = Reach(500)
    env.reset(torch.arange(500))
    expected, expert = env.optimal_steps(), env.expert()
    needed, active = torch.zeros(500, dtype=torch.int64), all_active(env)
    while active.any():
        result = env.step(expert.act(), active)
        needed += active
        assert not result.truncated.any()
        active &= ~result.terminated
    assert torch.equal(needed, expected)
    assert 1 <= expected.min() < 3
    assert expected.max() >= 9


@pytest.mark.parametrize(
    ("point", "goal", "steps"),
    [
        ((0.1, 0.5), (0.5, 0.5), 4),  # 0.4 m less the radius of 0.05 m, at 0.1 m a step
        ((0.1, 0.5), (0.54, 0.5), 4),
        ((0.1, 0.5), (0.56, 0.5), 5),
        ((0.2, 0.2), (0.5, 0.5), 3),  # both axes move 0.1 m: the diagonal is as fast
        ((0.5, 0.5), (0.51, 0.5), 1),  # at the goal already, but success needs a step
    ],
)
def test_the_number_of_steps_by_hand(
    point: tuple[float, float], goal: tuple[float, float], steps: int
) -> None:
    assert make_at(point, goal).optimal_steps().item() == steps


def test_a_full_action_moves_a_tenth_of_a_meter_and_walls_hold() -> None:
    env = make_at((0.5, 0.95), (0.0, 0.0))
    obs = env.step(torch.tensor([[-1.0, 1.0]]), all_active(env)).obs
    assert obs["state"][0, :2].tolist() == pytest.approx([0.4, 1.0])


def test_success_pays_one_and_ends_the_episode() -> None:
    env = make_at((0.3, 0.5), (0.5, 0.5))
    first = env.step(torch.tensor([[1.0, 0.0]]), all_active(env))
    assert (first.reward.item(), first.terminated.item()) == (0, False)
    second = env.step(torch.tensor([[1.0, 0.0]]), all_active(env))
    assert (second.reward.item(), second.terminated.item()) == (1, True)
    assert second.info["success"].item()
    assert not second.truncated.item()


def test_the_dense_reward_is_less_the_distance() -> None:
    env = make_at((0.3, 0.5), (0.6, 0.9), reward="dense")
    result = env.step(torch.zeros(1, 2), all_active(env))
    assert result.reward.item() == pytest.approx(-0.5)


def test_success_at_the_last_step_is_success() -> None:
    env = make_at((0.3, 0.5), (0.4, 0.5), max_episode_steps=1)
    result = env.step(torch.tensor([[1.0, 0.0]]), all_active(env))
    assert result.terminated.item()
    assert not result.truncated.item()


def test_the_instruction_selects_the_goal() -> None:
    """The same position is success under one instruction and not under the other."""
    for task, success in ((0, True), (1, False)):
        env = make_at((0.3, 0.5), (0.4, 0.5), (0.9, 0.9), max_episode_steps=20)
        env.task_id[0] = task
        result = env.step(torch.tensor([[1.0, 0.0]]), all_active(env))
        assert result.obs["task_id"].item() == task
        assert result.info["success"].item() is success
    assert env.spec.tasks == ("reach the green goal", "reach the red goal")


def test_the_expert_follows_the_instruction() -> None:
    env = Reach(200, num_tasks=2)
    obs = env.reset(torch.arange(200))
    assert 60 < obs["task_id"].sum() < 140
    goal = obs["state"][:, 2:].unflatten(1, (2, 2))[torch.arange(200), obs["task_id"]]
    offset = goal - obs["state"][:, :2]
    far = offset.abs().max(dim=1).values > 0.1
    direction = env.expert().act()
    assert torch.allclose(
        direction[far], offset[far] / offset[far].abs().max(1, keepdim=True).values, atol=1e-5
    )


def test_cameras_show_the_point_and_both_goals() -> None:
    env = make_at((0.2, 0.4), (0.6, 0.8), (1.0, 0.0), cameras=("top", "side"), image_size=11)
    obs = env.step(torch.zeros(1, 2), all_active(env)).obs
    picture = obs["image/top"][0]
    assert torch.equal(obs["image/side"][0], picture)
    # With 11 pixels 0.1 m is a pixel: x is the column, y the row.
    lit_pixels = {(row, column) for row, column in picture.sum(0).nonzero().tolist()}
    assert lit_pixels == {(4, 2), (8, 6), (0, 10)}
    assert picture[:, 4, 2].tolist() == [255, 255, 255]
    assert picture[:, 8, 6].tolist() == [0, 255, 0]
    assert picture[:, 0, 10].tolist() == [255, 0, 0]


def test_render_shows_point_and_goal() -> None:
    env = make_at((0.0, 0.0), (1.0, 1.0))
    picture = env.render()
    assert picture.shape == (1, 64, 64, 3)
    assert picture[0, 0, 0].tolist() == [255, 255, 255]
    assert picture[0, 63, 63].tolist() == [0, 255, 0]


def test_starts_fill_the_square() -> None:
    state = Reach(400).reset(torch.arange(400))["state"]
    assert state.min() >= 0
    assert state.max() <= 1
    assert state.mean(0).tolist() == pytest.approx([0.5] * 4, abs=0.06)


@pytest.mark.parametrize("num_tasks", [0, 3])
def test_there_are_one_or_two_tasks(num_tasks: int) -> None:
    with pytest.raises(ValueError, match=f"num_tasks={num_tasks} of mock/Reach must be 1 or 2"):
        Reach(1, num_tasks=num_tasks)


# Script


def test_the_script_shows_environment_seed_and_time_and_ends_on_schedule() -> None:
    env = Script(3, lengths=(1, 2, 3), ends=("success", "failure", "time"))
    assert env.reset(torch.tensor([1007, 8, 9]))["state"].tolist() == [
        [0, 7, 0],
        [1, 8, 0],
        [2, 9, 0],
    ]
    active, history = all_active(env), []
    for _ in range(3):
        result = env.step(torch.zeros(3, 1), active)
        flags = (result.terminated, result.truncated, result.info["success"])
        history.append([flag.tolist() for flag in flags])
        active &= ~(result.terminated | result.truncated)
    steps = [[row[i] for row in zip(*history, strict=True)] for i in range(3)]
    # Rows: terminated, truncated, success; columns: environments.
    assert steps[0] == [[True, False, False], [False, False, False], [True, False, False]]
    assert steps[1] == [[False, True, False], [False, False, False], [False, False, False]]
    assert steps[2] == [[False, False, False], [False, False, True], [False, False, False]]
    assert result.obs["state"][:, 2].tolist() == [1, 2, 3]
    assert result.reward.tolist() == [0, 0, 3]


def test_the_script_may_reuse_its_buffer() -> None:
    for reuse in (False, True):
        env = Script(1, lengths=(9,), ends=("time",), reuse_buffer=reuse)
        first = env.reset(torch.tensor([0]))["state"]
        env.step(torch.zeros(1, 1), all_active(env))
        assert first[0, 2].item() == (1 if reuse else 0)


def test_a_script_needs_an_end_for_every_environment() -> None:
    with pytest.raises(ValueError, match="lengths has 2 and ends 1 entries; num_envs=2 of each"):
        Script(2, lengths=(1, 2), ends=("time",))


def test_a_script_has_neither_pictures_nor_expert() -> None:
    env = Script(1, lengths=(1,), ends=("time",))
    with pytest.raises(RuntimeError, match="mock/Script has no pictures; use mock/Reach"):
        env.render()
    with pytest.raises(ValueError, match="mock/Script has no expert; use mock/Reach"):
        env.expert()
