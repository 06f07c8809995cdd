"""`loggers`: a word chooses the program that shows the metrics, and no other one is touched."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pitune.experiments.runs.folder import wandb_run
from pitune.experiments.runs.run import Run

CONFIG = {"seed": 0, "algorithm_name": "ppo"}


def no_wandb(*_: Any) -> None:
    raise AssertionError("Weights & Biases was started")


def test_trackio_gets_the_metrics_and_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []

    class FakeRun:
        def log(self, metrics: dict, step: int) -> None:
            calls.append(("log", (metrics, step)))

        def finish(self) -> None:
            calls.append(("finish", None))

    def init(**arguments: Any) -> FakeRun:
        calls.append(("init", arguments))
        return FakeRun()

    fake = ModuleType("trackio")
    fake.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setattr(wandb_run, "start", no_wandb)
    folder = tmp_path / "ppo"
    run = Run.create(folder, CONFIG, "offline", logger="trackio")
    run.log(1, {"loss": 0.5})
    run.finish({})
    Run.resume(folder, CONFIG, "offline", logger="trackio").log(2, {"loss": 0.25})
    assert [name for name, _ in calls] == ["init", "log", "finish", "init", "log"]
    first, second = (arguments for name, arguments in calls if name == "init")
    assert first == second
    assert first["project"] == "pitune"
    assert first["name"].startswith("ppo-")
    assert (first["resume"], first["config"]) == ("allow", CONFIG)
    assert calls[1] == ("log", ({"loss": 0.5}, 1))


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_missing_package_is_named_with_its_extra(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "torch.utils.tensorboard.writer" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)
    run = Run.create(tmp_path / "run", CONFIG, "off", logger=name)
    message = rf"--logger {name} needs the package {name}; run `pip install .*{name}.*`, or pass"
    with pytest.raises(ImportError, match=message):
        run.connect()
    run.abandon()
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="the extra tensorboard is missing")
def test_tensorboard_writes_event_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(wandb_run, "start", no_wandb)
    run = Run.create(tmp_path / "run", CONFIG, "offline", logger="tensorboard")
    for iteration in (1, 2, 3):
        run.log(iteration, {"loss": 1 / iteration})
    run.abandon()
    folder = tmp_path / "again" / "tensorboard"
    run = Run.create(tmp_path / "again", CONFIG, "offline", logger="tensorboard")
    run.log(1, {"loss": 0.5})
    run.finish({})
    events = EventAccumulator(str(folder)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5)]
