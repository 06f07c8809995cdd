"""`inspect_run`: a run is shown as it is, finished, unfinished or damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import small_run

from pitune import experiments, rl
from pitune.experiments.inspect_run import main
from pitune.experiments.runs.train_config import TrainConfig
from pitune.experiments.train import Trainer, train


class Killed(BaseException):
    """Like a signal: not an error that anything handles."""


@pytest.fixture(scope="module")
def config(
    small_preset: Callable, half_trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainConfig:
    algorithm = replace(small_preset("ppo"), clip=rl.PPOClipConfig(high=0.3))
    out = tmp_path_factory.mktemp("inspect") / "run"
    return small_run(algorithm, half_trained, out, eval_every=1)


@pytest.fixture(scope="module")
def finished(config: TrainConfig) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments.train, "learning_curve", lambda *_: None)
        train(config)
    return config.out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run, to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def shown(capsys: pytest.CaptureFixture) -> Callable[[Path], str]:
    """Inspect a folder; return its output, which must not be an error."""

    def inspect(folder: Path) -> str:
        main([str(folder)])
        return str(capsys.readouterr().out)

    return inspect


def test_a_finished_run_shows_settings_success_health_checkpoints_and_commands(
    run: Path, shown: Callable
) -> None:
    text = shown(run)
    assert text.startswith("ppo on mock/Reach, seed 0, commit ")
    assert "finished: iteration 2 of 2, " in text
    assert "  algorithm.clip.high: 0.2 -> 0.3\n" in text
    assert "  env.max_episode_steps: None -> 7\n" in text
    assert "algorithm.clip.low" not in text  # a default
    for words in (
        "before training, test starts: ",
        "iteration 2, validation starts: ",
        "after training, test starts: ",
    ):
        assert f"  {words}" in text
    row = next(line for line in text.splitlines() if "ratio_deviation" in line)
    assert "healthy" in row
    assert "checkpoint_000002: success " in text
    assert f"pitune inspect {run}\n" in text
    assert "Problems" not in text


def test_a_metric_outside_its_range_comes_first_with_its_advice(run: Path, shown: Callable) -> None:
    lines = (run / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("ratio_deviation")
    cells = lines[-1].split(",")
    cells[column] = "0.5"
    (run / "metrics.csv").write_text("\n".join([*lines[:-1], ",".join(cells)]) + "\n")
    text = shown(run)
    table = text[text.index("Health") :].splitlines()
    first = next(line for line in table if line.startswith("│"))
    assert "ratio_deviation" in first
    assert "OUTSIDE" in first
    assert "Advice:\n  ratio_deviation is 0.5, above 0.001 (" in text
    assert "Sampler and scorer disagree" in text


def test_a_drop_in_success_is_the_first_advice(run: Path, shown: Callable) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["before"]["deployed"] |= {"success_rate": 1.0, "wilson_low": 0.99, "wilson_high": 1.0}
    (run / "summary.json").write_text(json.dumps(summary))
    assert "Advice:\n  success dropped to " in shown(run)


def test_an_unfinished_run_shows_how_far_it_is(
    config: TrainConfig, tmp_path: Path, shown: Callable
) -> None:
    def killed(_: Trainer) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_finish", killed)
        with pytest.raises(Killed):
            train(replace(config, out=tmp_path / "run"))
    text = shown(tmp_path / "run")
    assert "not finished: iteration 2 of 2, " in text
    assert "last written 0 min ago" in text
    assert "before training, test starts: " in text  # from the checkpoint
    assert "after training" not in text


def test_a_run_that_has_just_begun_is_shown_too(run: Path, shown: Callable) -> None:
    for file in run.iterdir():
        if file.name != "config.json":
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    text = shown(run)
    assert "not finished: iteration 0 of 2, 0 environment steps" in text
    assert "not evaluated yet" in text
    assert "none yet; the first is written after the evaluation before training" in text
    assert "metrics.csv is missing; no iteration has ended yet" in text


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("config.json", "{", "config.json is broken (JSONDecodeError"),
        ("config.json", None, "config.json is missing; the run cannot be resumed"),
        ("summary.json", '{"before": 3}', "summary.json is damaged ("),
        (
            "checkpoint_000002/progress.json",
            "",
            "_000002: progress.json is empty; --resume uses",
        ),
        (
            "checkpoint_000002/training.pt",
            None,
            "_000002: training.pt is missing; --resume",
        ),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(
    name: str, text: str | None, problem: str, run: Path, shown: Callable
) -> None:
    (run / name).unlink() if text is None else (run / name).write_text(text)
    found = shown(run)
    assert problem in found[found.index("Problems:") : found.index("Health")]
    assert "ratio_deviation" in found
    assert "iteration 2" in found


def test_damaged_lines_of_the_metrics_are_named(run: Path, shown: Callable) -> None:
    with (run / "metrics.csv").open("a") as file:
        file.write("3,what")
    text = shown(run)
    assert "metrics.csv: line 4 was cut short and is left out" in text
    assert "iteration 2 of 2" in text


def test_an_algorithm_that_is_not_registered_is_shown_without_commands(
    run: Path, shown: Callable
) -> None:
    record = json.loads((run / "config.json").read_text())
    record["config"]["algorithm_name"] = "mine"
    (run / "config.json").write_text(json.dumps(record))
    text = shown(run)
    assert "no commands: unknown algorithm 'mine'" in text
    assert "ratio_deviation" in text


def test_an_environment_that_is_not_registered_is_shown_without_commands(
    run: Path, shown: Callable
) -> None:
    record = json.loads((run / "config.json").read_text())
    record["config"]["env"]["id"] = "mine/Reach"
    (run / "config.json").write_text(json.dumps(record))
    text = shown(run)
    assert text.startswith("ppo on mine/Reach, seed 0, commit ")
    assert "  unknown: unknown environment id='mine/Reach'" in text
    assert "no commands: unknown environment id='mine/Reach'" in text
    assert "checkpoint_000002: success " in text


def test_a_summary_of_an_older_version_is_read(run: Path, shown: Callable) -> None:
    summary = json.loads((run / "summary.json").read_text())
    for when in ("before", "after"):
        evaluations = summary[when]
        summary[when] = {"ode": evaluations["deployed"], "stochastic": evaluations["exploring"]}
    (run / "summary.json").write_text(json.dumps(summary))
    text = shown(run)
    assert "Problems" not in text
    assert "before training, test starts: " in text


def test_a_folder_without_a_run_names_the_runs_inside(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for folder, message in (
        (tmp_path, f"error: no run in {tmp_path}. Pass the folder that holds config.json"),
        (finished.parent, f"; there are runs in {finished}. Pass the folder"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([str(folder)])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
