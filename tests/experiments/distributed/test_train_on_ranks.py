"""A training on two ranks: exact resume, another number of ranks, signals, faults of one rank."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import on_ranks, start_ranks
from small_runs import rows
from torch import nn

from pitune import rl
from pitune.experiments.distributed.start import check_settings
from pitune.experiments.runs.folder.checksums import write_checksums
from pitune.experiments.train import TrainConfig, Trainer, train
from pitune.rl import ranks
from settings import changed

OFF_POLICY = {"capacity": 64, "minibatch_size": 16, "warmup_decisions": 32}


@pytest.fixture
def config(
    small_preset: Callable, run_of: Callable[..., TrainConfig]
) -> Callable[[str], TrainConfig]:
    def make(name: str) -> TrainConfig:
        algorithm = small_preset(name)
        if rl.registry.entry(name).off_policy:
            algorithm = changed(algorithm, **OFF_POLICY)
        return run_of(algorithm, num_iterations=4, eval_episodes=5, seed=5)

    return make


@pytest.mark.parametrize(
    "name",
    [
        "dsrl",
        *(pytest.param(n, marks=pytest.mark.slow) for n in sorted(rl.presets()) if n != "dsrl"),
    ],
)
def test_a_run_on_two_ranks_resumes_with_the_same_numbers(
    config: Callable[[str], TrainConfig], name: str, tmp_path: Path
) -> None:
    whole = replace(config(name), out=tmp_path / "whole")
    summaries = on_ranks(partial(train, whole), 2, tmp_path / "a")
    half = replace(config(name), out=tmp_path / "half", num_iterations=2)
    on_ranks(partial(train, half), 2, tmp_path / "b")
    again = replace(half, num_iterations=4, resume=True)
    resumed = on_ranks(partial(train, again), 2, tmp_path / "c")
    assert rows(whole.out) == rows(half.out)
    assert len(rows(whole.out)) == 4
    assert [s["after"] for s in (*summaries, *resumed)] == 4 * [summaries[0]["after"]]
    assert resumed[0]["restarts"] == []


@pytest.mark.parametrize(
    "name",
    ["ppo", *(pytest.param(n, marks=pytest.mark.slow) for n in sorted(rl.presets()) if n != "ppo")],
)
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint_from_which_they_go_on(
    config: Callable[[str], TrainConfig],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = replace(config(name), out=tmp_path / "whole", eval_every=4)
    on_ranks(partial(train, whole), 2, tmp_path / "a")

    def train_with_a_signal() -> None:
        iterate = Trainer._iterate

        def stopped(self: Trainer) -> dict[str, float]:
            if self.iteration == 1 and ranks.rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return iterate(self)

        monkeypatch.setattr(Trainer, "_iterate", stopped)
        train(replace(whole, out=tmp_path / "run"))

    children = start_ranks(train_with_a_signal, 2, tmp_path / "b")
    assert [child.wait() for child in children] == [128 + signal.SIGTERM] * 2
    assert "stopped at the checkpoint of iteration 2" in children[0].output()
    again = replace(whole, out=tmp_path / "run", resume=True)
    on_ranks(partial(train, again), 2, tmp_path / "c")
    assert rows(tmp_path / "run") == rows(whole.out)


@pytest.mark.parametrize(
    "name",
    [
        "dsrl",
        *(pytest.param(n, marks=pytest.mark.slow) for n in sorted(rl.presets()) if n != "dsrl"),
    ],
)
def test_a_run_goes_on_with_other_numbers_of_ranks(
    config: Callable[[str], TrainConfig], name: str, tmp_path: Path
) -> None:
    begun = replace(config(name), num_iterations=2)
    on_ranks(partial(train, begun), 2, tmp_path / "a")
    before = torch.load(begun.out / "checkpoint_000002/training.pt", weights_only=True)

    def resumed() -> dict[str, Any]:
        trainer = Trainer(replace(begun, num_iterations=4, resume=True))
        memories = trainer.algorithm.memories.values()
        numbers = {"rows": sum(map(len, memories)), "restarts": list(trainer.restarts)}
        state = trainer.algorithm.training_state(with_memories=False)
        assert_same(state["optimizers"], before["training"]["optimizers"])
        trainer.run.abandon()
        return numbers

    two = on_ranks(resumed, 2, tmp_path / "b")
    (one,) = on_ranks(resumed, 1, tmp_path / "c")
    assert one["rows"] == sum(rank["rows"] for rank in two)
    assert (one["restarts"], two[0]["restarts"]) == ([2], [])

    # 2 -> 1 -> 2
    on_ranks(partial(train, replace(begun, num_iterations=4, resume=True)), 1, tmp_path / "d")
    summaries = on_ranks(
        partial(train, replace(begun, num_iterations=6, resume=True)), 2, tmp_path / "e"
    )
    assert summaries[0]["restarts"] == [2, 4]
    table = rows(begun.out)
    assert [row["iteration"] for row in table] == ["1", "2", "3", "4", "5", "6"]
    steps = [int(float(row["env_steps"])) for row in table]
    assert steps == sorted(steps)
    log = (tmp_path / "e" / "log_0.txt").read_text()
    assert "the checkpoint is of 1 ranks, and 2 continue it" in " ".join(log.split())


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_each_rank_reads_a_checkpoint_of_pitune_0_1_with_the_current_names(
    config: Callable[[str], TrainConfig], tmp_path: Path
) -> None:
    begun = replace(config("ppo"), num_iterations=1, eval_episodes=2)
    on_ranks(partial(train, begun), 2, tmp_path / "a")
    checkpoint = begun.out / "checkpoint_000001"
    progress = json.loads((checkpoint / "progress.json").read_text())
    before = progress["before"]
    progress["before"] = {"ode": before["deployed"], "stochastic": before["exploring"]}
    (checkpoint / "progress.json").write_text(json.dumps(progress))
    write_checksums(checkpoint)

    def resumed() -> dict[str, Any]:
        trainer = Trainer(replace(begun, num_iterations=2, resume=True))
        trainer.run.abandon()
        return trainer.before

    assert on_ranks(resumed, 2, tmp_path / "b") == [before, before]


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(
    config: Callable[[str], TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty() -> str:
        prepare = rl.PPO.prepare

        def prepared(self: rl.PPO, rollout: Any) -> Any:
            batch, metrics = prepare(self, rollout)
            if ranks.rank() == 1 and self.num_updates == 1:
                batch["value_target"][0] = torch.nan
            return batch, metrics

        monkeypatch.setattr(rl.PPO, "prepare", prepared)
        with pytest.raises(FloatingPointError) as raised:
            train(config("ppo"))
        return str(raised.value)

    messages = on_ranks(faulty, 2, tmp_path / "ranks")
    assert all("critic loss is nan in update 1 on rank 1" in message for message in messages)
    assert "nonfinite_000002" in messages[0]  # rank 0 keeps its state


def test_ranks_that_have_drifted_apart_are_stopped_by_name(
    config: Callable[[str], TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drifting() -> str:
        update = rl.PPO.update

        def changed_update(self: rl.PPO, rollout: Any) -> Any:
            metrics = update(self, rollout)
            if ranks.rank():
                first = self.critic.net[0]
                assert isinstance(first, nn.Linear)
                with torch.no_grad():
                    first.bias[0] += 1e-7
            return metrics

        monkeypatch.setattr(rl.PPO, "update", changed_update)
        with pytest.raises(RuntimeError) as raised:
            train(config("ppo"))
        return str(raised.value)

    for message in on_ranks(drifting, 2, tmp_path / "ranks"):
        assert "drifted apart: critic.net.0.bias differ" in message
    assert (tmp_path / "run" / "checkpoint_000000").is_dir()
    assert not (tmp_path / "run" / "checkpoint_000002").exists()


def test_other_ranks_end_quietly_if_rank_0_cannot_begin(
    config: Callable[[str], TrainConfig], tmp_path: Path
) -> None:
    settings = replace(config("ppo"), num_iterations=1, eval_episodes=2)
    on_ranks(partial(train, settings), 2, tmp_path / "a")
    children = start_ranks(partial(train, settings), 2, tmp_path / "b")
    assert [child.wait() for child in children] == [99, 1]
    assert "already holds a run" in children[0].output()
    assert children[1].output() == ""


def test_a_minibatch_is_a_multiple_of_the_ranks(
    config: Callable[[str], TrainConfig], tmp_path: Path
) -> None:
    settings = replace(config("ppo"), algorithm=changed(config("ppo").algorithm, minibatch_size=7))
    children = start_ranks(partial(train, settings), 2, tmp_path / "a")
    assert [child.wait() for child in children] == [99, 99]
    text = "update.minibatch_size=7 is shared by 2 ranks, so it must be a multiple of that; pass"
    assert f"{text} --algorithm.update.minibatch_size 8" in children[0].output()


def test_several_ranks_do_not_act_while_learning(config: Callable[[str], TrainConfig]) -> None:
    settings = replace(config("dsrl"), act_while_learning=True)
    message = "act_while_learning=True cannot be combined with 2 ranks, .*--no-act-while-learning"
    with pytest.raises(ValueError, match=message):
        check_settings(settings, world=2)


def test_ranks_play_the_starts_of_one_run_with_all_their_environments(
    config: Callable[[str], TrainConfig], tmp_path: Path
) -> None:
    def starts(num_envs: int) -> list[Any]:
        settings = replace(config("ppo"), env=replace(config("ppo").env, num_envs=num_envs))
        trainer = Trainer(replace(settings, out=tmp_path / f"run_{num_envs}"))
        played: list[Any] = []
        evaluation = rl.evaluate(
            trainer.env, trainer.algorithm.actor, 11, seed=3, on_episode=played.append
        )
        seeds = trainer.rollouts._chunk_env.seeds
        train_seeds = ranks.joined(seeds.next(torch.arange(num_envs)))
        trainer.run.abandon()
        return [train_seeds.tolist(), evaluation.rows, len(played)]

    (alone,) = on_ranks(partial(starts, 8), 1, tmp_path / "one")
    first, second = on_ranks(partial(starts, 4), 2, tmp_path / "two")
    assert first[:2] == second[:2] == alone[:2]
    # each rank has played its share
    assert (alone[2], first[2] + second[2]) == (11, 11)
    assert min(first[2], second[2]) >= 4
