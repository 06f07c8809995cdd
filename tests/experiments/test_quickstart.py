"""`quickstart`: it resumes, keeps jobs apart, and ends with commands that run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro

from pitune import envs, experiments, rl
from pitune.experiments.evaluate import EvaluateConfig, evaluate
from pitune.experiments.inspect_run import main as inspect_main
from pitune.experiments.quickstart import (
    QuickstartConfig,
    QuickstartEnv,
    make_clone,
    quickstart,
    settings_of,
)
from pitune.experiments.recipes import Recipe
from pitune.experiments.runs.report import closing_table
from pitune.experiments.train import TrainConfig, Trainer, parse, train


class Killed(BaseException):
    """Like a signal: not an error that anything handles."""


def small_recipe(env_id: str) -> Recipe:
    env = envs.EnvConfig(id=env_id, num_envs=20, num_workers=0, max_episode_steps=8)
    return Recipe(
        env=env,
        gradient_steps=6,
        num_chunks=5,
        num_iterations=2,
        eval_every=1,
        eval_episodes=20,
        stop_at=1.0,
        ppo=rl.PPOConfig(update=rl.UpdateConfig(minibatch_size=50, num_epochs=1), critic_warmup=0),
    )


@pytest.fixture
def config_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., QuickstartConfig]:
    monkeypatch.setattr(experiments.quickstart, "recipe", small_recipe)
    monkeypatch.setattr(experiments.train, "learning_curve", lambda *_: None)
    monkeypatch.setattr(experiments.train, "record_video", lambda *_: False)
    monkeypatch.setattr(experiments.train, "before_after", lambda *_: None)

    def make(**changes: Any) -> QuickstartConfig:
        config = QuickstartConfig(
            env=QuickstartEnv(id="mock/Reach"), out=tmp_path / "quickstart", wandb="off"
        )
        return replace(config, **changes)

    return make


def kill(patch: pytest.MonkeyPatch, function: str, call: int) -> None:
    """Make a method of the trainer kill the run instead of its n-th call."""
    original, calls = getattr(Trainer, function), iter(range(1, 1000))

    def counted(*args: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return original(*args)

    patch.setattr(Trainer, function, counted)


# Jobs apart


def test_environments_seeds_and_fast_jobs_have_folders_of_their_own(config_of: Callable) -> None:
    jobs = [
        config_of(),
        config_of(seed=1),
        config_of(fast=True),
        config_of(env=QuickstartEnv(id="mock/TwoGoals")),
    ]
    assert len({job.folder for job in jobs}) == len(jobs)
    assert config_of(algorithm="grpo").folder == jobs[0].folder  # the same clone
    assert jobs[2].folder.relative_to(jobs[2].out) == Path("mock-Reach-fast/seed_0")


def test_a_seed_clones_its_own_policy_and_a_fast_job_too(config_of: Callable) -> None:
    for changes in ({}, {"seed": 1}, {"fast": True}):
        job = config_of(**changes)
        make_clone(job, settings_of(job))
    clones = sorted(config_of().out.glob("*/*/pretrained/policy.safetensors"))
    assert len(clones) == 3
    assert len({file.read_bytes() for file in clones}) == 3


def test_a_clone_with_other_settings_is_not_fine_tuned(
    config_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickstart(config_of())
    other = replace(small_recipe("mock/Reach"), gradient_steps=7)
    monkeypatch.setattr(experiments.quickstart, "recipe", lambda _: other)
    with pytest.raises(ValueError, match=r"another config; different: gradient_steps: 6 -> 7"):
        quickstart(config_of(algorithm="filtered_bc"))


# The same command again


@pytest.mark.parametrize(("function", "call"), [("_iterate", 2), ("_finish", 1)])
def test_an_interrupted_run_goes_on_from_its_latest_checkpoint(
    function: str, call: int, config_of: Callable, capsys: pytest.CaptureFixture
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, function, call)
        with pytest.raises(Killed):
            quickstart(config_of())
    capsys.readouterr()
    summary = quickstart(config_of())
    assert "is continued from its latest checkpoint" in capsys.readouterr().err
    whole = quickstart(config_of(out=config_of().out.with_name("whole")))
    for name in ("before", "after", "env_steps", "iterations"):
        assert json.loads(json.dumps(summary[name])) == json.loads(json.dumps(whole[name]))


def test_a_run_killed_before_its_first_checkpoint_starts_again(config_of: Callable) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, "_final_evaluation", 1)
        with pytest.raises(Killed):
            quickstart(config_of())
    assert quickstart(config_of())["iterations"] == 2


def test_a_finished_run_prints_its_table_again_and_the_way_to_start_anew(
    config_of: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    first = quickstart(config_of())
    closing_table(first)
    table = capsys.readouterr().out
    monkeypatch.setattr(experiments.quickstart, "train", lambda _: 1 / 0)
    monkeypatch.setattr(experiments.quickstart, "pretrain", lambda _: 1 / 0)
    closing_table(quickstart(config_of()))
    shown = capsys.readouterr()
    assert shown.out == table
    assert "holds a finished run, and nothing is run again" in shown.err
    assert "remove this folder, or pass another --seed or --out" in shown.err


# The end


def commands(summary: dict[str, Any]) -> dict[str, list[str]]:
    """Return the words of each command, by its purpose."""
    return {step.purpose: shlex.split(step.text) for step in summary["next"]}


def in_short(config: TrainConfig) -> TrainConfig:
    return replace(config, num_iterations=min(4, config.num_iterations), video=False, wandb="off")


def test_the_commands_at_the_end_run_as_printed(config_of: Callable) -> None:
    found = commands(quickstart(config_of()))
    run: dict[str, Callable[[list[str]], Any]] = {
        "inspect": inspect_main,
        "evaluate": lambda words: evaluate(tyro.cli(EvaluateConfig, args=words)),
        "quickstart": lambda words: quickstart(tyro.cli(QuickstartConfig, args=words)),
        "train": lambda words: train(in_short(parse(words))),
    }
    results = {}
    for purpose, (program, command, *words) in found.items():
        assert program == "pitune"
        results[purpose] = run[command](words)
    assert results["swap the algorithm"]["algorithm"] == "filtered_bc"
    assert results["train longer"]["iterations"] == 4
    assert len(results) == 5


def test_the_end_names_the_files_to_look_at(
    config_of: Callable, capsys: pytest.CaptureFixture
) -> None:
    config = config_of()
    closing_table(quickstart(config))
    shown = capsys.readouterr().out.replace("\n", "")
    run = config.folder / "ppo"
    for name in ("metrics.csv", "summary.json", "checkpoint_000002"):
        assert f"{run / name}" in shown
    assert "before_after.gif" not in shown  # nothing could be rendered
    assert (
        f"pitune quickstart --algorithm filtered_bc --env.id mock/Reach --out {config.out}" in shown
    )
