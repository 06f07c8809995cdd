"""`run`: the folder of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pitune import policies, rl
from pitune.experiments.runs.config_file import plain, provenance
from pitune.experiments.runs.folder.metrics_file import parse
from pitune.experiments.runs.run import Run

CONFIG = {"seed": 0, "env": {"id": "mock/Reach", "cameras": []}, "algorithm_name": "ppo"}


@pytest.fixture
def algorithm(tiny_policy: Callable, small_preset: Callable) -> rl.Algorithm:
    torch.manual_seed(0)
    return rl.make(small_preset("ppo"), tiny_policy())


def new_run(folder: Path) -> Run:
    return Run.create(folder, CONFIG, "off")


def names(run: Run) -> list[int]:
    return [int(folder.name.removeprefix("checkpoint_")) for folder in run.checkpoints()]


# The config


def test_a_folder_holds_one_run(tmp_path: Path, algorithm: rl.Algorithm) -> None:
    new_run(tmp_path / "run").save(0, algorithm, {"success_rate": 0.5})
    with pytest.raises(FileExistsError, match="run already holds a run; pass another --out"):
        new_run(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"] == CONFIG


def test_only_a_run_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run in .* to resume; start it without --resu"):
        Run.resume(tmp_path, CONFIG, "off")


@pytest.mark.parametrize("text", ["", '{"config": {"seed"', "[]", "{}", "null"])
def test_a_damaged_config_is_rejected(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is broken .* cannot be resumed"):
        Run.resume(tmp_path, CONFIG, "off")


def test_every_difference_of_the_config_is_named(tmp_path: Path) -> None:
    new_run(tmp_path)
    asked = {"seed": 1, "env": {"id": "mock/Reach", "cameras": ["top"]}, "new": 0.5}
    with pytest.raises(ValueError, match="started with another config") as raised:
        Run.resume(tmp_path, asked, "off")
    for difference in (
        "algorithm_name: 'ppo' -> None",
        "env.cameras: [] -> ['top']",
        "new: None -> 0.5",
        "seed: 0 -> 1",
    ):
        assert difference in str(raised.value)
    assert "env.id" not in str(raised.value)


def test_an_equal_config_resumes_after_its_way_through_json(tmp_path: Path) -> None:
    config = {"cameras": ("top", "side"), "rate": 0.1}
    Run.create(tmp_path, config, "off")
    Run.resume(tmp_path, config, "off")


def test_configs_become_json_values() -> None:
    @dataclass(frozen=True)
    class Inner:
        path: Path = Path("a/b")
        sizes: tuple[int, ...] = (1, 2)

    @dataclass(frozen=True)
    class Outer:
        inner: Inner
        limit: float = math.inf
        table: dict[int, float] | None = None

    values = plain(Outer(Inner(), table={3: math.nan}))
    expected = {
        "inner": {"path": "a/b", "sizes": [1, 2]},
        "limit": "inf",
        "table": {"3": "nan"},
    }
    assert values == expected
    assert json.loads(json.dumps(values, allow_nan=False)) == expected


def test_provenance_lists_the_versions_of_python_and_packages() -> None:
    found = provenance()
    assert {"torch", "torchrl", "tensordict", "numpy"} <= found["packages"].keys()
    assert found["python"].startswith("3.")
    json.dumps(found)


# The metrics


def test_rows_survive_a_resume_exactly(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.log(1, {"loss": 1 / 3})
    run.log(2, {"loss": 1e-300, "success_rate": 0.1})  # a new column
    run.log(3, {"loss": math.pi})
    resumed = Run.resume(tmp_path, CONFIG, "off")
    assert resumed.rows == run.rows
    assert resumed.rows == [
        {"iteration": 1, "loss": 1 / 3},
        {"iteration": 2, "loss": 1e-300, "success_rate": 0.1},
        {"iteration": 3, "loss": math.pi},
    ]
    resumed.log(4, {"loss": 0.0})
    header, *lines = (tmp_path / "metrics.csv").read_text().split()
    assert header == "iteration,loss,success_rate"
    assert [line.split(",")[0] for line in lines] == ["1", "2", "3", "4"]
    assert lines[3] == "4,0.0,"


def test_a_number_that_is_not_one_survives_too(tmp_path: Path) -> None:
    new_run(tmp_path).log(1, {"explained_variance": math.nan})
    assert math.isnan(Run.resume(tmp_path, CONFIG, "off").rows[0]["explained_variance"])


def test_a_last_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    for iteration in (9, 10):
        run.log(iteration, {"loss": 0.5})
    for cut in ("11,0.2e", "1", "11,x", "\x00"):
        whole = "iteration,loss\n9,0.5\n10,0.5\n"
        (tmp_path / "metrics.csv").write_text(whole + cut)
        resumed = Run.resume(tmp_path, CONFIG, "off")
        assert [row["iteration"] for row in resumed.rows] == [9, 10], cut


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    new_run(tmp_path)
    file = tmp_path / "metrics.csv"
    file.write_text("iteration,loss\n1,0.5\n2,half\n3,0.5\n")
    assert [row["iteration"] for row in parse(file).rows] == [1, 3]
    message = r"metrics\.csv is damaged in line 3: loss='half' is no number\. Correct or remove "
    with pytest.raises(ValueError, match=message):
        Run.resume(tmp_path, CONFIG, "off")


def test_limits_are_recorded_and_follow_the_resumed_run(tmp_path: Path) -> None:
    Run.create(tmp_path, CONFIG, "off", {"num_iterations": 5})
    before = json.loads((tmp_path / "config.json").read_text())
    assert before["limits"] == {"num_iterations": 5}
    Run.resume(tmp_path, CONFIG, "off", {"num_iterations": 9})
    after = json.loads((tmp_path / "config.json").read_text())
    assert after == {**before, "limits": {"num_iterations": 9}}


def test_a_checkpoint_of_an_older_version_names_the_evaluations_as_now(
    tmp_path: Path, algorithm: rl.Algorithm
) -> None:
    run = new_run(tmp_path)
    before = {"ode": {"success_rate": 0.5}, "stochastic": {"success_rate": 0.4}}
    run.save(3, algorithm, {"success_rate": 0.5, "before": before})
    loaded = run.load_latest(algorithm)["before"]
    assert loaded == {"deployed": {"success_rate": 0.5}, "exploring": {"success_rate": 0.4}}


def test_rows_after_the_last_checkpoint_are_dropped(
    tmp_path: Path, algorithm: rl.Algorithm
) -> None:
    run = new_run(tmp_path)
    for iteration in range(1, 4):
        run.log(iteration, {"loss": float(iteration)})
        if iteration == 2:
            run.save(2, algorithm, {"success_rate": 0.5})
    resumed = Run.resume(tmp_path, CONFIG, "off")
    assert len(resumed.rows) == 3
    resumed.load_latest(algorithm)
    assert [row["iteration"] for row in resumed.rows] == [1, 2]
    assert (tmp_path / "metrics.csv").read_text().split()[1:] == ["1,1.0", "2,2.0"]


# The checkpoints


def test_the_last_and_the_best_checkpoint_are_kept(tmp_path: Path, algorithm: rl.Algorithm) -> None:
    run = new_run(tmp_path)
    kept = []
    for iteration, rate in ((0, 0.2), (10, 0.7), (20, 0.5), (30, 0.6), (40, 0.9), (50, 0.1)):
        run.save(iteration, algorithm, {"success_rate": rate})
        kept.append(names(run))
    assert kept == [[0], [10], [10, 20], [10, 30], [40], [40, 50]]
    assert run.best_checkpoint().name == "checkpoint_000040"


def test_a_checkpoint_restores_policy_optimizers_random_numbers_and_progress(
    tmp_path: Path, algorithm: rl.Algorithm, tiny_policy: Callable, small_preset: Callable
) -> None:
    for parameter in algorithm.actor.parameters():
        parameter.grad = torch.ones_like(parameter)
    algorithm.optimizers["actor"].step()
    algorithm.num_updates = 7
    run = new_run(tmp_path)
    run.save(3, algorithm, {"success_rate": 0.5, "env_steps": 12})
    expected = torch.rand(3)
    other = rl.make(small_preset("ppo"), tiny_policy(seed=1))
    progress = run.load_latest(other)
    assert progress == {"iteration": 3, "success_rate": 0.5, "env_steps": 12}
    assert torch.equal(torch.rand(3), expected)
    assert other.num_updates == 7
    for a, b in zip(algorithm.actor.parameters(), other.actor.parameters(), strict=True):
        assert torch.equal(a, b)
    states = [a.optimizers["actor"].state_dict()["state"] for a in (algorithm, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][i]["exp_avg"], states[1][i]["exp_avg"]) for i in states[0])


def test_every_checkpoint_is_a_policy_of_its_own(tmp_path: Path, algorithm: rl.Algorithm) -> None:
    run = new_run(tmp_path)
    run.save(1, algorithm, {"success_rate": 0.5})
    loaded = policies.load(run.checkpoints()[0]).state_dict()
    for key, value in algorithm.actor.policy.state_dict().items():
        assert torch.equal(loaded[key], value)


def test_a_checkpoint_of_another_algorithm_is_refused(
    tmp_path: Path, algorithm: rl.Algorithm, tiny_policy: Callable, small_preset: Callable
) -> None:
    run = new_run(tmp_path)
    run.save(1, algorithm, {"success_rate": 0.5})
    other = rl.make(small_preset("filtered_bc"), tiny_policy())
    with pytest.raises(
        ValueError, match=r"networks \['critic'\], FilteredBC has \[\]; resume with"
    ):
        run.load_latest(other)


def test_a_checkpoint_that_is_cut_short_leaves_nothing(
    tmp_path: Path, algorithm: rl.Algorithm, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path)
    run.save(1, algorithm, {"success_rate": 0.5})

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        run.save(2, algorithm, {"success_rate": 0.6})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint_000001",
        "config.json",
        "run.lock",
    ]


def test_a_run_without_checkpoint_cannot_go_on(tmp_path: Path, algorithm: rl.Algorithm) -> None:
    with pytest.raises(
        FileNotFoundError, match="no checkpoint to resume from; pass another --out,"
    ):
        new_run(tmp_path).load_latest(algorithm)


def test_the_summary_is_written_whole(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.finish({"success": {"rate": 0.5}, "file": Path("a")})
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "success": {"rate": 0.5},
        "file": "a",
    }
    assert not list(tmp_path.glob("tmp_*"))
