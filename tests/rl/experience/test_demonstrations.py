"""`demonstrations`: recorded episodes, their chunks and their file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import Tensor

from pitune.envs import CheckedEnv, EpisodeSeeds
from pitune.envs.mock.reach import Reach, Script
from pitune.envs.registry import SPARSE_REWARD
from pitune.policies import FlowPolicy
from pitune.rl import Demonstrations, collect_demonstrations
from pitune.rl.datasets.demonstrations import demonstrations_for
from vision_policies import vision_policy


def two_episodes() -> Demonstrations:
    """Return an episode of three steps and one of two; action and state count the steps."""
    return Demonstrations(
        obs={"state": torch.arange(5.0)[:, None], "task_id": torch.tensor([0, 0, 0, 1, 1])},
        action=torch.arange(10, 15).float()[:, None],
        episode=torch.tensor([0, 0, 0, 1, 1]),
    )


# Chunks


def test_chunks_repeat_the_last_action_and_stay_inside_their_episode() -> None:
    chunks = two_episodes().chunks(3)
    assert chunks["action"].squeeze(-1).tolist() == [
        [10, 11, 12],
        [11, 12, 12],
        [12, 12, 12],
        [13, 14, 14],
        [14, 14, 14],
    ]
    assert chunks["state"].squeeze(-1).tolist() == [0, 1, 2, 3, 4]
    assert chunks["task_id"].tolist() == [0, 0, 0, 1, 1]
    assert chunks.batch_size == (5,)


def test_a_chunk_of_one_is_the_step_itself() -> None:
    demonstrations = two_episodes()
    assert torch.equal(demonstrations.chunks(1)["action"].squeeze(1), demonstrations.action)


def test_episode_numbers_may_have_gaps() -> None:
    demonstrations = two_episodes()
    other = Demonstrations(
        obs=demonstrations.obs, action=demonstrations.action, episode=demonstrations.episode * 5 + 2
    )
    assert torch.equal(other.chunks(4)["action"], demonstrations.chunks(4)["action"])
    assert other.num_episodes == 2


def test_episodes_after_the_first_are_the_others() -> None:
    demonstrations = two_episodes()
    second = demonstrations.after(1)
    assert second.episode.tolist() == [1, 1]
    assert second.action.squeeze(-1).tolist() == [13, 14]
    assert second.obs["state"].squeeze(-1).tolist() == [3, 4]
    assert torch.equal(second.chunks(2)["action"], demonstrations.chunks(2)["action"][3:])
    assert demonstrations.after(0).num_episodes == 2
    assert demonstrations.after(2).num_episodes == 0


# The file


def test_a_file_holds_them_exactly(tmp_path: Path) -> None:
    demonstrations = two_episodes()
    picture = torch.arange(5 * 3 * 2 * 2).reshape(5, 3, 2, 2).to(torch.uint8)
    demonstrations.obs["image/top"] = picture
    file = tmp_path / "new" / "folder" / "d.safetensors"
    demonstrations.save(file)
    loaded = Demonstrations.load(file)
    assert loaded.obs.keys() == {"state", "task_id", "image/top"}
    for key, value in demonstrations.obs.items():
        assert torch.equal(loaded.obs[key], value)
        assert loaded.obs[key].dtype == value.dtype
    assert torch.equal(loaded.action, demonstrations.action)
    assert torch.equal(loaded.episode, demonstrations.episode)


def test_equal_demonstrations_are_equal_files(tmp_path: Path) -> None:
    """safetensors writes several keys of metadata in an order that differs from call to call."""
    demonstrations = replace(two_episodes(), tasks=("reach",), reward_definition="distance")
    files = [tmp_path / f"{number}.safetensors" for number in range(16)]
    for file in files:
        demonstrations.save(file)
    assert len({file.read_bytes() for file in files}) == 1
    loaded = Demonstrations.load(files[0])
    assert (loaded.tasks, loaded.reward_definition) == (("reach",), "distance")


@pytest.mark.parametrize(
    ("metadata", "tasks", "definition"),
    [
        ({"tasks": '["reach"]', "reward": "distance"}, ("reach",), "distance"),
        ({"tasks": '["reach"]'}, ("reach",), SPARSE_REWARD),
        (None, (), SPARSE_REWARD),
    ],
)
def test_files_of_older_versions_are_read(
    metadata: dict[str, str] | None, tasks: tuple[str, ...], definition: str, tmp_path: Path
) -> None:
    file = tmp_path / "old.safetensors"
    tensors = {"obs.state": torch.rand(3, 1), "action": torch.rand(3, 1)}
    save_file({**tensors, "episode": torch.zeros(3).long()}, file, metadata)
    loaded = Demonstrations.load(file)
    assert (loaded.tasks, loaded.reward_definition) == (tasks, definition)


@pytest.mark.parametrize("text", ["", "[1]", "7", "{", '{"tasks": 7}'])
def test_damaged_metadata_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "d.safetensors"
    tensors = {"obs.state": torch.rand(3, 1), "action": torch.rand(3, 1)}
    save_file({**tensors, "episode": torch.zeros(3).long()}, file, {"demonstrations": text})
    with pytest.raises(ValueError, match=r"d\.safetensors does not hold demonstrations"):
        Demonstrations.load(file)


def test_the_error_for_a_missing_file_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no demonstrations at .*nowhere; experiments.pre"):
        Demonstrations.load(tmp_path / "nowhere")


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("pitune.rl.experience.demonstrations.save_file", cut)
    with pytest.raises(KeyboardInterrupt):
        two_episodes().save(tmp_path / "demonstrations.safetensors")
    assert not (tmp_path / "demonstrations.safetensors").exists()


def test_demonstrations_that_do_not_fit_the_policy_are_refused(
    tmp_path: Path, tiny_policy: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "demonstrations.safetensors"
    two_episodes().save(file)
    assert torch.equal(demonstrations_for(tiny_policy(1, 1), file).action, two_episodes().action)
    with pytest.raises(ValueError, match=r"the state in .* has 1 dimensions, the policy's has 4;"):
        demonstrations_for(tiny_policy(4, 1), file)
    with pytest.raises(ValueError, match=r"the action in .* has 1 dimensions, the policy's has 2"):
        demonstrations_for(tiny_policy(1, 2), file)
    own = Demonstrations(
        obs={"state": torch.rand(3, 1)}, action=torch.rand(3, 1), episode=torch.zeros(3).long()
    )
    own.save(tmp_path / "own.safetensors")
    own_policy = tiny_policy(1, 1)
    found = demonstrations_for(own_policy, tmp_path / "own.safetensors")
    inputs = found.obs["model_input"]
    assert isinstance(inputs, TensorDict)
    state = inputs["state"]
    assert torch.equal(state, own_policy.preprocessor.normalize_state(own.obs["state"]))
    monkeypatch.setattr(FlowPolicy, "obs_keys", property(lambda _: ["state", "image/top"]))
    with pytest.raises(ValueError, match=r"has no \['image/top'\], which the policy needs; it has"):
        demonstrations_for(tiny_policy(1, 1), file)


def test_steps_without_a_task_are_of_the_first_and_instructions_are_needed(tmp_path: Path) -> None:
    picture = torch.zeros(3, 3, 20, 20, dtype=torch.uint8)
    own = Demonstrations(
        obs={"state": torch.rand(3, 4), "image/front": picture, "image/wrist": picture + 1},
        action=torch.rand(3, 2),
        episode=torch.zeros(3).long(),
        tasks=("reach the goal", "stay"),
    )
    policy, file = vision_policy(), tmp_path / "own.safetensors"
    own.save(file)
    inputs = demonstrations_for(policy, file).obs["model_input"]
    assert isinstance(inputs, TensorDict)
    for task, words in enumerate(own.tasks):
        obs = {**own.obs, "task_id": torch.zeros(3, dtype=torch.int64)}
        expected = policy.model_input(obs, (words,))
        assert expected.tokens is not None
        assert torch.equal(inputs["tokens"], expected.tokens) == (task == 0)
    replace(own, tasks=()).save(file)
    with pytest.raises(ValueError, match=r"own\.safetensors holds no instructions, but the policy"):
        demonstrations_for(policy, file)
    prompt = policy.preprocessor.config.prompt
    assert prompt is not None
    prompt = replace(prompt, default="stay")
    config = replace(policy.preprocessor.config, prompt=prompt)
    with_default = policy.replace(preprocessor=config)
    assert len(demonstrations_for(with_default, file).action) == 3


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "d.safetensors"
    two_episodes().save(file)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"d\.safetensors does not hold demonstrations"):
        Demonstrations.load(file)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"d\.safetensors does not hold demonstrations"):
        Demonstrations.load(file)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"weights\.safetensors does not hold demonstrations"):
        Demonstrations.load(file)


# Collecting


class HalfExpert:
    """Acts well except in some environments, where it stands still."""

    def __init__(self, expert: Any, hopeless: tuple[int, ...]) -> None:
        self.expert, self.hopeless = expert, list(hopeless)

    def act(self) -> Tensor:
        action = self.expert.act()
        action[self.hopeless] = 0
        return action


class Sometimes(Reach):
    hopeless: tuple[int, ...] = ()

    def expert(self) -> Any:
        return HalfExpert(super().expert(), self.hopeless)


def test_successes_are_kept_in_the_order_of_their_starts() -> None:
    env = Sometimes(3, max_episode_steps=15)
    env.hopeless = (1,)
    demonstrations = collect_demonstrations(CheckedEnv(env), 5, seed=3)
    seeds = EpisodeSeeds(3, 3, "demonstrations")
    everyone = torch.arange(3)
    rounds = [Reach(3).reset(seeds.next(everyone))["state"] for _ in range(3)]
    # Environments 0 and 2 of three rounds, less the sixth: not the five shortest.
    expected = torch.stack([r[i] for r in rounds for i in (0, 2)])[:5]
    first_steps = [int((demonstrations.episode == number).nonzero()[0]) for number in range(5)]
    assert torch.equal(demonstrations.obs["state"][first_steps], expected)
    assert demonstrations.num_episodes == 5


def test_every_step_up_to_success_is_recorded_with_its_action() -> None:
    demonstrations = collect_demonstrations(CheckedEnv(Reach(4)), 4, seed=0)
    env = Reach(4)
    env.reset(EpisodeSeeds(4, 0, "demonstrations").next(torch.arange(4)))
    assert torch.bincount(demonstrations.episode).tolist() == env.optimal_steps().tolist()
    for number in range(4):
        rows = demonstrations.episode == number
        point, action = demonstrations.obs["state"][rows, :2], demonstrations.action[rows]
        moved = (point + 0.1 * action).clamp(0, 1)
        assert torch.allclose(moved[:-1], point[1:], atol=1e-6)
        goal = demonstrations.obs["state"][rows, 2:][-1]
        assert (moved[-1] - goal).norm() < 0.05
    assert demonstrations.action.abs().max() <= 1


def test_recorded_actions_are_inside_the_bounds() -> None:
    class Wild(Reach):
        def expert(self) -> Any:
            expert = super().expert()

            class Louder:
                def act(self) -> Tensor:
                    return 3 * expert.act()

            return Louder()

    demonstrations = collect_demonstrations(CheckedEnv(Wild(4)), 2, seed=0)
    assert demonstrations.action.abs().max() == 1


def test_an_expert_that_always_fails_is_given_up() -> None:
    env = Sometimes(2, max_episode_steps=3)
    env.hopeless = (0, 1)
    with pytest.raises(RuntimeError, match=r"expert of mock/Reach succeeded in \d of 40 episodes"):
        collect_demonstrations(CheckedEnv(env), 2, seed=0)


def test_an_environment_without_expert_is_an_error() -> None:
    env = Script(1, lengths=(2,), ends=("success",))
    with pytest.raises(ValueError, match="mock/Script has no expert; use mock/Reach"):
        collect_demonstrations(CheckedEnv(env), 1, seed=0)


def test_the_same_seed_records_the_same_episodes() -> None:
    first, second, other = (
        collect_demonstrations(CheckedEnv(Reach(2)), 3, seed=seed).obs["state"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first[:2], other[:2])
