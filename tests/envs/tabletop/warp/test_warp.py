"""The tabletop on MuJoCo Warp, on the CPU, against the C engine."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from cuda_waits import cuda_waits
from host_copies import host_copies
from torch import Tensor

from pitune import envs
from pitune.envs.tabletop.env import Tabletop
from pitune.envs.tabletop.registration import TabletopOptions
from pitune.envs.tabletop.tasks import TASKS
from pitune.extras import install_command

CPU = torch.device("cpu")
CENTIMETER, TIGHT = 0.01, 2e-6


def has_warp() -> bool:
    try:
        import mujoco_warp  # noqa: F401
    except ImportError:
        return False
    return True


needs_warp = pytest.mark.skipif(not has_warp(), reason="mujoco-warp is not installed")


def make(task: str, num_envs: int, **settings: object) -> envs.VectorEnv:
    from pitune.envs.tabletop.warp.env import WarpTabletop

    return WarpTabletop(task, num_envs, device=CPU, **settings)  # type: ignore[arg-type]


def all_of(env: envs.VectorEnv) -> Tensor:
    return torch.ones(env.spec.num_envs, dtype=torch.bool)


# Equality with the C engine


@pytest.mark.sim
@needs_warp
@pytest.mark.parametrize("task", list(TASKS))
def test_starts_are_observed_as_with_the_c_engine_bit_for_bit(task: str) -> None:
    seeds = torch.arange(300)
    warp, c = make(task, 300), Tabletop(task, 300)
    assert torch.equal(warp.reset(seeds)["state"], c.reset(seeds)["state"])
    rows, more = torch.tensor([7, 2, 250]), torch.tensor([2**31 - 1, 5, 77])
    assert torch.equal(warp.reset(more, rows)["state"], c.reset(more, rows)["state"])


@pytest.mark.sim
@needs_warp
@pytest.mark.parametrize(
    ("task", "largest", "typical"),
    [("PushCube", 2 * CENTIMETER, 1e-5), ("PickCube", TIGHT, 1e-6), ("StackCube", TIGHT, 1e-6)],
)
def test_episodes_of_the_expert_are_those_of_the_c_engine(
    task: str, largest: float, typical: float
) -> None:
    """A tenth of the pushes differ by millimeters, and the median by micrometers."""
    num_envs = 24
    warp, c = make(task, num_envs), Tabletop(task, num_envs)
    seeds = torch.arange(num_envs)
    warp.reset(seeds), c.reset(seeds)
    experts = warp.expert(), c.expert()
    running = [all_of(warp), all_of(c)]
    solved = [torch.zeros(num_envs, dtype=torch.bool) for _ in running]
    error = torch.zeros(num_envs)
    while any(rows.any() for rows in running):
        both, states = running[0] & running[1], []
        for index, (env, expert) in enumerate(zip((warp, c), experts, strict=True)):
            result = env.step(expert.act(), running[index])
            assert not result.info["invalid"].any()
            solved[index] |= result.info["success"]
            running[index] = running[index] & ~(result.terminated | result.truncated)
            states.append(result.obs["state"])
        # positions of the tool and of cube 0 (E, 6)
        apart = (states[0] - states[1])[:, [0, 1, 2, 8, 9, 10]].abs().amax(1)
        error = torch.where(both, torch.maximum(error, apart), error)
    assert error.max() < largest
    assert error.median() < typical
    assert solved[0].sum() >= num_envs - 1
    assert torch.equal(solved[0], solved[1])


@pytest.mark.sim
@needs_warp
@pytest.mark.parametrize("task", list(TASKS))
def test_dense_rewards_are_those_of_the_c_engine(task: str) -> None:
    warp, c = make(task, 4, reward="dense"), Tabletop(task, 4, reward="dense")
    seeds = torch.arange(4)
    warp.reset(seeds), c.reset(seeds)
    expert = c.expert()
    for _ in range(6):
        action = expert.act()
        left, right = warp.step(action, all_of(warp)), c.step(action, all_of(c))
        assert left.reward.dtype == torch.float32
        torch.testing.assert_close(left.reward, right.reward, atol=1e-6, rtol=0)


# No copy to the host


@pytest.mark.sim
@needs_warp
def test_neither_a_step_nor_a_partial_reset_copies_anything_to_the_host() -> None:
    import warp as wp

    env = make("StackCube", 3, reward="dense")
    env.reset(torch.arange(3))
    expert = env.expert()
    env.step(expert.act(), all_of(env))
    seed, row, active = torch.tensor([5]), torch.tensor([1]), all_of(env)
    with host_copies((wp.array, "numpy"), (wp.array, "list")) as found:
        for _ in range(2):
            result = env.step(expert.act(), active)
            active = active & ~(result.terminated | result.truncated)
        env.reset(seed, row)
        env.step(expert.act(), active)
    assert found == []


@pytest.mark.parametrize(
    "read",
    [
        lambda tensor: tensor.cpu(),
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.tolist(),
        lambda tensor: bool((tensor > 1).any()),
        lambda tensor: float(tensor[0]),
        lambda tensor: tensor[tensor > 1],
        lambda tensor: tensor.nonzero(),
    ],
)
def test_the_counter_finds_every_kind_of_read(read: object) -> None:
    tensor = torch.tensor([1.0, 2.0])
    with host_copies() as found:
        read(tensor)  # type: ignore[operator]
    assert found


def test_the_counter_finds_nothing_in_device_work() -> None:
    tensor = torch.tensor([1.0, 2.0])
    with host_copies() as found:
        torch.where(tensor > 1, tensor, 0.0).sum().clone()
    assert found == []


# The rules of a VectorEnv that differ


@pytest.mark.sim
@needs_warp
def test_a_caller_that_steps_wrongly_makes_a_row_invalid() -> None:
    env = make("PickCube", 3, max_episode_steps=2)
    env.reset(torch.arange(3))
    action = torch.zeros(3, 4)
    before = env.step(action, all_of(env)).obs["state"]
    action[1] = torch.nan
    result = env.step(action, all_of(env))
    assert result.info["invalid"].tolist() == [False, True, False]
    assert result.truncated.tolist() == [True, True, True]
    assert torch.equal(result.obs["state"][1], before[1])
    # all have ended now
    late = env.step(torch.zeros(3, 4), torch.tensor([True, False, False]))
    assert late.info["invalid"].tolist() == [True, False, False]
    assert torch.equal(late.obs["state"], result.obs["state"])
    with pytest.raises(ValueError, match=r"they must be \(3, 4\) and \(3,\)"):
        env.step(torch.zeros(3, 3), all_of(env))
    with pytest.raises(ValueError, match=r"seed has shape \(2,\); 3 environments are reset"):
        env.reset(torch.arange(2))


@pytest.mark.sim
@needs_warp
def test_a_scene_that_breaks_down_is_invalid_and_keeps_its_last_state() -> None:
    env = make("PickCube", 3)
    env.reset(torch.arange(3))
    before = env.step(torch.zeros(3, 4), all_of(env)).obs["state"]
    env.physics.velocities[1, 0] = 1e30  # type: ignore[attr-defined]
    result = env.step(torch.zeros(3, 4), all_of(env))
    assert result.info["invalid"].tolist() == [False, True, False]
    assert torch.isfinite(result.obs["state"][[0, 2]]).all()
    env.reset(torch.tensor([1]), torch.tensor([1]))
    assert not env.step(torch.zeros(3, 4), all_of(env)).info["invalid"].any()
    assert not torch.equal(before[0], result.obs["state"][0])


@pytest.mark.sim
@needs_warp
def test_too_many_contacts_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from pitune.envs.tabletop.warp import physics

    monkeypatch.setattr(physics, "CONSTRAINTS", 8)  # one cube on the table needs 16 and more
    env = make("PickCube", 2)
    env.reset(torch.arange(2))
    assert env.step(torch.zeros(2, 4), all_of(env)).info["invalid"].all()


@pytest.mark.sim
@needs_warp
def test_results_do_not_depend_on_neighbors_or_earlier_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    actions = 2 * torch.rand(8, 3, 4, generator=generator) - 1
    actions[:, :, 2] -= 0.5
    wide = make("StackCube", 3)
    wide.reset(torch.arange(3))
    rows = [wide.step(action, all_of(wide)).obs["state"] for action in actions]
    single = make("StackCube", 1)
    for env in (2, 0):
        single.reset(torch.tensor([env]))
        for step, action in enumerate(actions):
            state = single.step(action[env : env + 1], all_of(single)).obs["state"]
            assert torch.equal(state[0], rows[step][env])


# Options


@pytest.mark.sim
@needs_warp
def test_the_backend_is_an_option_that_reaches_the_simulator() -> None:
    options = TabletopOptions(backend="warp", device="cpu")
    env = envs.make(envs.config_for("mujoco/PushCube", num_envs=2, options=options))
    assert "mujoco_warp" in env.spec.simulator
    assert env.spec.device == CPU
    env.close()


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (
            {},
            {"device": "cpu"},
            "device='cpu' is not supported by mujoco/PickCube with back",
        ),
        ({"cameras": ("front",)}, {"backend": "warp"}, r"cameras=\('front',\) is not supported"),
        (
            {},
            {"backend": "warp", "num_threads": 2},
            "num_threads=2 is not supported by mujoco/P",
        ),
        ({}, {"backend": "warp", "shadows": True}, "shadows=True is not supported by mujoco/Pick"),
        ({}, {"backend": "warp", "obs_mode": "rgb"}, "obs_mode='rgb' is not supported by mujoco/P"),
    ],
)
def test_settings_that_a_backend_lacks_are_refused(
    settings: dict, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        envs.make(
            envs.config_for("mujoco/PickCube", options=TabletopOptions(**options), **settings)
        )


def test_without_warp_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)
    for name in ("env", "physics"):
        monkeypatch.delitem(sys.modules, f"pitune.envs.tabletop.warp.{name}", raising=False)
    options = TabletopOptions(backend="warp")
    with pytest.raises(ImportError, match=re.escape(install_command("warp"))):
        envs.make(envs.config_for("mujoco/PickCube", options=options))


@pytest.mark.gpu
@needs_warp
@pytest.mark.parametrize("task", list(TASKS))
def test_a_cuda_device_starts_as_the_c_engine_and_its_expert_solves_the_task(task: str) -> None:
    """Neither a step nor a reset waits for the device."""
    from pitune.envs.tabletop.warp.env import WarpTabletop

    cuda = torch.device("cuda")
    warp, c = WarpTabletop(task, 64, device=cuda), Tabletop(task, 64)
    seeds = torch.arange(64, device=cuda)
    assert torch.equal(warp.reset(seeds)["state"].cpu(), c.reset(seeds.cpu())["state"])
    expert, active = warp.expert(), all_of(warp).to(cuda)
    warp.step(expert.act(), active)  # compiles
    warp.reset(seeds)
    expert = warp.expert()
    solved = torch.zeros_like(active)
    with cuda_waits() as found:
        for _ in range(warp.spec.max_episode_steps):
            result = warp.step(expert.act(), active)
            solved |= result.info["success"]
            active = active & ~(result.terminated | result.truncated)
        warp.reset(seeds)
    assert not found, found
    assert int(solved.sum()) >= 62


@pytest.mark.gpu
@needs_warp
@pytest.mark.parametrize("task", list(TASKS))
def test_a_cuda_device_gives_the_starts_and_almost_the_steps_of_the_cpu(task: str) -> None:
    from pitune.envs.tabletop.warp.env import WarpTabletop

    seeds = torch.arange(64)
    gpu, cpu = WarpTabletop(task, 64, device=torch.device("cuda")), make(task, 64)
    assert torch.equal(gpu.reset(seeds)["state"].cpu(), cpu.reset(seeds)["state"])
    expert = cpu.expert()
    for _ in range(10):
        action = expert.act()
        left = gpu.step(action.cuda(), all_of(gpu).cuda()).obs["state"].cpu()
        right = cpu.step(action, all_of(cpu)).obs["state"]
        torch.testing.assert_close(left, right, atol=1e-3, rtol=0)
