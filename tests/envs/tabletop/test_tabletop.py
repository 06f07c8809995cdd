"""The embedded simulator: physics, rules of a `VectorEnv`, experts and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pitune.envs.tabletop import render
from pitune.envs.tabletop.env import Tabletop
from pitune.envs.tabletop.layout import controls_of
from pitune.envs.tabletop.tasks import TASKS, Scene, dense_reward

ALL_TASKS = list(TASKS)
CLOSED = -1.0


def all_active(env: Tabletop) -> torch.Tensor:
    return torch.ones(env.spec.num_envs, dtype=torch.bool)


def make_started(task: str, num_envs: int, **options: Any) -> Tabletop:
    """Return environments in episodes with the seeds 0, 1, ..."""
    env = Tabletop(task, num_envs, **options)
    env.reset(torch.arange(num_envs))
    return env


def same_action(env: Tabletop, *action: float) -> torch.Tensor:
    """Return the same action for every environment."""
    return torch.tensor(action, dtype=torch.float32).expand(env.spec.num_envs, 4)


def draw_actions(steps: int, num_envs: int) -> torch.Tensor:
    """Return random actions (steps, num_envs, 4) with a downward bias, which causes contacts."""
    action = 2 * torch.rand(steps, num_envs, 4, generator=torch.Generator().manual_seed(0)) - 1
    action[:, :, 2] -= 0.5
    return action


def expert_success(task: str, num_envs: int) -> float:
    env = make_started(task, num_envs)
    expert = env.expert()
    active, solved = all_active(env), 0
    while active.any():
        result = env.step(expert.act(), active)
        solved += int(result.info["success"].sum())
        active &= ~(result.terminated | result.truncated)
    return solved / num_envs


# Physics


def test_a_dropped_cube_comes_to_rest_on_the_table() -> None:
    env = make_started("PickCube", 2)
    env.physics.states[:, 1 + 5 + 2] = 0.1  # after the clock and 5 joints: the cube's x, y, z
    for _ in range(20):
        env.step(same_action(env, 0, 0, 0, 1), all_active(env))
    assert env.scene.cubes[:, 0, 2] == pytest.approx(0.02, abs=5e-4)
    assert np.abs(env.scene.cube_velocities).max() < 1e-3


def test_a_cube_above_the_table_falls_freely() -> None:
    env = make_started("PickCube", 1)
    env.physics.states[:, 1 + 5 + 2] = 0.15
    env.step(same_action(env, 0, 0, 0, 1), all_active(env))
    # One control step is 0.05 s. Semi-implicit Euler falls g h^2 k (k + 1) / 2 in k steps of h.
    assert env.scene.cubes[0, 0, 2] == pytest.approx(0.15 - 9.81 * 0.005**2 * 55, abs=1e-5)
    assert env.scene.cube_velocities[0, 0, 2] == pytest.approx(-9.81 * 0.05, abs=1e-4)


@pytest.mark.parametrize(("axis", "sign"), [(0, 1), (1, -1), (2, -1)])
def test_one_unit_of_action_commands_six_centimeters(axis: int, sign: int) -> None:
    env = make_started("PickCube", 1)
    before = env.scene.tool[0].copy()
    action = torch.zeros(1, 4)
    action[0, axis] = sign
    positions = env.physics.states[:, 1 : 1 + env.physics.model.nq]
    commanded = controls_of(positions, action.numpy())[0, :3]
    assert commanded[axis] - (before - [0, 0, 0.25])[axis] == pytest.approx(0.06 * sign)
    env.step(action, all_active(env))
    moved = env.scene.tool[0] - before
    # The slides have inertia: from rest they cover only part of the way in one step.
    assert 0.01 < sign * moved[axis] < 0.06
    assert np.delete(moved, axis) == pytest.approx(0, abs=1e-3)


def test_the_gripper_opens_and_closes() -> None:
    env = make_started("PickCube", 1)
    for grip, opening in ((CLOSED, 0.0), (1.0, 0.04)):
        for _ in range(10):
            env.step(same_action(env, 0, 0, 0, grip), all_active(env))
        assert env.scene.fingers == pytest.approx(opening, abs=2e-3)


def test_fingers_stay_above_the_table() -> None:
    env = make_started("PickCube", 4)
    for _ in range(12):
        env.step(same_action(env, 0, 0, -1, CLOSED), all_active(env))
    assert env.scene.tool[:, 2].min() > 0.012


def test_actions_outside_the_bounds_are_clipped() -> None:
    one, two = make_started("PickCube", 1), make_started("PickCube", 1)
    inside = one.step(same_action(one, 1, -1, 0, 1), all_active(one))
    outside = two.step(same_action(two, 5, -7, 0, 3), all_active(two))
    assert torch.equal(inside.obs["state"], outside.obs["state"])


# Starts


@pytest.mark.parametrize("task", ALL_TASKS)
def test_equal_seeds_are_equal_starts_in_every_row(task: str) -> None:
    env = Tabletop(task, 3)
    state = env.reset(torch.tensor([7, 8, 7]))["state"]
    assert torch.equal(state[0], state[2])
    assert not torch.equal(state[0], state[1])
    moved = env.reset(torch.tensor([8]), torch.tensor([0]))["state"]
    assert torch.equal(moved[0], state[1])
    assert torch.equal(moved[1:], state[1:])


@pytest.mark.parametrize("task", ALL_TASKS)
def test_starts_lie_in_the_workspace_and_are_not_solved(task: str) -> None:
    scene = make_started(task, 200).scene
    assert np.abs(scene.tool[:, :2]).max() <= 0.03
    assert np.abs(scene.cubes[:, 0, :2]).max() <= 0.12
    assert (scene.cubes[:, :, 2] == 0.02).all()
    assert (np.linalg.norm(scene.error, axis=1) > 0.035).all()
    assert not TASKS[task].success(scene).any()


def test_the_observation_is_laid_out_as_documented() -> None:
    env = make_started("StackCube", 2)
    env.step(same_action(env, 1, 0, -1, 1), all_active(env))
    scene = env.scene
    state = env.reset(torch.empty(0), torch.empty(0, dtype=torch.int64))["state"].numpy()
    assert state.shape == (2, env.spec.state_dim)
    assert state[:, :3] == pytest.approx(scene.tool)
    assert state[:, 3:6] == pytest.approx(scene.tool_velocity)
    assert state[:, 6:8] == pytest.approx(scene.fingers)
    assert state[:, 8:11] == pytest.approx(scene.cubes[:, 0])
    assert state[:, 14:17] == pytest.approx(scene.cubes[:, 1])
    assert state[:, 20:23] == pytest.approx(scene.cubes[:, 0] - scene.tool)
    assert state[:, 23:26] == pytest.approx(scene.cubes[:, 1] - scene.tool)
    assert state[:, 26:29] == pytest.approx(scene.cubes[:, 1] + [0, 0, 0.04] - scene.cubes[:, 0])


# Reproducibility


@pytest.mark.parametrize("task", ALL_TASKS)
def test_results_do_not_depend_on_threads_neighbors_or_earlier_steps(task: str) -> None:
    steps, num_envs = 12, 6
    actions = draw_actions(steps, num_envs)
    wide = make_started(task, num_envs, num_threads=3, max_episode_steps=1000)
    rows = [wide.step(action, all_active(wide)).obs["state"] for action in actions]
    # Alone, in one thread, in a simulator that has been used before.
    single = Tabletop(task, 1, num_threads=1, max_episode_steps=1000)
    for env in (4, 1):
        single.reset(torch.tensor([env]))
        for step in range(steps):
            result = single.step(actions[step, env : env + 1], torch.tensor([True]))
            assert torch.equal(result.obs["state"][0], rows[step][env])
    # In turns: half of the environments wait while the others move.
    turns = make_started(task, num_envs, num_threads=2, max_episode_steps=1000)
    odd = torch.arange(num_envs) % 2 == 1
    for step in range(steps):
        turns.step(actions[step], odd)
        result = turns.step(actions[step], ~odd)
        assert torch.equal(result.obs["state"], rows[step])


# The rules of a VectorEnv


def test_inactive_rows_keep_everything() -> None:
    env = make_started("PickCube", 3)
    before = env.step(same_action(env, 1, 1, -1, 1), all_active(env)).obs["state"]
    active = torch.tensor([False, True, False])
    action = same_action(env, 1, 1, -1, 1).clone()
    action[0] = torch.nan  # the action of an inactive row is ignored
    result = env.step(action, active)
    assert torch.equal(result.obs["state"][~active], before[~active])
    assert not torch.equal(result.obs["state"][1], before[1])
    assert not (result.terminated | result.truncated | result.info["invalid"])[~active].any()
    assert env.step_counts.tolist() == [1, 2, 1]
    idle = env.step(action, torch.zeros(3, dtype=torch.bool))
    assert torch.equal(idle.obs["state"], result.obs["state"])


def test_returned_tensors_are_never_written_to_again() -> None:
    env = make_started("PickCube", 2, max_episode_steps=2)
    first = env.step(same_action(env, 1, 0, 0, 1), all_active(env))
    tensors = [*first.obs.values(), *first.info.values(), *first[1:4]]
    copies = [tensor.clone() for tensor in tensors]
    env.step(same_action(env, 1, 0, 0, 1), all_active(env))
    env.reset(torch.tensor([5, 6]))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)


def test_the_time_limit_truncates() -> None:
    env = make_started("PickCube", 2, max_episode_steps=3)
    flags = [
        env.step(same_action(env, 0, 0, 0, 1), all_active(env)).truncated.tolist() for _ in range(3)
    ]
    assert flags == [[False, False], [False, False], [True, True]]


def test_an_ended_environment_waits_for_its_reset() -> None:
    env = Tabletop("PickCube", 2, max_episode_steps=1)
    with pytest.raises(ValueError, match=r"environments \[0, 1\] have ended; reset them"):
        env.step(same_action(env, 0, 0, 0, 1), all_active(env))
    env.reset(torch.arange(2))
    env.step(same_action(env, 0, 0, 0, 1), all_active(env))
    env.reset(torch.tensor([9]), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"environments \[0\] have ended"):
        env.step(same_action(env, 0, 0, 0, 1), all_active(env))
    env.step(same_action(env, 0, 0, 0, 1), torch.tensor([False, True]))


def test_a_simulation_that_breaks_down_is_invalid_and_keeps_its_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warning into MUJOCO_LOG.TXT where it runs
    env = make_started("PickCube", 3)
    env.step(same_action(env, 0, 0, 0, 1), all_active(env))
    env.physics.states[1, 1 + env.physics.model.nq] = 1e30  # velocity of the x slide
    result = env.step(same_action(env, 0, 0, 0, 1), all_active(env))
    assert result.info["invalid"].tolist() == [False, True, False]
    assert result.truncated.tolist() == [False, True, False]
    assert not result.terminated.any()
    assert result.reward.tolist() == [0, 0, 0]
    env.reset(torch.tensor([1]), torch.tensor([1]))
    after = env.step(same_action(env, 0, 0, 0, 1), all_active(env))
    assert not after.info["invalid"].any()
    assert torch.isfinite(after.obs["state"]).all()


# Rewards and experts


def test_sparse_reward_is_one_on_the_step_of_success_only() -> None:
    env = make_started("PickCube", 8)
    expert, active = env.expert(), all_active(env)
    total = torch.zeros(8)
    while active.any():
        result = env.step(expert.act(), active)
        assert torch.equal(result.reward, result.terminated.float())
        assert torch.equal(result.terminated, result.info["success"])
        total += result.reward
        active &= ~(result.terminated | result.truncated)
    assert total.tolist() == [1] * 8


@pytest.mark.parametrize("task", ALL_TASKS)
def test_dense_reward_rises_and_success_outweighs_all_progress(task: str) -> None:
    env = make_started(task, 8, reward="dense")
    expert, active = env.expert(), all_active(env)
    history = []
    while active.any():
        result = env.step(expert.act(), active)
        assert (result.reward[result.terminated] == 1).all()
        assert (result.reward[~result.terminated] < 1 / 60).all()
        assert (result.reward[active] > 0).all()
        history.append(result.reward[active & ~result.terminated].mean())
        active &= ~(result.terminated | result.truncated)
    assert history[10] > 2 * history[0]


def test_dense_reward_matches_a_case_computed_by_hand() -> None:
    still = {"tool_velocity": np.zeros((1, 3)), "cube_quaternions": np.zeros((1, 1, 4))}
    scene = Scene(
        tool=np.array([[0.0, 0.0, 0.1]]),
        fingers=np.array([[0.02, 0.02]]),
        cubes=np.array([[[0.0, 0.0, 0.1]]]),
        cube_velocities=np.zeros((1, 1, 3)),
        goal=np.array([[0.0, 0.0, 0.2]]),
        **still,
    )
    # In the hand (reach 0.2, held 0.2), 10 cm from the goal: 0.5 (1 - tanh 0.8) = 0.168.
    assert dense_reward(TASKS["PickCube"], scene) == pytest.approx(0.5 * 0.33596 + 0.4, abs=1e-4)


@pytest.mark.parametrize(
    ("task", "at_least"), [("PushCube", 0.9), ("PickCube", 1.0), ("StackCube", 0.9)]
)
def test_experts_solve_their_tasks(task: str, at_least: float) -> None:
    assert expert_success(task, 48) >= at_least


def test_an_expert_begins_again_with_every_episode() -> None:
    env = make_started("PickCube", 2)
    expert = env.expert()
    first = expert.act()
    for _ in range(12):
        env.step(expert.act(), all_active(env))
    env.reset(torch.arange(2))
    assert torch.equal(expert.act(), first)


# Errors


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown tabletop task 'pickcub'.*mean 'PickCube'\?"):
        Tabletop("pickcub", 1)
    with pytest.raises(ValueError, match=r"valid: \['PushCube', 'PickCube', 'StackCube'\]$"):
        Tabletop("zzz", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": ("top",)}, r"cameras=\['top'\] do not exist in .*it has \['front', 'wrist'\]"),
        ({"cameras": ("fron",)}, r"\(did you mean 'front' instead of 'fron'\?\)"),
        ({"reward": "shaped"}, r"unknown reward 'shaped'; valid: \['sparse', 'dense'\]"),
        ({"num_threads": 0}, "num_threads=0 must be at least 1"),
        ({"max_episode_steps": 0}, "max_episode_steps=0 must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tabletop("PickCube", 1, **options)


def test_wrong_arguments_of_reset_and_step_are_refused() -> None:
    env = make_started("PickCube", 2)
    with pytest.raises(ValueError, match=r"seed has shape \(3,\); 2 environments are reset"):
        env.reset(torch.arange(3))
    with pytest.raises(ValueError, match=r"they must be \(2, 4\) and \(2,\)"):
        env.step(torch.zeros(2, 3), all_active(env))
    with pytest.raises(ValueError, match="not finite"):
        env.step(torch.full((2, 4), torch.nan), all_active(env))


# Pictures


@pytest.fixture
def env_with_cameras() -> Iterator[Tabletop]:
    try:
        env = Tabletop("PickCube", 2, cameras=("front", "wrist"), image_size=32)
        env.render()
    except RuntimeError as error:
        pytest.skip(f"this machine cannot render: {error}")
    yield env
    env.close()


def test_cameras_see_the_scene(env_with_cameras: Tabletop) -> None:
    obs = env_with_cameras.reset(torch.tensor([3, 3]))
    assert env_with_cameras.spec.cameras == {"front": (3, 32, 32), "wrist": (3, 32, 32)}
    for camera in ("image/front", "image/wrist"):
        assert obs[camera].shape == (2, 3, 32, 32)
        assert obs[camera].dtype == torch.uint8
        assert torch.equal(obs[camera][0], obs[camera][1])
        assert obs[camera].float().std() > 10
    before = obs["image/front"].clone()
    for _ in range(4):
        moved = env_with_cameras.step(
            same_action(env_with_cameras, 1, 1, -1, 1), torch.tensor([True, False])
        )
    assert not torch.equal(moved.obs["image/front"][0], before[0])
    assert torch.equal(moved.obs["image/front"][1], before[1])
    assert torch.equal(obs["image/front"], before)


def test_the_state_beside_pictures_can_leave_out_cubes_and_goal(env_with_cameras: Tabletop) -> None:
    blind = Tabletop("PickCube", 2, cameras=("front",), image_size=32, obs_mode="rgb")
    seeds, active = torch.tensor([3, 4]), torch.tensor([True, True])
    full, gripper = env_with_cameras.reset(seeds), blind.reset(seeds)
    for _ in range(3):
        assert gripper["state"].shape == (2, blind.spec.state_dim) == (2, 8)
        assert torch.equal(gripper["state"], full["state"][:, :8])
        assert torch.equal(gripper["image/front"], full["image/front"])
        action = torch.rand(2, 4)
        full, gripper = env_with_cameras.step(action, active).obs, blind.step(action, active).obs
    blind.close()


def test_no_entry_of_the_grippers_state_follows_a_cube_or_the_goal() -> None:
    states = []
    for offset in (0.0, 0.05):
        env = Tabletop("StackCube", 1)
        env.reset(torch.tensor([0]))
        env.physics.goals[:] += offset
        scene = env.scene
        moved = replace(scene, cubes=scene.cubes + offset, goal=scene.goal + offset)
        env._rules = replace(env._rules, obs_mode="rgb")
        states.append(env._observation(moved)["state"])
    assert torch.equal(*states)


def test_an_expert_sees_the_true_state_in_the_mode_without_it(env_with_cameras: Tabletop) -> None:
    env = Tabletop("PickCube", 20, cameras=("front",), image_size=8, obs_mode="rgb")
    env.reset(torch.arange(20))
    expert, active = env.expert(), torch.ones(20, dtype=torch.bool)
    success = torch.zeros(20, dtype=torch.bool)
    while active.any():
        result = env.step(expert.act(), active)
        success |= result.info["success"]
        active &= ~(result.terminated | result.truncated)
    assert success.sum() >= 18
    env.close()


def test_the_mode_without_cubes_needs_a_camera() -> None:
    with pytest.raises(ValueError, match=r"obs_mode='rgb' without cameras shows no cube; name som"):
        Tabletop("PickCube", 1, obs_mode="rgb")
    with pytest.raises(ValueError, match=r"unknown obs_mode 'depth'; valid: \['state', 'rgb'\]"):
        Tabletop("PickCube", 1, obs_mode="depth")  # type: ignore[arg-type]


def test_shadows_are_optional_in_camera_pictures(env_with_cameras: Tabletop) -> None:
    shaded = Tabletop("PickCube", 2, cameras=("front",), image_size=32, shadows=True)
    seeds = torch.tensor([3, 3])
    with_shadows, without = shaded.reset(seeds), env_with_cameras.reset(seeds)
    assert torch.equal(with_shadows["state"], without["state"])
    assert not torch.equal(with_shadows["image/front"], without["image/front"])
    shaded.close()


def test_render_shows_the_cube_and_the_goal(env_with_cameras: Tabletop) -> None:
    env_with_cameras.reset(torch.tensor([3, 5]))
    picture = env_with_cameras.render()
    assert picture.shape == (2, 240, 320, 3)
    assert picture.dtype == torch.uint8
    red, green, blue = picture.int().unbind(dim=-1)
    assert ((red - torch.maximum(green, blue)) > 80).sum() > 100
    assert ((green - torch.maximum(red, blue)) > 60).sum() > 100


def test_a_machine_that_cannot_render_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "opengl_backend", lambda: "no_such_backend")
    with pytest.raises(RuntimeError, match=r"libegl1.*libosmesa6"):
        make_started("PickCube", 1).render()
