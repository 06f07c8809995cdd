"""`metaworld/<task>`: the seed fixes the start, whatever happened before."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import torch

from pitune import envs
from pitune.envs.metaworld.adapter import make_metaworld as make
from pitune.envs.metaworld.pictures import ScenePictures
from pitune.envs.workers.env import WorkerEnv
from pitune.extras import install_command

pytest.importorskip("metaworld")
pytestmark = pytest.mark.sim

ALL = torch.tensor([True, True])


def make_metaworld(task: str, num_envs: int, **changes: Any) -> WorkerEnv:
    """Return the adapter's environment in this process; `options` are keyword arguments."""
    options = envs.MetaWorldOptions(**changes.pop("options", {}))
    config = envs.EnvConfig(
        id=f"metaworld/{task}", num_envs=num_envs, num_workers=0, options=options, **changes
    )
    return make(task, config)


def play(env: WorkerEnv, num_steps: int, seed: int) -> list[torch.Tensor]:
    """Return the states (E, S) of random actions, the same for all environments."""
    generator = torch.Generator().manual_seed(seed)
    states = []
    for _ in range(num_steps):
        action = torch.rand(1, 4, generator=generator) * 2 - 1
        result = env.step(action.expand(env.spec.num_envs, 4), ALL)
        states.append(torch.cat([result.obs["state"], result.reward[:, None]], 1))
    return states


# Unlike the others, door-unlock places its object relative to the previous pose of a body.
@pytest.mark.parametrize("task", ["peg-insert-side-v3", "door-unlock-v3", "pick-place-v3"])
def test_equal_seeds_are_equal_episodes_in_any_environment_and_order(task: str) -> None:
    env = make_metaworld(task, 2, reward="dense")
    obs = env.reset(torch.tensor([7, 7]))["state"]
    assert torch.equal(obs[0], obs[1])
    first = play(env, 30, seed=0)
    assert torch.equal(torch.stack(first)[:, 0], torch.stack(first)[:, 1])
    env.reset(torch.tensor([8, 9]))
    play(env, 20, seed=1)
    env.reset(torch.tensor([10]), torch.tensor([0]))
    assert torch.equal(env.reset(torch.tensor([7, 7]))["state"], obs)
    assert torch.equal(torch.stack(play(env, 30, seed=0)), torch.stack(first))


def test_different_seeds_are_different_configurations() -> None:
    env = make_metaworld("peg-insert-side-v3", 2)
    starts = [env.reset(torch.tensor([seed, seed + 1]))["state"] for seed in range(0, 100, 2)]
    states = torch.cat(starts)
    assert len(torch.unique(states[:, 4:7], dim=0)) == 100  # the peg
    assert len(torch.unique(states[:, 36:], dim=0)) == 100  # the hole
    assert states.dtype == torch.float32
    # The starts fill the random space: along x, 0.2 m for the peg and 0.1 m for the hole.
    widths = states.max(0).values - states.min(0).values
    assert widths[4] > 0.19
    assert widths[36] > 0.095


def test_expert_solves_the_task_and_success_ends_the_episode() -> None:
    env = make_metaworld("pick-place-v3", 2)
    env.reset(torch.tensor([0, 1]))
    expert, running, solved, rewards = env.expert(), ALL.clone(), ~ALL, torch.zeros(2)
    while running.any():
        action = expert.act()
        assert action.abs().max() <= 1
        result = env.step(action, running)
        solved |= result.info["success"]
        rewards += result.reward
        running &= ~(result.terminated | result.truncated)
    assert solved.all()
    assert rewards.tolist() == [1, 1]


def test_time_limit_may_be_longer_than_meta_worlds_own() -> None:
    env = make_metaworld("reach-v3", 2, max_episode_steps=510)
    env.reset(torch.tensor([0, 1]))
    active = torch.tensor([True, False])
    for _ in range(509):
        assert not env.step(torch.zeros(2, 4), active).truncated.any()
    assert env.step(torch.zeros(2, 4), active).truncated.tolist() == [True, False]


def test_spec_describes_the_task() -> None:
    spec = make_metaworld("peg-insert-side-v3", 1).spec
    assert spec.id == "metaworld/peg-insert-side-v3"
    assert spec.tasks == ("insert the peg into the hole from the side",)
    assert (spec.state_dim, spec.action_dim, spec.max_episode_steps) == (39, 4, 150)
    assert spec.control_hz == 80
    assert spec.simulator.startswith("metaworld 3.")
    assert spec.success_signal
    assert spec.deterministic_reset


def test_pictures_differ_between_environments() -> None:
    env = make_metaworld("peg-insert-side-v3", 2, options={"camera": "topview", "render_size": 64})
    env.reset(torch.tensor([0, 1]))
    try:
        pictures = env.render()
    except RuntimeError as error:
        pytest.skip(str(error))
    assert pictures.shape == (2, 64, 64, 3)
    assert (pictures[0] != pictures[1]).any()
    assert torch.equal(env.render(), pictures)


