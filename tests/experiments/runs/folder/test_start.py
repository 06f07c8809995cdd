"""The start of a run: a failed one leaves nothing in the way of the same command."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from forks import Child
from pitune import envs, policies, rl
from pitune.experiments.runs import run as run_module
from pitune.experiments.runs.folder import initial_policy, start, wandb_run
from pitune.experiments.runs.folder.checkpoints import own_checkpoints
from pitune.experiments.runs.run import Run
from pitune.experiments.train import TrainConfig, Trainer, train


@pytest.fixture
def config(run_of: Callable[..., TrainConfig]) -> TrainConfig:
    return run_of("filtered_bc", eval_every=1)


def full_disk(*_: Any, **__: Any) -> Any:
    raise OSError(28, "No space left on device")


def without_login(*_: Any) -> Any:
    raise ValueError("Weights & Biases cannot start with wandb='online': no login")


FAILURES: dict[str, tuple[Any, str, Callable]] = {
    "loading": (policies, "load", full_disk),
    "keeping the policy": (initial_policy, "write_policy", full_disk),
    "writing config.json": (run_module, "write_config", full_disk),
    "a bad setting": (rl, "make", without_login),
    "making the environment": (envs, "make", full_disk),
    "wandb without a login": (wandb_run, "start", without_login),
    "the first evaluation": (Trainer, "_final_evaluation", full_disk),
    "filming": (Trainer, "_film", full_disk),
    "the first checkpoint": (run_module, "write_policy", full_disk),
}


@pytest.mark.parametrize("made", [False, True], ids=["new folder", "folder of the user"])
@pytest.mark.parametrize("name", FAILURES)
def test_after_a_failed_start_the_same_command_works(
    name: str, made: bool, config: TrainConfig
) -> None:
    config = replace(config, wandb="online" if "wandb" in name else "off")
    if made:
        config.out.mkdir()
        (config.out / "notes.txt").write_text("mine")
    with pytest.MonkeyPatch.context() as patch:
        owner, function, failure = FAILURES[name]
        patch.setattr(owner, function, failure)
        with pytest.raises((OSError, ValueError)):
            train(config)
    left = [path.name for path in config.out.iterdir()] if config.out.exists() else None
    assert left == (["notes.txt"] if made else None)
    assert train(replace(config, wandb="off"))["iterations"] == 2


@pytest.mark.parametrize("function", ["_prepare", "_final_evaluation", "_film"])
def test_after_a_kill_before_the_first_checkpoint_the_same_command_works(
    function: str, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def killed() -> None:
        setattr(Trainer, function, lambda *_: signal.raise_signal(signal.SIGKILL))
        train(config)

    assert Child(killed, tmp_path / "log").wait() == -signal.SIGKILL
    assert (config.out / "config.json").exists()
    (config.out / "notes.txt").write_text("mine")
    assert train(config)["iterations"] == 2
    assert "holds a start without a checkpoint; it starts again" in capsys.readouterr().err
    assert (config.out / "notes.txt").exists()


def test_a_failure_after_the_first_checkpoint_keeps_the_run(config: TrainConfig) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_iterate", full_disk)
        with pytest.raises(OSError, match="No space left"):
            train(config)
    assert train(replace(config, resume=True))["iterations"] == 2


def test_a_failed_resumption_removes_nothing(config: TrainConfig, tmp_path: Path) -> None:
    train(replace(config, num_iterations=1))
    for checkpoint in own_checkpoints(config.out):
        shutil.move(checkpoint, tmp_path / checkpoint.name)
    kept = {path.name for path in config.out.iterdir()}
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="has no checkpoint to resume from"):
            train(replace(config, resume=True))
        assert {path.name for path in config.out.iterdir()} == kept
    for checkpoint in tmp_path.glob("checkpoint_*"):
        shutil.move(checkpoint, config.out)
    assert train(replace(config, resume=True))["iterations"] == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": '{"architectures": []}'}, "config.json is not of a run; pass another"),
        ({"config.json": "{"}, "config.json is not of a run; pass another"),
        ({"metrics.csv": ""}, "holds metrics.csv of a run whose config.json is missing; restore"),
        ({"summary.json": "{}"}, "holds summary.json of a run whose config.json is missing"),
    ],
)
def test_files_of_others_are_not_overwritten(
    files: dict[str, str], message: str, config: TrainConfig
) -> None:
    config.out.mkdir()
    for name, text in files.items():
        (config.out / name).write_text(text)
    with pytest.raises(FileExistsError, match=message):
        train(config)
    assert {path.name: path.read_text() for path in config.out.iterdir()} == files


def test_checkpoints_without_their_config_are_not_overwritten(config: TrainConfig) -> None:
    train(config)
    (config.out / "config.json").unlink()
    with pytest.raises(FileExistsError, match=r"holds checkpoint_.* whose config.json is missing"):
        train(config)
    with pytest.raises(FileNotFoundError, match=r"config\.json of the run is missing; restore it"):
        train(replace(config, resume=True))


def test_a_file_in_place_of_the_folder_is_refused(config: TrainConfig) -> None:
    config.out.write_text("x")
    with pytest.raises(FileExistsError, match="run is a file; pass another --out"):
        train(config)


def test_two_processes_never_train_in_one_folder(config: TrainConfig, tmp_path: Path) -> None:
    def first() -> None:
        run = Run.create(config.out, config.identity(), "off")
        (tmp_path / "held").touch()
        signal.pause()
        run.abandon()

    child = Child(first, tmp_path / "log")
    child.wait_until((tmp_path / "held").exists)
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=f"in use by process {child.pid} on "):
            train(replace(config, resume=resume))
    assert (config.out / "config.json").exists()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert train(config)["iterations"] == 2


# The policy that a run keeps


def test_a_resumed_run_needs_the_original_checkpoint_no_more(
    config: TrainConfig, half_trained: Path, tmp_path: Path
) -> None:
    """Its numbers are those of a run whose checkpoint stayed, also with a reference policy."""
    moved = tmp_path / "clone"
    shutil.copytree(half_trained, moved)
    ppo = rl.PPOConfig(
        kl_coefficient=0.1,
        critic_warmup=0,
        update=rl.UpdateConfig(minibatch_size=8, num_epochs=1),
    )
    config = replace(config, algorithm=ppo, checkpoint=moved)
    whole = train(replace(config, out=tmp_path / "whole"))
    train(replace(config, num_iterations=1))
    shutil.rmtree(moved)
    resumed = train(replace(config, resume=True))
    for name in ("before", "after", "env_steps"):
        assert json.dumps(resumed[name]) == json.dumps(whole[name])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": shutil.rmtree,
    "cut": lambda kept: (kept / "policy.safetensors").write_bytes(b"x"),
    "emptied": lambda kept: (kept / "policy.safetensors").write_bytes(b""),
    "lengthened": lambda kept: lengthen(kept / "policy.safetensors"),
    "flipped": lambda kept: flip(kept / "policy.safetensors"),
    "without weights": lambda kept: (kept / "policy.safetensors").unlink(),
    "description flipped": lambda kept: flip(kept / "policy.json"),
    "checksums cut": lambda kept: (kept / "checksums.json").write_text("{"),
}
KNOWN = sorted(set(DAMAGES) - {"missing", "checksums cut"})
"""Damages that leave the checksum of the weights."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_loaded_again_from_the_original_and_kept(
    damage: str, config: TrainConfig, capsys: pytest.CaptureFixture
) -> None:
    train(replace(config, num_iterations=1))
    kept = config.out / start.BASE
    whole = contents(kept)
    DAMAGES[damage](kept)
    damaged = contents(kept)
    capsys.readouterr()
    train(replace(config, resume=True))
    shown = capsys.readouterr().err
    assert f"the initial policy is loaded from {config.checkpoint}" in shown
    assert contents(kept) == whole
    if damage == "missing":
        assert not (config.out / "damaged_initial_policy").exists()
    else:
        assert contents(config.out / "damaged_initial_policy") == damaged
        assert "it is kept as damaged_initial_policy" in " ".join(shown.split())


@pytest.mark.parametrize("damage", KNOWN)
def test_a_damaged_copy_is_not_replaced_by_another_policy(
    damage: str, config: TrainConfig, half_trained: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(half_trained, clone)
    config = replace(config, checkpoint=clone)
    train(replace(config, num_iterations=1))
    shutil.rmtree(clone)
    policy = policies.load(half_trained)
    with torch.no_grad():
        next(policy.parameters()).add_(1)
    policies.save(policy, clone)
    DAMAGES[damage](config.out / start.BASE)
    folders = (config.out / start.BASE, *own_checkpoints(config.out))
    before = [contents(folder) for folder in folders]
    with pytest.raises(ValueError, match=r"initial_policy is damaged .* holds another policy by"):
        train(replace(config, resume=True))
    assert [contents(folder) for folder in folders] == before
