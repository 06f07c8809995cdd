"""`registry`: environments by name."""

from __future__ import annotations

import re

import pytest

from pitune.envs import CheckedEnv, EnvConfig, make


@pytest.mark.parametrize(
    ("id", "nearest"),
    [
        ("mujco/PickCube", "mujoco/PickCube"),
        ("mani_skill/PickCube-v1", "maniskill/PickCube-v1"),
        ("mujco", "mujoco/..."),
        ("mock/Rech", "mock/Reach"),
        ("mock/script", "mock/Script"),
        ("mock/TwoGoal", "mock/TwoGoals"),
        ("mujoco/PickCub", "PickCube"),
        ("gym/Pendulun-v1", "Pendulum-v1"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(id: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=re.escape(nearest)) as raised:
        make(EnvConfig(id=id, num_envs=1, num_workers=0))
    assert id.split("/")[-1] in str(raised.value)


@pytest.mark.parametrize("id", ["", "/", "mujoco", "mujoco/", "zzz/PickCube", "PickCube"])
def test_a_name_without_prefix_or_task_lists_the_prefixes(id: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown environment id='{id}'") as raised:
        make(EnvConfig(id=id, num_envs=1))
    for prefix in ("gym", "maniskill", "metaworld", "mock", "mujoco"):
        assert f"'{prefix}'" in str(raised.value)
    assert "mujoco/PickCube" in str(raised.value)


@pytest.mark.parametrize("num_envs", [0, -2])
def test_there_is_at_least_one_environment(num_envs: int) -> None:
    with pytest.raises(ValueError, match=f"num_envs={num_envs} must be at least 1"):
        make(EnvConfig(id="mock/Reach", num_envs=num_envs))


@pytest.mark.parametrize(
    ("id", "default"),
    [
        ("mock/Reach", 20),
        ("mock/Script", 5),
        ("mock/TwoGoals", 4),
        ("mujoco/PushCube", 60),
        ("gym/Pendulum-v1", 200),
    ],
)
def test_the_time_limit_is_the_tasks_own_unless_asked_for(id: str, default: int) -> None:
    for asked, expected in ((None, default), (3, 3)):
        env = make(EnvConfig(id=id, num_envs=2, num_workers=0, max_episode_steps=asked))
        assert isinstance(env, CheckedEnv)
        assert env.spec.max_episode_steps == expected
        assert (env.spec.id, env.spec.num_envs) == (id, 2)
        env.close()


def test_settings_reach_the_environment() -> None:
    config = EnvConfig(id="mock/Reach", num_envs=1, cameras=("a", "b"), image_size=8)
    spec = make(config).spec
    assert spec.cameras == {"a": (3, 8, 8), "b": (3, 8, 8)}


@pytest.mark.parametrize("id", ["gym/Pendulum-v1", "metaworld/peg-insert-side-v3"])
def test_cameras_are_refused_where_there_are_none(id: str) -> None:
    with pytest.raises(ValueError, match=rf"cameras=\('top',\) are not supported by {id}; use a"):
        make(EnvConfig(id=id, num_envs=1, cameras=("top",)))