def test_the_camera_is_a_choice() -> None:
    """Pictures through two cameras differ; a camera that does not exist is refused by MuJoCo."""
    top = make_metaworld("reach-v3", 1, options={"camera": "topview", "render_size": 32})
    corner = make_metaworld("reach-v3", 1, options={"camera": "corner2", "render_size": 32})
    for env in (top, corner):
        env.reset(torch.tensor([0]))
    try:
        assert not torch.equal(top.render(), corner.render())
    except RuntimeError as error:
        pytest.skip(str(error))
    assert top.render().shape == (1, 32, 32, 3)


def test_the_listed_tasks_are_those_of_meta_world() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert sorted(envs.known_tasks("metaworld")) == sorted(ALL_V3_ENVIRONMENTS)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"task='peg-insert-v3' .* near it are \['peg-insert-sid"):
        make_metaworld("peg-insert-v3", 1)
    with pytest.raises(ValueError, match="reward='shaped' is unknown; valid: 'sparse', 'dense'"):
        make_metaworld("reach-v3", 1, reward="shaped")
    with pytest.raises(ValueError, match="render_size=0 must be at least 1"):
        make_metaworld("reach-v3", 1, options={"render_size": 0})


def test_a_missing_package_raises_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "metaworld", None)
    monkeypatch.delitem(sys.modules, "metaworld.env_dict", raising=False)
    with pytest.raises(ImportError, match=re.escape(install_command("metaworld"))):
        make_metaworld("reach-v3", 1)


# Cameras


@pytest.mark.parametrize("mode", ["state", "rgb"])
def test_several_cameras_of_any_size_enter_the_observation(mode: Any) -> None:
    cameras = ("corner2", "gripperPOV")
    options = {"obs_mode": mode, "render_size": 24}
    try:
        env = make_metaworld("push-v3", 2, cameras=cameras, image_size=24, options=options)
    except RuntimeError as error:
        pytest.skip(str(error))
    obs = env.reset(torch.tensor([0, 1]))
    assert env.spec.state_dim == obs["state"].shape[1] == (39 if mode == "state" else 4)
    assert dict(env.spec.cameras) == dict.fromkeys(cameras, (3, 24, 24))
    for camera in cameras:
        assert obs[f"image/{camera}"].shape == (2, 3, 24, 24)
        assert obs[f"image/{camera}"].dtype == torch.uint8
    # as in `render` through the same camera, where it is turned by 180 degrees
    assert torch.equal(obs["image/corner2"].permute(0, 2, 3, 1), env.render())
    plain = make_metaworld("push-v3", 2)
    state = plain.reset(torch.tensor([0, 1]))["state"]
    assert torch.equal(obs["state"], state[:, : env.spec.state_dim])


def test_a_chunk_draws_its_last_pictures_only(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    draw = ScenePictures.draw

    def counted(pictures: ScenePictures, camera: str, size: int) -> Any:
        drawn.append(camera)
        return draw(pictures, camera, size)

    monkeypatch.setattr(ScenePictures, "draw", counted)
    records = []
    for requested in (True, False):
        try:
            workers = make_metaworld("push-v3", 2, cameras=("topview",), image_size=16)
        except RuntimeError as error:
            pytest.skip(str(error))
        env = envs.CheckedEnv(workers)
        env.draws_on_request = requested
        chunk_env = envs.ChunkEnv(env, 4, envs.EpisodeSeeds(2, 0, "train"))
        drawn.clear()
        td = chunk_env.reset()
        for _ in range(3):
            action = torch.full((2, 4, 4), 0.3)
            td = chunk_env.step_and_maybe_reset(td.set("action", action))[1]
        records.append((len(drawn), td["image/topview"], td["state"]))
    assert [record[0] for record in records] == [2 * (1 + 3), 2 * (1 + 12)]
    assert torch.equal(records[0][1], records[1][1])
    assert torch.equal(records[0][2], records[1][2])


def test_two_tasks_in_one_process_are_drawn_with_their_own_meshes() -> None:
    """Gymnasium's renderer would draw both in the context of the last one."""
    tasks = ("drawer-open-v3", "push-v3")
    alone = [make_metaworld(task, 1, options={"render_size": 48}) for task in tasks]
    try:
        expected = []
        for env in alone:
            env.reset(torch.tensor([3]))
            expected.append(env.render())
        assert all(map(torch.equal, [env.render() for env in alone], expected))
    except RuntimeError as error:
        pytest.skip(str(error))
    assert not torch.equal(*expected)


def test_cameras_that_do_not_exist_and_a_mode_without_cameras_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cameras=\['corner22'\] .*did you mean 'corner2'"):
        make_metaworld("push-v3", 1, cameras=("corner22",))
    with pytest.raises(ValueError, match=r"obs_mode='rgb' is not supported by .* without cameras"):
        make_metaworld("push-v3", 1, options={"obs_mode": "rgb"})
