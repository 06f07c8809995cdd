"""`chunk_env`: frames traced through TorchRL's collector over the ends of episodes.

`mock/Script` shows (environment, episode seed modulo 1000, time) as its state and pays the time as
its reward, so every frame says where it comes from. Letters: E envs, T decisions, h executed
actions per chunk.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs.utils import check_env_specs

from pitune.envs import CheckedEnv, ChunkEnv, EpisodeSeeds, StepResult, episode_seed
from pitune.envs.mock.reach import Reach, Script

HORIZON = 3


class Recorder:
    """An environment that remembers every reset it was asked for."""

    def __init__(self, env: Any) -> None:
        self.env, self.spec = env, env.spec
        self.resets: list[tuple[int, int]] = []

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Any:
        indices = torch.arange(self.spec.num_envs) if env_idx is None else env_idx
        self.resets += zip(indices.tolist(), seed.tolist(), strict=True)
        return self.env.reset(seed, env_idx)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)


def chunked(env: Any, *, horizon: int = HORIZON, seed: int = 0, group_size: int = 1) -> ChunkEnv:
    seeds = EpisodeSeeds(env.spec.num_envs, seed, "train", group_size)
    return ChunkEnv(CheckedEnv(env), horizon, seeds)


def script(lengths: tuple[int, ...], ends: tuple[str, ...], reuse_buffer: bool = False) -> Recorder:
    return Recorder(Script(len(lengths), lengths=lengths, ends=ends, reuse_buffer=reuse_buffer))


def collect(chunk_env: ChunkEnv, num_chunks: int) -> TensorDictBase:
    """Return a rollout (E, T) of random chunks."""

    def act(td: TensorDictBase) -> TensorDictBase:
        return td.set("action", chunk_env.action_spec.rand())

    collector = Collector(
        chunk_env,
        act,
        frames_per_batch=num_chunks * chunk_env.batch_size[0],
        total_frames=-1,
        use_buffers=False,
        track_traj_ids=False,
        auto_register_policy_transforms=False,
    )
    return next(iter(collector))


def step_with(chunk_env: ChunkEnv, action: Tensor) -> TensorDictBase:
    """Return what one chunk (E, h, A) leads to, from the present state."""
    return chunk_env.step(TensorDict({"action": action}, batch_size=chunk_env.batch_size))["next"]


def expected_frames(length: int, end: str, horizon: int, num_chunks: int) -> list[dict[str, Any]]:
    """Work out the decisions of one scripted environment, one step at a time."""
    frames, time, episode = [], 0, 0
    for _ in range(num_chunks):
        executed = min(horizon, length - time)
        frame = {
            "episode": episode,
            "time": time,
            "next_time": time + executed,
            "rewards": [time + j + 1.0 if j < executed else 0.0 for j in range(horizon)],
            "live": [j < executed for j in range(horizon)],
            "ended": time + executed == length,
        }
        frame["terminated"] = frame["ended"] and end != "time"
        frame["truncated"] = frame["ended"] and end == "time"
        frame["success"] = frame["ended"] and end == "success"
        frames.append(frame)
        time += executed
        if frame["ended"]:
            time, episode = 0, episode + 1
    return frames


SCRIPTS = {
    "together": ((3, 3, 3), ("success", "failure", "time")),
    "staggered": ((3, 6, 9), ("success", "time", "failure")),
    "inside a chunk": ((2, 5, 7, 1), ("success", "time", "failure", "success")),
    "longer than the rollout": ((100, 2), ("time", "success")),
    "all in one step": ((1, 1), ("success", "time")),
}


@pytest.mark.parametrize("reuse_buffer", [False, True])
@pytest.mark.parametrize("name", SCRIPTS)
def test_frames_are_right_over_ends(name: str, reuse_buffer: bool) -> None:
    lengths, ends = SCRIPTS[name]
    env = script(lengths, ends, reuse_buffer)
    num_chunks = 7
    chunk_env = chunked(env)
    rollout = collect(chunk_env, num_chunks)
    after = rollout["next"]
    assert isinstance(after, TensorDictBase)
    executed = 0
    for i, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        frames = expected_frames(length, end, HORIZON, num_chunks)
        num_episodes = 1 + sum(frame["ended"] for frame in frames)
        # Those before are the resets with which the collector begins.
        seeds = [seed for index, seed in env.resets if index == i][-num_episodes:]
        for t, frame in enumerate(frames):
            where = f"environment {i}, decision {t}"
            seed = seeds[frame["episode"]]
            now, then = [i, seed % 1000, frame["time"]], [i, seed % 1000, frame["next_time"]]
            assert rollout["state"][i, t].tolist() == now, where
            assert after["state"][i, t].tolist() == then, where
            assert after["reward_steps"][i, t].tolist() == frame["rewards"], where
            assert after["live"][i, t].tolist() == frame["live"], where
            assert after["reward"][i, t].item() == sum(frame["rewards"]), where
            assert after["duration"][i, t].item() == sum(frame["live"]), where
            assert after["done"][i, t].item() == frame["ended"], where
            for flag in ("terminated", "truncated", "success"):
                assert after[flag][i, t].item() == frame[flag], f"{where}: {flag}"
            limit = max(lengths)
            assert rollout["elapsed"][i, t].item() == pytest.approx(frame["time"] / limit)
            assert after["elapsed"][i, t].item() == pytest.approx(frame["next_time"] / limit)
            executed += sum(frame["live"])
        assert len(set(seeds)) == len(seeds), "two episodes had the same seed"
    assert chunk_env.num_env_steps == executed
    assert not after["invalid"].any()


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_end_costs_one_reset(name: str) -> None:
    lengths, ends = SCRIPTS[name]
    env = script(lengths, ends)
    chunk_env = chunked(env)
    td = chunk_env.reset()
    assert [index for index, _ in env.resets] == list(range(len(lengths)))
    ended = 0
    for _ in range(7):
        td["action"] = chunk_env.action_spec.rand()
        before = len(env.resets)
        td, next_td = chunk_env.step_and_maybe_reset(td)
        done = td["next", "done"].flatten()
        assert [index for index, _ in env.resets[before:]] == done.nonzero().flatten().tolist()
        ended += int(done.sum())
        td = next_td
    assert len(env.resets) == len(lengths) + ended
    assert chunk_env.seeds.episodes.sum() == len(env.resets)


def test_rollouts_may_end_anywhere() -> None:
    """Frames go on from one batch of the collector to the next."""
    lengths, ends = SCRIPTS["inside a chunk"]
    whole = collect(chunked(script(lengths, ends)), 6)

    def act(td: TensorDictBase) -> TensorDictBase:
        return td.set("action", torch.zeros(len(lengths), HORIZON, 1))

    chunk_env = chunked(script(lengths, ends))
    options: dict[str, Any] = {
        "frames_per_batch": 2 * len(lengths),
        "total_frames": -1,
        "use_buffers": False,
    }
    options |= {"track_traj_ids": False, "auto_register_policy_transforms": False}
    batches = iter(Collector(chunk_env, act, **options))
    parts = TensorDict.cat([next(batches) for _ in range(3)], dim=1)
    for key in ("state", ("next", "state"), ("next", "reward_steps"), ("next", "done")):
        assert torch.equal(parts[key], whole[key]), key


def test_a_simulator_without_the_checks_would_rewrite_the_rollout() -> None:
    """Negative control of `reuse_buffer`: unwrapped, every frame is the last one."""
    env = Script(1, lengths=(9,), ends=("time",), reuse_buffer=True)
    everyone = torch.tensor([True])
    first = env.step(torch.zeros(1, 1), everyone).obs["state"]
    env.step(torch.zeros(1, 1), everyone)
    assert first[0, 2] == 2
    checked = CheckedEnv(env)
    first = checked.step(torch.zeros(1, 1), everyone).obs["state"]
    checked.step(torch.zeros(1, 1), everyone)
    assert first[0, 2] == 3


# Ends worked by hand


def test_what_comes_after_an_end_inside_a_chunk_does_not_happen() -> None:
    """Reach: a point 0.3 m from its goal is there in three steps of a chunk of five."""
    env = Reach(2)
    chunk_env = chunked(env, horizon=5)
    chunk_env.reset()
    env.point[:] = torch.tensor([0.2, 0.5])
    env.goals[:, 0] = torch.tensor([[0.5, 0.5], [0.95, 0.5]])
    after = step_with(chunk_env, torch.tensor([1.0, 0.0]).expand(2, 5, 2))
    # 0.05 m is not below the radius of 0.05 m up to rounding: the third step arrives for certain.
    assert after["duration"].flatten().tolist() == [3, 5]
    assert after["live"].tolist() == [[True, True, True, False, False], [True] * 5]
    assert after["reward_steps"].tolist() == [[0, 0, 1, 0, 0], [0] * 5]
    assert after["reward"].flatten().tolist() == [1, 0]
    assert after["state"][:, :2].flatten().tolist() == pytest.approx([0.5, 0.5, 0.7, 0.5])
    assert after["terminated"].flatten().tolist() == [True, False]
    assert after["success"].flatten().tolist() == [True, False]
    assert after["truncated"].flatten().tolist() == [False, False]
    assert chunk_env.num_env_steps == 8
    assert after["elapsed"].flatten().tolist() == pytest.approx([3 / 20, 5 / 20])


def test_results_of_waiting_environments_are_not_counted() -> None:
    class Careless(Script):
        def step(self, action: Tensor, active: Tensor) -> Any:
            result = super().step(action, active)
            yes = torch.ones_like(active)
            info = {"success": yes, "invalid": ~active}
            return StepResult(result.obs, result.reward + 5, result.terminated, ~active, info)

    chunk_env = chunked(Careless(2, lengths=(1, 9), ends=("failure", "time")))
    chunk_env.reset()
    after = step_with(chunk_env, torch.zeros(2, HORIZON, 1))
    assert after["reward_steps"].tolist() == [[6, 0, 0], [6, 7, 8]]
    assert after["invalid"].flatten().tolist() == [False, False]
    assert after["truncated"].flatten().tolist() == [False, False]
    assert after["done"].flatten().tolist() == [True, False]


def test_a_broken_simulator_marks_its_episode_invalid() -> None:
    class Breaking(Script):
        def step(self, action: Tensor, active: Tensor) -> Any:
            result = super().step(action, active)
            broken = (self.state[:, 2] == 2) & active & torch.tensor([True, False])
            result.info["invalid"] = broken
            return result._replace(truncated=result.truncated | broken)

    chunk_env = chunked(Breaking(2, lengths=(9, 9), ends=("time", "time")))
    chunk_env.reset()
    after = step_with(chunk_env, torch.zeros(2, HORIZON, 1))
    assert after["invalid"].flatten().tolist() == [True, False]
    assert after["done"].flatten().tolist() == [True, False]
    assert after["duration"].flatten().tolist() == [2, 3]


# Seeds


def starts_by_episode(chunk_env: ChunkEnv, num_episodes: int) -> Tensor:
    """Return the first observations (episodes, E, S) when all environments end together."""
    td = chunk_env.reset()
    starts = [td["state"]]
    while len(starts) < num_episodes:
        td["action"] = chunk_env.action_spec.zero()
        td, next_td = chunk_env.step_and_maybe_reset(td)
        if td["next", "done"].all():
            starts.append(next_td["state"])
        td = next_td
    return torch.stack(starts)


def test_a_group_shares_every_start_and_groups_differ() -> None:
    chunk_env = chunked(Reach(6, max_episode_steps=2), group_size=3)
    starts = starts_by_episode(chunk_env, 4)
    for episode in starts:
        assert torch.equal(episode[0], episode[1])
        assert torch.equal(episode[0], episode[2])
        assert torch.equal(episode[3], episode[4])
        assert not torch.equal(episode[0], episode[3])
    assert len(starts[:, 0].unique(dim=0)) == 4


def test_a_group_shares_later_starts_even_when_its_episodes_end_apart() -> None:
    env = script((2, 5, 3, 4), ("success",) * 4)
    collect(chunked(env, group_size=2), 12)
    seeds = [[seed for index, seed in env.resets if index == i] for i in range(4)]
    for first, second in (seeds[:2], seeds[2:]):
        shared = min(len(first), len(second))
        assert shared > 3
        assert first[:shared] == second[:shared]
    assert not set(seeds[0]) & set(seeds[2])


def test_without_groups_all_starts_differ() -> None:
    starts = starts_by_episode(chunked(Reach(5, max_episode_steps=2)), 3)
    assert len(starts.flatten(0, 1).unique(dim=0)) == 15


def test_groups_must_divide_the_environments() -> None:
    with pytest.raises(ValueError, match="num_envs=6 must be a multiple of group_size=4"):
        chunked(Reach(6), group_size=4)


def test_the_seed_of_an_episode_does_not_depend_on_the_lengths_of_others() -> None:
    tables = []
    for lengths in ((2, 9), (9, 2)):
        env = script(lengths, ("time", "time"))
        collect(chunked(env), 8)
        tables.append([[seed for index, seed in env.resets if index == i] for i in range(2)])
    for first, second in zip(*tables, strict=True):
        shared = min(len(first), len(second))
        assert first[:shared] == second[:shared]
    assert tables[0][0][:2] == [episode_seed(0, "train", 0, 0), episode_seed(0, "train", 0, 1)]


def test_the_same_seed_gives_the_same_rollout_bit_for_bit() -> None:
    rollouts = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        rollouts.append(collect(chunked(Reach(3, max_episode_steps=7), seed=seed), 6))
    first, second, other = (
        {key: value for key, value in rollout.flatten_keys().items()} for rollout in rollouts
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["state"], other["state"])


def test_set_seed_starts_the_episodes_anew() -> None:
    chunk_env = chunked(Reach(2), seed=5)
    first = chunk_env.reset()["state"]
    assert not torch.equal(chunk_env.reset()["state"], first)
    chunk_env.set_seed(5)
    assert torch.equal(chunk_env.reset()["state"], first)


# The contract with TorchRL


@pytest.mark.parametrize(
    "env",
    [
        Reach(3),
        Reach(2, num_tasks=2, cameras=("top", "side")),
        Script(2, lengths=(2, 5), ends=("success", "time")),
    ],
    ids=["Reach", "cameras", "Script"],
)
def test_specs_hold(env: Any) -> None:
    check_env_specs(chunked(env))


def test_a_chunk_of_the_wrong_shape_is_refused() -> None:
    chunk_env = chunked(Reach(3))
    chunk_env.reset()
    for shape in ((3, 4, 2), (3, 3, 1)):
        message = (
            f"action chunk of shape {shape} must be (3, 3, 2): environments, execution_horizon"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            step_with(chunk_env, torch.zeros(shape))


def test_only_live_steps_are_counted_and_timed() -> None:
    chunk_env = chunked(script((1, 9), ("success", "time")))
    assert (chunk_env.num_env_steps, chunk_env.simulator_seconds) == (0, 0.0)
    chunk_env.reset()
    after = step_with(chunk_env, torch.zeros(2, HORIZON, 1))
    assert chunk_env.num_env_steps == 4
    assert after["duration"].flatten().tolist() == [1, 3]
    assert chunk_env.simulator_seconds > 0


def test_closing_closes_the_simulator() -> None:
    closed = []

    class Closing(Reach):
        def close(self) -> None:
            closed.append(True)

    chunked(Closing(1)).close()
    assert closed == [True]


def test_what_is_preprocessed_belongs_to_its_own_observation_and_is_computed_once() -> None:
    """Environments that end at different times; pictures are not passed on."""
    seen: list[int] = []

    def preprocess(td: TensorDictBase) -> TensorDictBase:
        seen.append(len(td))
        return td.set("added", {"twice": 2 * td["state"], "picture": td["image/front"].clone()})

    env = CheckedEnv(Reach(4, cameras=("front",), max_episode_steps=9))
    chunk_env = ChunkEnv(env, 2, EpisodeSeeds(4, 0, "train"), preprocess=preprocess)
    seen.clear()  # the specs' zeros
    td, num, differ = chunk_env.reset(), 4, 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        # the first environment succeeds early, the others mostly end by time
        action = 2 * torch.rand(4, 2, 2, generator=generator) - 1
        goal = td["state"][:, None, 2:] - td["state"][:, None, :2]
        action[0] = (10 * goal[0]).clamp(-1, 1)
        td, following = chunk_env.step_and_maybe_reset(td.set("action", action))
        for rows in (td, td["next"]):
            assert torch.equal(rows["added", "twice"], 2 * rows["state"])
            assert "image/front" not in rows.keys()
        num += 4 + int(td["next", "done"].sum())
        differ += int(0 < int(td["next", "done"].sum()) < 4)
        point = (following["state"][:, :2] * 15).round().long()  # the white point in the picture
        shown = following["added", "picture"][torch.arange(4), :, point[:, 1], point[:, 0]]
        assert (shown == 255).all()
        td = following
    assert sum(seen) == num
    assert differ > 0  # some but not all were reset


def test_an_environment_that_was_reset_elsewhere_is_refused() -> None:
    """An evaluation between two rollouts would end their episodes unseen."""
    chunk_env = chunked(Reach(2), horizon=5)
    chunk_env.reset()
    zeros = torch.zeros(2, 5, 2)
    step_with(chunk_env, zeros)
    chunk_env.env.reset(torch.arange(2))
    with pytest.raises(RuntimeError, match=r"mock/Reach was reset elsewhere, .*restart\(iteration"):
        step_with(chunk_env, zeros)
    chunk_env.reset()
    step_with(chunk_env, zeros)
