"""`resume`: a run finds its own options, and only settings that change a number count."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pitune import policies, rl
from pitune.experiments.runs.folder.same_config import check_same
from pitune.experiments.runs.resume import with_saved_options
from pitune.experiments.runs.run import Run
from pitune.experiments.train import TrainConfig, parse, train


@pytest.fixture
def config(run_of: Callable[..., TrainConfig]) -> TrainConfig:
    return run_of("ppo", seed=5)


def begin(config: TrainConfig) -> Path:
    """Write the config of a run and return its folder."""
    limits = {**config.limits(), **config.reports()}
    Run.create(config.out, config.identity(), "off", limits)
    return config.out


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads((folder / "config.json").read_text())
    change(record)
    (folder / "config.json").write_text(json.dumps(record))


# The command line


@pytest.mark.parametrize(
    "words",
    [
        ["--resume", "RUN"],
        ["--resume=RUN"],
        ["ppo", "--resume", "RUN"],
        ["ppo", "--resume", "--out", "RUN"],
        ["--out=RUN", "--resume"],
        ["ppo", "--out", "RUN", "--seed", "5", "--resume"],
        ["--resume", "RUN", "--out", "RUN/../run"],
        ["--seed", "5", "--resume", "RUN"],
    ],
)
def test_the_folder_suffices(words: list[str], config: TrainConfig) -> None:
    folder = begin(config)
    found = parse([word.replace("RUN", str(folder)) for word in words])
    assert found == replace(config, resume=True)


def test_options_beside_it_replace_those_of_the_run(config: TrainConfig) -> None:
    folder = str(begin(config))
    words = ["--num-iterations", "9", "--wandb", "offline", "--torch-threads", "2", "--video"]
    found = parse(["--resume", folder, *words])
    asked = replace(config, num_iterations=9, wandb="offline", torch_threads=2, video=True)
    assert found == replace(asked, resume=True)


def test_low_rank_updates_are_found_too(config: TrainConfig) -> None:
    finetune = policies.FinetuneConfig(lora=policies.LoRAConfig(rank=3, targets=("a.*", "b")))
    config = replace(config, finetune=finetune)
    folder = str(begin(config))
    expected = replace(config, num_iterations=9, resume=True)
    assert parse(["--resume", folder, "--num-iterations", "9"]) == expected
    block = ["finetune.lora:lo-ra-config", "--finetune.lora.rank", "4"]
    assert parse(["--num-iterations", "9", "--out", folder, "--resume", *block]) == replace(
        expected, finetune=policies.FinetuneConfig(lora=policies.LoRAConfig(rank=4))
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bc", "--resume", "RUN"], r"different: algorithm_name: 'ppo' -> 'bc'\. Resume with"),
        (["--resume", "RUN/nowhere"], r"no run in .*nowhere to resume; start it without"),
        (["--resume", "RUN", "--out", "other"], "--resume .* and --out other are different fold"),
        (["--resume", "RUN", "--nonsense", "1"], "nonsense"),
    ],
)
def test_what_cannot_be_resumed_is_named(
    words: list[str], message: str, config: TrainConfig
) -> None:
    folder = str(begin(config))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        parse([word.replace("RUN", folder) for word in words])


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(config=[]),
        lambda record: record["config"].pop("env"),
        lambda record: record["config"].pop("algorithm_name"),
        lambda record: record["config"].update(env=3),
    ],
)
def test_a_damaged_config_is_named(change: Callable, config: TrainConfig) -> None:
    folder = begin(config)
    edit(folder, change)
    with pytest.raises(ValueError, match=r"config\.json is broken .*; the run cannot be resumed"):
        parse(["--resume", str(folder)])


def test_arguments_without_resume_are_as_they_were() -> None:
    for words in (["ppo", "--seed", "1"], [], ["--help"], ["ppo", "--no-resume"]):
        assert with_saved_options(words) == words


def test_a_finished_run_goes_on_by_its_folder_alone(config: TrainConfig) -> None:
    whole = train(replace(config, num_iterations=4, out=config.out.with_name("whole")))
    train(config)
    resumed = train(parse(["--resume", str(config.out), "--num-iterations", "4"]))
    assert json.dumps(resumed["after"]) == json.dumps(whole["after"])


def test_a_run_is_resumed_from_another_working_directory(
    config: TrainConfig, half_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(half_trained, tmp_path / "clone")
    monkeypatch.chdir(tmp_path)
    begin(replace(config, checkpoint=Path("clone"), out=Path("run")))
    (tmp_path / "ppo").mkdir()  # no setting but a path is looked up
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = parse(["--resume", "../run"])
    assert found.checkpoint.resolve() == (tmp_path / "clone").resolve()
    assert isinstance(found.algorithm, rl.PPOConfig)
    check_same(Path("../run"), found.identity(), defaults=found.defaults())


def test_a_device_that_is_not_here_is_replaced(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin(config)
    edit(folder, lambda record: record["config"].update(device="cuda:3"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert parse(["--resume", str(folder)]).device == TrainConfig(algorithm=rl.PPOConfig()).device


# The same settings


@pytest.mark.parametrize(
    "change",
    [
        {"device": "cpu"},
        {"torch_threads": 3},
        {"num_workers": 2},
        {"wandb": "offline"},
        {"video": True},
        {"num_iterations": 50},
        {"stop_at": 0.5},
    ],
)
def test_settings_that_change_no_number_may_differ(
    change: dict[str, Any], config: TrainConfig, capsys: pytest.CaptureFixture
) -> None:
    folder = begin(config)
    if "device" in change:  # of the machine where the run began
        edit(folder, lambda record: record["config"].update(device="cuda:5"))
    env = replace(config.env, num_workers=change.pop("num_workers", 0))
    asked = replace(config, env=env, **change)
    check_same(folder, asked.identity(), defaults=asked.defaults())
    changed = [name for name in ("device", "torch_threads") if name in change]
    assert ("which only changes rounding or speed" in capsys.readouterr().err) == bool(
        changed or env.num_workers
    )


@pytest.mark.parametrize("spelling", ["{}/", "{}/.", "{parent}/x/../{name}", "link", "relative"])
def test_a_path_may_be_spelt_differently(
    spelling: str, config: TrainConfig, half_trained: Path, tmp_path: Path
) -> None:
    folder = begin(config)
    (tmp_path / "link").symlink_to(half_trained)
    (half_trained.parent / "x").mkdir(exist_ok=True)
    text = spelling.format(half_trained, parent=half_trained.parent, name=half_trained.name)
    if spelling == "link":
        text = str(tmp_path / "link")
    if spelling == "relative":
        text = os.path.relpath(half_trained)
    asked = replace(config, checkpoint=Path(text))
    check_same(folder, asked.identity(), defaults=asked.defaults())


def test_a_run_may_move_with_its_clone_and_not_to_another(
    config: TrainConfig, half_trained: Path, tmp_path: Path
) -> None:
    job = tmp_path / "job"
    shutil.copytree(half_trained, job / "pretrained")
    begin(replace(config, checkpoint=job / "pretrained", out=job / "ppo"))
    job.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    asked = replace(config, checkpoint=moved / "pretrained", out=moved / "ppo")
    check_same(asked.out, asked.identity(), defaults=asked.defaults())
    other = replace(asked, checkpoint=half_trained)
    with pytest.raises(ValueError, match="different: checkpoint: "):
        check_same(other.out, other.identity(), defaults=other.defaults())


def test_a_run_of_an_older_version_gets_the_defaults_of_new_settings(
    config: TrainConfig, capsys: pytest.CaptureFixture
) -> None:
    folder = begin(config)

    def older(record: dict[str, Any]) -> None:
        del record["config"]["algorithm"]["entropy_coefficient"]
        del record["config"]["torch_threads"]
        for name in ("wandb_id", "started_in"):
            del record[name]

    edit(folder, older)
    found = parse(["--resume", str(folder)])
    assert found == replace(config, resume=True)
    check_same(folder, found.identity(), defaults=found.defaults())
    shown = capsys.readouterr().err
    assert "new settings have their defaults: algorithm.entropy_coefficient, torch_threads" in shown
    assert isinstance(config.algorithm, rl.PPOConfig)
    other = replace(config, algorithm=replace(config.algorithm, entropy_coefficient=0.5))
    with pytest.raises(ValueError, match=r"different: algorithm\.entropy_coefficient: 0\.0 -> 0"):
        check_same(folder, other.identity(), defaults=other.defaults())


@pytest.mark.parametrize("block", ["algorithm", "env", "finetune", None])
def test_settings_that_are_not_known_any_more_are_named(
    block: str | None, config: TrainConfig
) -> None:
    folder = begin(config)

    def newer(record: dict[str, Any]) -> None:
        (record["config"][block] if block else record["config"])["forgotten"] = 1

    edit(folder, newer)
    asked = parse(["--resume", str(folder)])
    name = f"{block}.forgotten" if block else "forgotten"
    with pytest.raises(ValueError, match=f"this version of pitune does not know: {name}. Resume"):
        check_same(folder, asked.identity(), defaults=asked.defaults())
