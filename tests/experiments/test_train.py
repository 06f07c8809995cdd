"""`train`: the loop, its folder, and that a run goes on bit for bit.

A run is killed by an exception that nothing handles, at every place where it writes.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import assert_same, assert_same_run, read, rows, small_run

from pitune import envs, experiments, policies, rl
from pitune.experiments.inspect_run import main as inspect_main
from pitune.experiments.runs import run as run_module
from pitune.experiments.runs.learning_curve import learning_curve
from pitune.experiments.runs.report import closing_table
from pitune.experiments.runs.run import Run
from pitune.experiments.train import TrainConfig, Trainer, main, parse, train

NAMES = [*sorted(rl.presets()), "ppo with learned noise in one step"]
NUM_ENVS, NUM_CHUNKS = 4, 4


class Killed(BaseException):
    """Like a signal: not an error that anyone handles."""


@pytest.fixture(scope="module", autouse=True)
def _no_curve() -> Iterator[None]:
    """Drawing takes as long as learning here; one test draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments.train, "learning_curve", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def config_of(small_preset: Callable, half_trained: Path) -> Callable[..., TrainConfig]:
    """Return the config of a short run of an algorithm on `mock/Reach`."""

    def make(name: str, out: Path, **changes: Any) -> TrainConfig:
        algorithm = small_preset(name.partition(" ")[0])
        if "learned noise" in name:
            likelihood = policies.likelihood_config("flow_noise", stochastic_steps="one")
            algorithm = replace(algorithm, likelihood=likelihood)
        changes = {"num_iterations": 4, "num_chunks": NUM_CHUNKS, **changes}
        return small_run(algorithm, half_trained, out, **changes)

    return make


@pytest.fixture(scope="module")
def whole(config_of: Callable, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a run of four iterations that nothing interrupted."""
    folders: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("whole") / "run"
            train(config_of(name, folders[name]))
        return folders[name]

    return run


def kill(patch: pytest.MonkeyPatch, owner: Any, function: str, call: int) -> None:
    """Make a function kill the run instead of its n-th call, counted from 1."""
    original, calls = getattr(owner, function), iter(range(1, 1000))

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    patch.setattr(owner, function, counted)


def train_until_killed(config: TrainConfig, owner: Any, function: str, call: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, owner, function, call)
        with pytest.raises(Killed):
            train(config)


def iterations(folder: Path) -> list[int]:
    return [int(row["iteration"]) for row in rows(folder)]


# Resuming


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_changes_the_policy_in_the_runs_below(
    name: str, whole: Callable, config_of: Callable, tmp_path: Path
) -> None:
    """Without this, resuming could be exact because nothing was ever learned."""
    first = torch.load(whole(name) / "checkpoint_000004" / "training.pt", weights_only=True)
    # as the run began: a steered policy has more weights than the checkpoint that it was made from
    before = Trainer(config_of(name, tmp_path)).algorithm.actor.policy.state_dict()
    after = policies.load(whole(name) / "checkpoint_000004").state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert any(optimizer["state"] for optimizer in first["training"]["optimizers"].values())


@pytest.mark.parametrize("name", NAMES)
def test_two_iterations_and_two_resumed_are_four(
    name: str, whole: Callable, config_of: Callable, tmp_path: Path
) -> None:
    train(config_of(name, tmp_path, num_iterations=2))
    train(config_of(name, tmp_path, resume=True))
    assert_same_run(tmp_path, whole(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_killed_between_checkpoints_repeats_the_iterations_after_the_last(
    name: str, whole: Callable, config_of: Callable, tmp_path: Path
) -> None:
    train_until_killed(config_of(name, tmp_path), Trainer, "_iterate", 4)
    assert iterations(tmp_path) == [1, 2, 3]
    trainer = Trainer(config_of(name, tmp_path, resume=True))
    assert trainer.iteration == 2
    assert iterations(tmp_path) == [1, 2]
    trainer.train()
    assert_same_run(tmp_path, whole(name))


@pytest.mark.parametrize(
    ("owner", "function", "call"),
    [
        (run_module, "write_policy", 2),  # in the middle of a checkpoint
        (Run, "_prune", 2),  # after it, before the older ones are removed
        (Run, "log", 2),  # before the row of an evaluation
        (Trainer, "_checkpoint", 2),  # between row and checkpoint
        (Run, "log", 4),
        (Run, "finish", 1),
    ],
)
def test_a_run_killed_wherever_it_writes_resumes_bit_for_bit(
    owner: Any, function: str, call: int, whole: Callable, config_of: Callable, tmp_path: Path
) -> None:
    train_until_killed(config_of("ppo", tmp_path), owner, function, call)
    train(config_of("ppo", tmp_path, resume=True))
    assert_same_run(tmp_path, whole("ppo"))


def test_half_a_checkpoint_is_neither_resumed_from_nor_in_the_way(
    whole: Callable, config_of: Callable, tmp_path: Path
) -> None:
    train(config_of("ppo", tmp_path, num_iterations=2))
    # In a container that is started again the process often has the same number.
    half = tmp_path / f"tmp_checkpoint_000004_{os.getpid()}"
    half.mkdir()
    (half / "policy.json").write_text("{")
    train(config_of("ppo", tmp_path, resume=True))
    assert_same_run(tmp_path, whole("ppo"))


def test_another_seed_is_another_run(whole: Callable, config_of: Callable, tmp_path: Path) -> None:
    """Negative control of the comparison above."""
    train(config_of("ppo", tmp_path, seed=1))
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path, whole("ppo"))


def test_a_run_that_forgets_its_random_numbers_is_found_out(
    whole: Callable, config_of: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: what is not in the checkpoint shows."""
    train(config_of("ppo", tmp_path, num_iterations=2))
    monkeypatch.setattr(torch, "set_rng_state", lambda _: None)
    train(config_of("ppo", tmp_path, resume=True))
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path, whole("ppo"))


