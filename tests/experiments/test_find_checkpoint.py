"""`--checkpoint`: a run's folder finds its checkpoint, and a checkpoint knows its environment."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pitune import envs, policies
from pitune.experiments.evaluate import main as evaluate
from pitune.experiments.find_checkpoint import (
    environment_note,
    find_checkpoint,
    with_environment,
)

Rates = dict[int, float]


def make_run(folder: Path, policy: Path, rates: Rates) -> Path:
    """Write a run with a checkpoint for each iteration, of which only the files matter."""
    folder.mkdir(parents=True)
    config = {"config": {"checkpoint": str(policy)}}
    (folder / "config.json").write_text(json.dumps(config))
    for iteration, rate in rates.items():
        checkpoint = folder / f"checkpoint_{iteration:06d}"
        shutil.copytree(policy, checkpoint)
        progress = {"iteration": iteration, "success_rate": rate}
        (checkpoint / "progress.json").write_text(json.dumps(progress))
    return folder


@pytest.mark.parametrize(
    ("rates", "expected", "reason"),
    [
        ({0: 0.1, 20: 0.8, 40: 0.4}, "checkpoint_000020", "its best, with success 80.0% when it"),
        ({0: math.nan, 20: 0.0, 40: math.nan}, "checkpoint_000020", "its best, with success 0.0%"),
        ({0: math.nan, 20: math.nan}, "checkpoint_000020", "its last, because no success was"),
        ({}, "policy", "the one that it starts from, as it has none yet"),
    ],
)
def test_a_run_gives_its_best_checkpoint_or_its_last_or_its_start(
    rates: Rates, expected: str, reason: str, half_trained: Path, tmp_path: Path, screen_text: list
) -> None:
    run = make_run(tmp_path / "run", half_trained, rates)
    assert find_checkpoint(run).name == expected
    assert reason in screen_text[-1]


def test_copies_links_and_damaged_checkpoints_are_not_taken(
    half_trained: Path, tmp_path: Path, screen_text: list
) -> None:
    run = make_run(tmp_path / "run", half_trained, {0: 9.0, 20: 0.9, 40: 0.8, 60: 0.7})
    shutil.copytree(run / "checkpoint_000020", run / "checkpoint_000020_mine")
    (run / "checkpoint_000080").symlink_to(run / "checkpoint_000020_mine")
    (run / "checkpoint_000020" / "policy.safetensors").unlink()
    (run / "checkpoint_000040" / "progress.json").write_text("{")
    assert find_checkpoint(run) == run / "checkpoint_000060"
    assert "checkpoint_000000 is damaged (progress.json: success_rate=9.0)" in screen_text[0]
    assert "checkpoint_000020 is damaged (it lacks policy.safetensors)" in screen_text[1]
    assert "checkpoint_000040 is damaged (progress.json: " in screen_text[2]


def test_the_folder_of_a_clone_gives_the_clone_and_refuses_a_choice(
    half_trained: Path, tmp_path: Path
) -> None:
    seed = tmp_path / "seed_0"
    shutil.copytree(half_trained, seed / "pretrained")
    # beside the clone, as a file of weights would be
    shutil.copy(half_trained / "policy.safetensors", seed / "demonstrations.safetensors")
    assert find_checkpoint(seed) == seed / "pretrained"
    make_run(seed / "ppo", half_trained, {0: 0.1})
    with pytest.raises(ValueError, match=r"seed_0 holds several .*; pass one of .*ppo, .*trained$"):
        find_checkpoint(seed)


def test_a_checkpoint_and_a_folder_without_one_stay_as_they_are(
    half_trained: Path, tmp_path: Path
) -> None:
    for path in (half_trained, tmp_path, tmp_path / "none"):
        assert find_checkpoint(path) == path


def test_a_checkpoint_keeps_its_environment_when_it_is_saved(
    half_trained: Path, tmp_path: Path
) -> None:
    env = envs.config_for("mock/Reach", num_envs=4, num_workers=0)
    policy = with_environment(policies.load(half_trained), env)
    policies.save(policy, tmp_path / "policy")
    read = policies.load(tmp_path / "policy")
    assert read.info.environment["id"] == "mock/Reach"
    assert environment_note(read, env) is None
    assert environment_note(read, replace(env, num_envs=2)) is None
    elsewhere = environment_note(read, envs.config_for("mock/TwoGoals"))
    assert elsewhere == "the checkpoint was trained in mock/Reach, and this is mock/TwoGoals"
    other = environment_note(read, replace(env, reward="dense", max_episode_steps=7))
    assert other is not None
    assert "reward 'sparse' -> 'dense'" in other
    assert "max_episode_steps None -> 7" in other
    goals = replace(env, options=envs.MockOptions(num_tasks=2))
    assert "num_tasks" in str(environment_note(read, goals))
    assert environment_note(policies.load(half_trained), env) is None  # not known


def test_evaluating_a_run_elsewhere_names_the_checkpoint_and_both_environments(
    half_trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    policy = with_environment(policies.load(half_trained), envs.config_for("mock/TwoGoals"))
    policies.save(policy, tmp_path / "policy")
    run = make_run(tmp_path / "run", tmp_path / "policy", {0: 0.1, 20: 0.9})
    env = ["--env.id", "mock/Reach", "--env.num-envs", "2", "--env.num-workers", "0"]
    evaluate(["--checkpoint", str(run), "--episodes", "2", *env])
    out, err = capsys.readouterr()
    printed = " ".join((out + err).split())
    assert "run is a run; --checkpoint is its best, with success 90.0%" in printed
    assert "the checkpoint was trained in mock/TwoGoals, and this is mock/Reach" in printed
    assert "success" in out


@pytest.fixture
def screen_text(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the notes that are printed from now on."""
    from pitune.experiments.runs.progress import screen

    notes: list[str] = []
    monkeypatch.setattr(screen, "note", notes.append)
    return notes
