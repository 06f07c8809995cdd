"""`maniskill/<task>`: the simulator on the CPU, and a batch on a stand-in for it."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gymnasium.spaces import Box, Dict
from torch import Tensor

pytest.importorskip("mani_skill")

from pitune import envs
from pitune.envs.maniskill import adapter
from pitune.envs.maniskill.batch import ManiSkillBatch
from pitune.envs.maniskill.experts import ManiSkillExpert
from pitune.envs.maniskill.simulation import rebuilds_for_a_seed, registered_tasks
from pitune.envs.maniskill.sub_env import ManiSkillSubEnv
from pitune.envs.maniskill.tasks import INSTRUCTIONS, instruction
from pitune.envs.maniskill.without_vulkan import InertMaterial, can_render
from pitune.envs.workers.pictures import with_pictures

pytestmark = pytest.mark.sim

ONE = torch.tensor([True])
GRASPED = 18  # where PickCube's state says that the cube is grasped


def config_of(task: str, num_envs: int = 1, num_workers: int = 0, **changes: Any) -> envs.EnvConfig:
    """Return a config; the fields of `ManiSkillOptions` may be among the changes."""
    names = ("control_mode", "obs_mode", "backend", "exact_seeds", "gpu")
    options = {name: changes.pop(name) for name in names if name in changes}
    return envs.EnvConfig(
        id=f"maniskill/{task}",
        num_envs=num_envs,
        num_workers=num_workers,
        options=envs.ManiSkillOptions(**options),
        **changes,
    )


def make_maniskill(task: str, num_envs: int, **changes: Any) -> envs.VectorEnv:
    return adapter.make_maniskill(task, config_of(task, num_envs, **changes))


def make_maniskill_batch(task: str, num_envs: int, **changes: Any) -> ManiSkillBatch:
    return adapter.make_maniskill_batch(task, num_envs, config_of(task, **changes), "cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pick() -> Iterator[ManiSkillBatch]:
    batch = make_maniskill_batch("PickCube-v1", 1)
    yield batch
    batch.close()


def play(
    batch: ManiSkillBatch, seed: int, action: Tensor | None = None
) -> tuple[Tensor, envs.StepResult]:
    """Return the observed states and the last result of one episode."""
    expert = batch.expert()
    states = [batch.reset(torch.tensor([seed]))["state"][0]]
    for step in range(batch.spec.max_episode_steps):
        result = batch.step(expert.act() if action is None else action[step], ONE)
        states.append(result.obs["state"][0])
        if result.terminated or result.truncated:
            break
    return torch.stack(states), result


# --- the simulator ---------------------------------------------------------------------------


def test_a_task_runs_until_its_time_limit(pick: ManiSkillBatch) -> None:
    assert pick.spec.id == "maniskill/PickCube-v1"
    assert (pick.spec.state_dim, pick.spec.action_dim, pick.spec.control_hz) == (42, 4, 20.0)
    assert pick.spec.success_signal
    states, result = play(pick, 0, torch.zeros(50, 1, 4))
    assert len(states) == 51
    assert result.truncated
    assert not result.terminated
    assert not result.info["success"]
    assert result.reward == 0


def test_a_seed_repeats_an_episode_bit_for_bit_whatever_came_before(pick: ManiSkillBatch) -> None:
    action = torch.rand(50, 1, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    play(pick, 1)
    later = play(pick, 5, action)[0]
    new = make_maniskill_batch("PickCube-v1", 1)
    first = play(new, 5, action)[0]
    new.close()
    assert torch.equal(first, later)
    assert not torch.equal(first[0], pick.reset(torch.tensor([6]))["state"][0])


def test_a_new_episode_does_not_begin_with_the_grasp_of_the_old_one(pick: ManiSkillBatch) -> None:
    states, result = play(pick, 1)
    assert result.info["success"]
    assert states[-1][GRASPED] == 1
    assert pick.reset(torch.tensor([2]))["state"][0, GRASPED] == 0


@pytest.mark.parametrize("task", ["PushCube-v1", "PullCube-v1", "PickCube-v1", "StackCube-v1"])
def test_the_expert_succeeds_within_the_time_limit(task: str) -> None:
    batch = make_maniskill_batch(task, 1)
    for seed in (7, 8):
        states, result = play(batch, seed)
        assert result.terminated
        assert result.info["success"]
        assert result.reward == 1
        assert len(states) <= 51
    batch.close()


def test_sub_environments_in_a_worker_process_play_an_episode_each() -> None:
    env = make_maniskill("PushCube-v1", 2, num_workers=1, reward="dense")
    assert env.spec.success_signal
    assert (env.spec.control_hz, env.spec.max_episode_steps) == (20.0, 50)
    assert env.spec.tasks == ("push the cube onto the target",)
    start = env.reset(torch.tensor([3, 3]))
    assert torch.equal(start["state"][0], start["state"][1])
    env.reset(torch.tensor([4]), torch.tensor([1]))
    expert = env.expert()
    active = torch.ones(2, dtype=torch.bool)
    success = torch.zeros(2, dtype=torch.bool)
    while active.any():
        result = env.step(expert.act(), active)
        assert (result.reward <= 1).all()
        assert (result.reward[active] > 0).all()
        success = success | result.info["success"]
        active = active & ~(result.terminated | result.truncated)
    env.close()
    assert success.all()


def test_a_sub_environment_is_a_gymnasium_environment(pick: ManiSkillBatch) -> None:
    sub_env = ManiSkillSubEnv(pick)
    obs, info = sub_env.reset(seed=3)
    assert info == {}
    assert obs.dtype == "float32"
    assert sub_env.observation_space.contains(obs)
    obs, reward, terminated, truncated, info = sub_env.step(sub_env.expert_action())
    assert sub_env.observation_space.contains(obs)
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"success": False})


def test_nothing_moves_when_nothing_is_active(pick: ManiSkillBatch) -> None:
    before = pick.reset(torch.tensor([0]))["state"]
    result = pick.step(torch.ones(1, 4), ~ONE)
    assert torch.equal(result.obs["state"], before)
    assert torch.equal(result.obs["state"], pick.reset(torch.tensor([0]))["state"])


# --- errors ----------------------------------------------------------------------------------


def test_pictures_without_a_driver_are_refused(
    monkeypatch: pytest.MonkeyPatch, pick: ManiSkillBatch
) -> None:
    monkeypatch.setattr(adapter, "can_render", lambda: False)
    with pytest.raises(
        RuntimeError, match=r"cameras=\('base_camera',\).*mesa-vulkan-drivers >= 24.3"
    ):
        make_maniskill("PickCube-v1", 1, cameras=("base_camera",), backend="cpu")
    if not can_render():
        with pytest.raises(RuntimeError, match=r"PickCube-v1 cannot render.*docs/cameras.md"):
            pick.render()


def test_pictures_with_a_driver_are_not_uniform() -> None:
    if not can_render():
        pytest.skip("no Vulkan driver")
    batch = make_maniskill_batch("PickCube-v1", 1, cameras=("base_camera",), image_size=32)
    obs = batch.reset(torch.tensor([0]))
    assert batch.spec.cameras == {"base_camera": (3, 32, 32)}
    assert obs["image/base_camera"].shape == (1, 3, 32, 32)
    assert obs["image/base_camera"].float().std() > 1
    assert batch.render().shape[-1] == 3
    sub_env = ManiSkillSubEnv(batch)
    assert isinstance(sub_env.observation_space, Dict)
    raw = with_pictures(sub_env, sub_env.reset(seed=0)[0])
    assert sub_env.observation_space.contains(raw)
    batch.close()


def test_pictures_with_a_driver_may_come_with_the_full_state(pick: ManiSkillBatch) -> None:
    if not can_render():
        pytest.skip("no Vulkan driver")
    batch = make_maniskill_batch(
        "PickCube-v1", 1, cameras=("base_camera",), image_size=32, obs_mode="rgb+state"
    )
    seed = torch.tensor([5])
    assert torch.equal(batch.reset(seed)["state"], pick.reset(seed)["state"])
    assert batch.spec.cameras == {"base_camera": (3, 32, 32)}
    batch.close()


def test_an_unknown_task_raises_with_near_ones() -> None:
    with pytest.raises(ValueError, match=r"task='PickCub-v1' .*'PickCube-v1'"):
        make_maniskill("PickCub-v1", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "shaped"}, "reward='shaped' is unknown; valid: 'sparse', 'dense'"),
        ({"backend": "gpu"}, "backend='gpu' is unknown; valid: 'auto', 'cpu', 'cuda'"),
        ({"max_episode_steps": 0}, "max_episode_steps=0 must be at least 1"),
        ({"control_mode": "telepathy"}, "control_mode='telepathy'.*pd_ee_delta_pos"),
        ({"obs_mode": "depth"}, r"obs_mode='depth' is unknown; valid: 'auto', 'state'"),
        (
            {"obs_mode": "state", "cameras": ("base_camera",)},
            r"obs_mode='state' of maniskill/PickCube-v1 has no pictures, but cameras=\('base_cam",
        ),
        ({"obs_mode": "rgb"}, "obs_mode='rgb' of maniskill/PickCube-v1 needs cameras"),
        ({"obs_mode": "rgb+state"}, r"obs_mode='rgb\+state' .* needs cameras, and there are none"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_maniskill("PickCube-v1", 1, **{"backend": "cpu", **options})


def test_a_task_without_a_dense_reward_raises() -> None:
    with pytest.raises(ValueError, match=r"reward='dense' does not exist.*use 'sparse'"):
        make_maniskill("PlugCharger-v1", 1, reward="dense")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="backend='cuda' needs a CUDA device"):
        make_maniskill("PickCube-v1", 1, backend="cuda")


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gpu=9 is not on this machine, where torch finds \d C"):
        make_maniskill("PickCube-v1", 1, gpu=9)


def test_a_missing_installation_raises_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mani_skill", None)
    monkeypatch.delitem(sys.modules, "mani_skill.envs")
    with pytest.raises(ImportError, match=r'pip install "mani-skill>=3.0.1,<4".*Python < 3.13'):
        make_maniskill("PickCube-v1", 1)


def test_missing_files_raise_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(FileNotFoundError, match="download_asset PickSingleYCB-v1"):
        make_maniskill_batch("PickSingleYCB-v1", 1)


def test_tasks_without_an_expert_name_those_with_one(pick: ManiSkillBatch) -> None:
    with pytest.raises(ValueError, match=r"RollBall-v1 has no expert.*PickCube-v1.*StackCube-v1"):
        ManiSkillExpert(pick._simulation, "RollBall-v1", "pd_ee_delta_pos", torch.zeros)
    with pytest.raises(ValueError, match="control_mode='pd_joint_pos' has no expert"):
        ManiSkillExpert(pick._simulation, "PickCube-v1", "pd_joint_pos", torch.zeros)


def test_an_instruction_is_made_from_the_name_of_other_tasks() -> None:
    assert instruction("TurnFaucet-v1") == "turn faucet"
    assert instruction("MS-AntWalk-v1") == "ms-ant walk"


def test_the_control_mode_changes_the_actions() -> None:
    config = config_of("PickCube-v1", control_mode="pd_joint_delta_pos", backend="cpu")
    env = envs.make(config)
    assert env.spec.action_dim == 8
    env.close()


def test_the_listed_tasks_are_registered() -> None:
    assert set(INSTRUCTIONS) <= set(registered_tasks())
    assert envs.known_tasks("maniskill") == tuple(INSTRUCTIONS)


def test_tasks_that_draw_shapes_are_known() -> None:
    assert rebuilds_for_a_seed("PegInsertionSide-v1")
    assert not rebuilds_for_a_seed("PickCube-v1")


def test_inert_materials_keep_values_and_accept_setters() -> None:
    material = InertMaterial(base_color=(0, 0, 0, 1))
    assert material.base_color == (0, 0, 0, 1)
    assert material.set_base_color((1, 1, 1, 1)) is None
    with pytest.raises(AttributeError, match="shapes"):
        material.shapes  # noqa: B018
    assert pickle.loads(pickle.dumps(material)).base_color == (0, 0, 0, 1)


# --- many environments at once, on a simulator that behaves like ManiSkill on a GPU ----------


class Scene:
    """Remembers contacts of the last step, as a physics engine does."""

    def __init__(self, num_envs: int) -> None:
        self.impulses = torch.zeros(num_envs, 3)

    def get_pairwise_contact_impulses(self, first: str, second: str) -> Tensor:
        return self.impulses

    def can_render(self) -> bool:
        return True


class Simulation:
    """State: start, time, grasp. Reuses its buffers, and draws all starts from its first seed."""

    single_action_space: Any = Box(-1.0, 1.0, (2,))
    control_freq, control_mode = 20, "pd_ee_delta_pos"

    def __init__(self, num_envs: int, pictures: bool = False, full_state: bool = False) -> None:
        self.num_envs, self.pictures, self.full_state = num_envs, pictures, full_state
        self.state = torch.zeros(num_envs, 3)
        self.success = torch.zeros(num_envs, dtype=torch.bool)
        self.picture = torch.zeros(num_envs, 4, 5, 3, dtype=torch.uint8)
        self.scene = Scene(num_envs)
        self.num_resets = self.num_drawn = 0
        self.closed = False

    def get_info(self) -> dict[str, Tensor]:
        return {"success": self.success}

    def get_obs(self) -> Any:
        force = self.scene.get_pairwise_contact_impulses("finger", "cube")
        self.state[:, 2] = (force.norm(dim=-1) > 0).float()
        if not self.pictures:
            return self.state
        qpos, time = self.state[:, :1], self.state[:, 1]
        agent, extra = {"qpos": qpos, "controller": {}}, {"time": time, "grasp": time > 1}
        rest = {"state": self.state} if self.full_state else {"agent": agent, "extra": extra}
        return {**rest, "sensor_param": {}, "sensor_data": self._get_obs_sensor_data()}

    def _get_obs_sensor_data(self) -> dict[str, Any]:
        self.num_drawn += 1
        self.picture[..., 0] = self.state[:, 1, None, None].to(torch.uint8)
        return {"base_camera": {"rgb": self.picture}, "other": {"rgb": self.picture}}

    def reset(self, seed: list[int], options: dict[str, Any]) -> tuple[Any, dict[str, bool]]:
        rows = options["env_idx"]
        assert len(seed) == self.num_envs
        self.num_resets += 1
        generator = torch.Generator().manual_seed(seed[0])
        self.state[rows, 0] = torch.rand(len(rows), generator=generator)
        self.state[rows, 1] = 0
        return self.get_obs(), {"reconfigure": False}

    def step(self, action: Tensor) -> tuple[Any, ...]:
        self.state[:, 1] += 1
        self.scene.impulses[:] = 1.0
        self.success[:] = action[:, 0] > 0.5
        self.action = action
        obs = self.get_obs()
        # An action that is not finite spoils the state, as in a physics engine.
        self.state[:, 0] += 0 * action[:, 0]
        reward = self.state[:, 1] / 10
        return obs, reward, self.success.clone(), torch.zeros(self.num_envs), self.get_info()

    def render_rgb_array(self) -> Tensor:
        return self.picture

    def close(self) -> None:
        self.closed = True


def make_fake(
    num_envs: int = 3, *, pictures: bool = False, full_state: bool = False, **options: Any
) -> tuple[Simulation, ManiSkillBatch]:
    simulation = Simulation(num_envs, pictures, full_state)
    return simulation, ManiSkillBatch(simulation, task="Fake-v1", max_episode_steps=4, **options)


ALL = torch.tensor([True, True, True])
STAY = torch.zeros(3, 2)
SOLVE_FIRST = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])


def test_returned_tensors_are_never_written_to_again() -> None:
    _, batch = make_fake()
    first = batch.reset(torch.tensor([1, 2, 3]))
    start = first["state"].clone()
    second = batch.step(STAY, ALL)
    flags, state = second.info["success"].clone(), second.obs["state"].clone()
    batch.step(torch.ones(3, 2), ALL)
    batch.reset(torch.tensor([4, 5, 6]))
    assert torch.equal(first["state"], start)
    assert torch.equal(second.obs["state"], state)
    assert torch.equal(second.info["success"], flags)


def test_ended_environments_keep_their_last_observation_until_their_reset() -> None:
    simulation, batch = make_fake()
    batch.reset(torch.tensor([1, 2, 3]))
    result = batch.step(SOLVE_FIRST, ALL)
    assert result.terminated.tolist() == result.info["success"].tolist() == [True, False, False]
    assert result.reward.tolist() == [1, 0, 0]
    rest = ~result.terminated
    later = batch.step(torch.where(rest[:, None], STAY, torch.nan), rest)
    assert simulation.state[0, 1] == 2
    assert simulation.action.isfinite().all()
    assert torch.equal(later.obs["state"][0], result.obs["state"][0])
    assert later.obs["state"][:, 1].tolist() == [1, 2, 2]
    assert not later.info["success"].any()
    obs = batch.reset(torch.tensor([9]), torch.tensor([0]))
    assert obs["state"][:, 1].tolist() == [0, 2, 2]
    batch.step(STAY, ALL)
    result = batch.step(STAY, ALL)
    assert result.truncated.tolist() == [False, True, True]
    assert not result.terminated.any()


def test_each_environment_starts_by_its_own_seed() -> None:
    simulation, batch = make_fake()
    assert batch.spec.deterministic_reset
    states = batch.reset(torch.tensor([5, 7, 5]))["state"][:, 0]
    assert states[0] == states[2] != states[1]
    again = batch.reset(torch.tensor([7, 5]), torch.tensor([2, 1]))["state"][:, 0]
    assert again.tolist() == [states[0], states[0], states[1]]
    assert simulation.num_resets == 5


def test_inexact_seeds_take_one_reset_and_still_give_new_starts() -> None:
    simulation, batch = make_fake(exact_seeds=False)
    assert not batch.spec.deterministic_reset
    first = batch.reset(torch.tensor([5, 5, 5]))["state"][:, 0]
    assert simulation.num_resets == 1
    second = batch.reset(torch.tensor([6]), torch.tensor([2]))["state"][:, 0]
    third = batch.reset(torch.tensor([8]), torch.tensor([2]))["state"][:, 0]
    assert second[:2].tolist() == third[:2].tolist() == first[:2].tolist()
    assert len({first[2].item(), second[2].item(), third[2].item()}) == 3


def test_contacts_of_the_old_episode_are_hidden_in_reset_environments_only() -> None:
    simulation, batch = make_fake()
    batch.reset(torch.tensor([1, 2, 3]))
    assert batch.step(SOLVE_FIRST, ALL).obs["state"][:, 2].tolist() == [1, 1, 1]
    obs = batch.reset(torch.tensor([4]), torch.tensor([0]))
    assert obs["state"][:, 2].tolist() == [0, 1, 1]
    assert simulation.scene.get_pairwise_contact_impulses("finger", "cube").sum() == 9


def test_running_environments_cannot_be_left_out_nor_waiting_ones_stepped() -> None:
    _, batch = make_fake()
    with pytest.raises(ValueError, match=r"environments \[0, 1, 2\] have no running episode"):
        batch.step(STAY, ALL)
    batch.reset(torch.tensor([1, 2]), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"environments \[2\] run and are not active"):
        batch.step(STAY, torch.tensor([True, False, False]))
    assert not batch.step(STAY, ~ALL).obs["state"][:, 1].any()


def test_running_environments_that_were_given_up_may_wait() -> None:
    _, batch = make_fake()
    batch.reset(torch.tensor([1, 2, 3]))
    batch.abandon()
    batch.reset(torch.tensor([4]), torch.tensor([1]))
    result = batch.step(STAY, torch.tensor([False, True, False]))
    assert result.obs["state"][:, 1].tolist() == [0, 1, 0]


@pytest.mark.parametrize("value", [0.3, -1.0, torch.nan, 2.0])
def test_a_success_that_is_no_flag_is_refused(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation, batch = make_fake()
    simulation.success = torch.zeros(3)  # a user's task may report numbers
    batch.reset(torch.tensor([1, 2, 3]))
    assert batch.step(SOLVE_FIRST, ALL).info["success"].tolist() == [True, False, False]
    batch.reset(torch.tensor([1, 2, 3]))
    info = {"success": torch.tensor([0.0, value, 1.0])}
    monkeypatch.setattr(simulation, "get_info", lambda: info)
    with pytest.raises(ValueError, match=r"maniskill/Fake-v1: info\['success\[1\]'\]=.* is not a "):
        batch.step(STAY, ALL)


def test_numbers_that_are_not_finite_end_an_episode_as_invalid() -> None:
    simulation, batch = make_fake()
    batch.reset(torch.tensor([1, 2, 3]))
    before = batch.step(STAY, ALL).obs["state"]
    simulation.state[1, 0] = torch.nan
    result = batch.step(torch.ones(3, 2), ALL)
    assert result.info["invalid"].tolist() == result.truncated.tolist() == [False, True, False]
    assert result.terminated.tolist() == result.info["success"].tolist() == [True, False, True]
    assert torch.equal(result.obs["state"][1], before[1])
    assert result.reward.tolist() == [1, 0, 1]


def test_dense_reward_is_the_simulators() -> None:
    _, batch = make_fake(dense_reward=True)
    batch.reset(torch.tensor([1, 2, 3]))
    assert batch.step(STAY, ALL).reward.tolist() == pytest.approx([0.1, 0.1, 0.1])


def test_pictures_and_a_nested_state_are_read() -> None:
    simulation, batch = make_fake(pictures=True, cameras=("base_camera",))
    assert batch.spec.cameras == {"base_camera": (3, 4, 5)}
    assert batch.spec.state_dim == 3
    batch.reset(torch.tensor([1, 2, 3]))
    first = batch.step(STAY, ALL).obs
    batch.step(STAY, ALL)
    assert first["image/base_camera"].shape == (3, 3, 4, 5)
    assert (first["image/base_camera"][:, 0] == 1).all()
    assert (first["state"][:, 1:] == torch.tensor([1.0, 0.0])).all()
    assert batch.render().data_ptr() != simulation.picture.data_ptr()
    batch.close()
    assert simulation.closed


def test_pictures_may_come_with_the_full_state() -> None:
    simulation, batch = make_fake(pictures=True, full_state=True, cameras=("base_camera",))
    batch.reset(torch.tensor([1, 2, 3]))
    obs = batch.step(STAY, ALL).obs
    assert torch.equal(obs["state"], simulation.state)
    assert obs["image/base_camera"].shape == (3, 3, 4, 5)


def test_unknown_cameras_raise_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"cameras=\['front'\].*\['base_camera', 'other'\]"):
        make_fake(pictures=True, cameras=("front",))


def test_a_task_without_a_success_signal_needs_a_dense_reward() -> None:
    simulation = Simulation(3)
    simulation.get_info = dict  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"reward='sparse' .*Fake-v1 does not have; use 'dense'"):
        ManiSkillBatch(simulation, task="Fake-v1", max_episode_steps=4)
    batch = ManiSkillBatch(simulation, task="Fake-v1", max_episode_steps=4, dense_reward=True)
    assert not batch.spec.success_signal
    batch.reset(torch.tensor([1, 2, 3]))
    result = batch.step(torch.ones(3, 2), ALL)
    assert result.terminated.all()
    assert not result.info["success"].any()


def test_several_robots_are_refused() -> None:
    simulation = Simulation(1)
    simulation.single_action_space = Dict({"left": Box(-1, 1, (2,))})
    with pytest.raises(ValueError, match="choose a task of one robot"):
        ManiSkillBatch(simulation, task="Fake-v1", max_episode_steps=4)