def test_a_finished_run_resumes_to_its_own_summary(
    whole: Callable, config_of: Callable, tmp_path: Path
) -> None:
    train(config_of("bc", tmp_path))
    train(config_of("bc", tmp_path, resume=True))
    assert_same_run(tmp_path, whole("bc"))


def test_resuming_with_another_config_names_the_difference(
    config_of: Callable, tmp_path: Path
) -> None:
    config = config_of("ppo", tmp_path, num_iterations=1)
    train(config)
    algorithm = replace(config.algorithm, advantage=rl.AdvantageConfig(discount=0.5))
    with pytest.raises(
        ValueError, match=r"different: algorithm\.advantage\.discount: 0\.99 -> 0\.5\. Resume"
    ):
        train(replace(config, algorithm=algorithm, resume=True))
    with pytest.raises(ValueError, match=r"algorithm_name: 'ppo' -> 'bc'"):
        train(config_of("bc", tmp_path, resume=True))
    env = replace(config.env, max_episode_steps=8)
    with pytest.raises(ValueError, match=r"env\.max_episode_steps: 7 -> 8; seed: 0 -> 3"):
        train(replace(config, env=env, seed=3, resume=True))


def test_resuming_needs_a_run_and_starting_needs_a_free_folder(
    config_of: Callable, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run in .* to resume; start it without"):
        train(config_of("bc", tmp_path, resume=True))
    train_until_killed(config_of("bc", tmp_path), Trainer, "_checkpoint", 2)
    with pytest.raises(FileExistsError, match="already holds a run; pass another --out, or --res"):
        train(config_of("bc", tmp_path))


# What a run leaves


def test_a_run_leaves_config_metrics_checkpoints_summary_and_curve(
    config_of: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments.train, "learning_curve", learning_curve)
    returned = train(config_of("ppo", tmp_path, num_iterations=3))
    summary = read(tmp_path / "summary.json")
    assert summary == json.loads(json.dumps(returned))
    assert (summary["algorithm"], summary["env"], summary["seed"]) == ("ppo", "mock/Reach", 0)
    assert summary["iterations"] == 3
    for when in ("before", "after"):
        for how in ("deployed", "exploring"):
            assert summary[when][how]["episodes"] == NUM_ENVS
            assert 0 <= summary[when][how]["success_rate"] <= 1
    # Evaluated at iteration 2 by the interval and at iteration 3 because it is the last.
    table = rows(tmp_path)
    assert [row["iteration"] for row in table] == ["1", "2", "3"]
    assert [row["success_rate"] != "" for row in table] == [False, True, True]
    steps = [float(row["env_steps"]) for row in table]
    assert steps == sorted(steps)
    assert summary["env_steps"] == steps[-1]
    assert 0 < steps[-1] <= 3 * NUM_ENVS * NUM_CHUNKS * 2
    with (tmp_path / "metrics.csv").open() as lines:
        clock = [row for row in csv.DictReader(lines)]
    for phase in ("simulator", "policy", "update"):
        spent = sum(float(row[f"seconds/{phase}"]) for row in clock)
        assert summary["seconds"][phase] == pytest.approx(spent)
    saved = read(tmp_path / "config.json")
    assert saved["config"]["algorithm_name"] == "ppo"
    assert saved["config"]["algorithm"]["critic_warmup"] == 1
    assert saved["config"]["env"]["max_episode_steps"] == 7
    assert saved["provenance"]["packages"]["torch"] == version("torch")
    picture = (tmp_path / "learning_curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5000
    assert not list(tmp_path.glob("tmp_*"))
    assert not list(tmp_path.glob("*.mp4"))
    assert (tmp_path / summary["best_checkpoint"]).is_dir()
    policies.load(tmp_path / "checkpoint_000003")


def test_an_algorithm_without_rollouts_takes_no_environment_steps(whole: Callable) -> None:
    assert read(whole("bc") / "summary.json")["env_steps"] == 0
    assert not [key for key in rows(whole("bc"))[0] if key.startswith("train/")]


def test_time_that_is_up_ends_the_run_with_a_checkpoint(
    config_of: Callable, tmp_path: Path
) -> None:
    summary = train(config_of("bc", tmp_path, max_minutes=1e-9))
    assert summary["iterations"] == 1
    assert (tmp_path / "checkpoint_000001").is_dir()
    assert rows(tmp_path)[0]["success_rate"] != ""


def test_evaluations_do_not_change_the_policy_learned_from_the_same_rollouts(
    config_of: Callable, tmp_path: Path
) -> None:
    """More episodes per evaluation give the same run."""
    train(config_of("ppo", tmp_path / "few"))
    train(config_of("ppo", tmp_path / "many", eval_episodes=3 * NUM_ENVS))
    few, many = (
        policies.load(tmp_path / name / "checkpoint_000004").state_dict()
        for name in ("few", "many")
    )
    assert_same(dict(few), dict(many))


# Rejected settings


def test_a_note_names_episodes_that_evaluations_cut_short(
    config_of: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Chunks of two, a time limit of seven: three decisions between evaluations are too few."""
    shown = {}
    for num_chunks in (3, 4):
        config = config_of("filtered_bc", tmp_path / str(num_chunks), num_iterations=1)
        train(replace(config, num_chunks=num_chunks, eval_every=1))
        shown[num_chunks] = " ".join(capsys.readouterr().err.split())
    note = "episodes begin anew at each evaluation, after 6 steps, but may last 7:"
    assert note in shown[3]
    assert "episodes begin anew" not in shown[4]


def test_an_unhealthy_metric_is_warned_of_once_in_a_run_and_its_resumption(
    config_of: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    update = rl.FilteredBC.update

    def broken(algorithm: rl.FilteredBC, rollout: Any) -> dict[str, float]:
        return {**update(algorithm, rollout), "ratio_deviation": 0.5}

    monkeypatch.setattr(rl.FilteredBC, "update", broken)
    train(config_of("filtered_bc", tmp_path, num_iterations=2))
    words = "warning: ratio_deviation is 0.5, above 0.001"
    assert capsys.readouterr().err.count(words) == 1
    train(config_of("filtered_bc", tmp_path, resume=True))
    assert words not in capsys.readouterr().err


def test_counts_below_one_are_rejected(config_of: Callable, tmp_path: Path) -> None:
    for name in ("num_iterations", "num_chunks", "eval_every", "eval_episodes", "torch_threads"):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            config_of("bc", tmp_path, **{name: 0})


def test_misfits_are_rejected_before_anything_is_written(
    config_of: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="checkpoint's state has 4 dimensions, mock/Script has 3"):
        train(config_of("ppo", out, env=envs.EnvConfig(id="mock/Script", num_envs=4)))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nowhere"):
        train(config_of("ppo", out, checkpoint=tmp_path / "nowhere"))
    assert not out.exists()


def test_the_command_line_names_the_algorithm_first() -> None:
    with pytest.raises(ValueError, match=r"first argument names the algorithm; registered: .*ppo"):
        parse([])
    with pytest.raises(ValueError, match="first argument names the algorithm"):
        parse(["--seed", "1"])
    with pytest.raises(ValueError, match=r"unknown algorithm 'pppo'; did you mean 'ppo'\?"):
        parse(["pppo"])


@pytest.mark.parametrize("name", sorted(rl.presets()))
def test_every_algorithm_has_a_command_line(name: str) -> None:
    config = parse([name, "--seed", "3", "--env.id", "mock/Reach", "--no-video"])
    assert type(config.algorithm) is type(rl.preset(name))
    assert (config.seed, config.env.id, config.video) == (3, "mock/Reach", False)


def test_settings_of_the_algorithm_are_options() -> None:
    options = [
        "--algorithm.advantage.discount",
        "0.5",
        "--algorithm.likelihood.noise_level",
        "0.3",
    ]
    config = parse(["ppo", *options])
    assert isinstance(config.algorithm, rl.PPOConfig)
    assert config.algorithm.advantage.discount == 0.5
    assert config.algorithm.likelihood == policies.FlowSDEConfig(noise_level=0.3)
    assert config.algorithm.update == rl.PPOConfig().update


def test_mistakes_end_the_script_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "pppo"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: unknown algorithm 'pppo'; did you mean")


# The end of a run


@pytest.mark.parametrize("stop_at", [1e-9, 0.01])
def test_a_run_that_stops_early_reports_the_weights_that_it_saved(
    stop_at: float, config_of: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It stops at an evaluation, whose checkpoint holds the reported policy."""
    config = config_of("ppo", tmp_path, stop_at=stop_at)
    summary = train(config)
    assert summary["iterations"] == 2
    assert summary["ended_by"].startswith(
        f"the interval of the validation episodes is above stop_at={stop_at:g} since iteration 2"
    )
    checkpoint = Path(summary["checkpoint"])
    assert checkpoint.name == "checkpoint_000002"
    found = rl.evaluate(
        envs.make(config.env), policies.Actor(policies.load(checkpoint)), NUM_ENVS, seed=0
    ).summary()
    for name in ("successes", "episodes", "mean_length"):
        assert found[name] == summary["after"]["deployed"][name]
    closing_table(summary)
    shown = " ".join(capsys.readouterr().out.split())
    assert "Ended because the interval of the validation episodes is above stop_at=" in shown
    assert "After: the policy in checkpoint_000002." in shown
    # resumed, it has still ended
    assert train(replace(config, resume=True))["iterations"] == 2


def test_each_limit_is_named_as_the_end(config_of: Callable, tmp_path: Path) -> None:
    summary = train(config_of("bc", tmp_path / "a", max_minutes=1e-9))
    assert summary["ended_by"] == "max_minutes=1e-09 are over"
    summary = train(config_of("bc", tmp_path / "b", num_iterations=1))
    assert summary["ended_by"] == "all num_iterations=1 are done"


def test_a_run_of_nothing_but_warm_up_does_not_call_its_weights_fine_tuned(
    config_of: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = config_of("ppo", tmp_path)
    config = replace(config, algorithm=replace(config.algorithm, critic_warmup=9))
    summary = train(config)
    assert summary["learned_nothing"][0].startswith("The policy is unchanged: its weights are")
    assert "All 4 iterations were the critic's warm-up" in summary["learned_nothing"][1]
    closing_table(summary)
    shown = " ".join(capsys.readouterr().out.split())
    assert "The policy is unchanged" in shown
    assert "policy, unchanged by this run:" in shown
    assert "fine-tuned policy" not in shown
    inspect_main([str(tmp_path)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Outcome: The policy is unchanged" in shown
    assert "fine-tuned policy" not in shown


def test_a_run_that_learned_calls_its_weights_fine_tuned(
    whole: Callable, capsys: pytest.CaptureFixture
) -> None:
    summary = read(whole("ppo") / "summary.json")
    assert summary["learned_nothing"] == []
    closing_table(summary)
    shown = " ".join(capsys.readouterr().out.split())
    assert "fine-tuned policy:" in shown
    assert "before, test starts" in shown
    assert "after, test starts" in shown
    assert "--stop-at use the validation starts" in shown
