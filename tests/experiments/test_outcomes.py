"""Runs and evaluations in environments without success, with broken episodes, or that go on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from rich.console import Console

from pitune import envs, policies, rl
from pitune.envs.config import Reward
from pitune.experiments.evaluate import EvaluateConfig, evaluate
from pitune.experiments.inspect_run import inspect
from pitune.experiments.runs.comparison import (
    comparison_table,
    draw_curves,
    finished_run,
    summary_table,
)
from pitune.experiments.runs.evaluations import rank_of
from pitune.experiments.runs.report import closing_table, paired_sentence, percent
from pitune.experiments.runs.run import Run
from pitune.experiments.train import TrainConfig, train
from pitune.rl import Evaluation

LENGTH = 6


class Point(gymnasium.Env):
    """A point in the plane. The episodes have six steps, with success after two alone."""

    observation_space = spaces.Box(-10, 10, (4,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, reports: bool = True, breaks: bool = False, **_: Any) -> None:
        self.reports, self.breaks, self.time, self.broken = reports, breaks, 0, False
        self.point = np.zeros(2)

    def obs(self) -> np.ndarray:
        return np.array([*self.point, 0, self.time], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.point, self.time = self.np_random.uniform(-1, 1, 2), 0
        self.broken = self.breaks and bool(self.np_random.random() < 0.2)
        return self.obs(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.time += 1
        self.point = self.point + 0.1 * action
        if self.broken and self.time == 3:
            self.point[0] = np.nan
        info = {"success": self.time == 2} if self.reports else {}
        return self.obs(), -float(np.abs(self.point).sum()), False, False, info


CASES: dict[str, dict[str, bool]] = {
    "Goes-v0": {},
    "Without-v0": {"reports": False},
    "Breaks-v0": {"breaks": True},
}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    for name, kwargs in CASES.items():
        gymnasium.register(name, entry_point=Point, kwargs=kwargs, max_episode_steps=LENGTH)
    yield
    for name in CASES:
        gymnasium.registry.pop(name)


@pytest.fixture
def run_in(small_preset: Callable, half_trained: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train in an environment and return the folder."""

    def run(name: str, success: envs.SuccessRule = "once", reward: Reward = "sparse") -> Path:
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        train(
            TrainConfig(
                algorithm=small_preset("ppo"),
                env=envs.EnvConfig(
                    id=f"gym/{name}", num_envs=4, num_workers=0, success=success, reward=reward
                ),
                checkpoint=half_trained,
                out=out,
                num_iterations=2,
                num_chunks=4,
                eval_every=1,
                eval_episodes=14,
                wandb="off",
                video=False,
                device="cpu",
            )
        )
        return out

    return run


def printed(table: Callable[[Console], Any]) -> str:
    console = Console(record=True, width=200)
    table(console)
    return console.export_text()


def summary_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


def test_a_run_without_success_prints_returns_and_ranks_by_them(
    run_in: Callable, capsys: pytest.CaptureFixture
) -> None:
    folder = run_in("Without-v0", reward="dense")
    summary = summary_of(folder)
    columns = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert not [column for column in columns if "success" in column]
    assert {"eval/return", "eval/invalid"} <= set(columns)
    assert summary["after"]["deployed"]["success_rate"] is None
    text = printed(lambda console: closing_table(summary, console))
    assert text.count("no success in info: return only, mean") == 4
    assert " 0.0%" not in text
    assert "nan" not in text
    text = printed(lambda console: inspect(folder, console))
    assert "before training, test starts: no success in info: return only" in text
    runs = [finished_run(folder, "ppo"), finished_run(folder, "ppo")]
    for table in (comparison_table(runs), summary_table(runs)):
        assert "nan" not in table
        assert "0.0%" not in table
    cells = [
        [cell.strip() for cell in line.split("|")] for line in comparison_table(runs).split("\n")
    ]
    for column in ("p", "lowest on the way", "steps to 80%"):
        place = cells[0].index(column)
        assert [row[place] for row in cells[2:4]] == ["-", "-"], column
    assert cells[4][cells[0].index("steps to 80%")] == "-"
    draw_curves(runs, folder / "curves.png")
    assert not (folder / "curves.png").exists()
    assert "no curves.png: there is no success rate to draw" in capsys.readouterr().err

    # the best checkpoint is that of the highest return
    progress = json.loads((Path(summary["best_checkpoint"]) / "progress.json").read_text())
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    returns = [float(row[rows[0].index("eval/return")]) for row in rows[1:]]
    start = summary["before"]["deployed"]["mean_return"]
    assert progress["rank"] == pytest.approx(max([start, *returns]))


def test_broken_episodes_stand_beside_every_rate(
    run_in: Callable, capsys: pytest.CaptureFixture
) -> None:
    folder = run_in("Breaks-v0")
    summary = summary_of(folder)
    after = summary["after"]["deployed"]
    assert after["invalid"] > 0
    assert (after["success_rate"], after["episodes"]) == (1.0, 14 - after["invalid"])
    assert percent(after).endswith(
        f"({after['episodes']}/{after['episodes']}; {after['invalid']} broken)"
    )
    assert "episodes broke down" in capsys.readouterr().err
    text = printed(lambda console: closing_table(summary, console))
    assert text.count(" broken)") == 4
    header, *lines = (folder / "metrics.csv").read_text().splitlines()
    row = dict(zip(header.split(","), lines[-1].split(","), strict=True))
    assert float(row["eval/invalid"]) > 0
    assert float(row["success_rate_low_all"]) < float(row["success_rate_low"])


@pytest.mark.parametrize(("rule", "rate"), [("once", 1.0), ("at_end", 0.0)])
def test_the_definition_of_success_is_a_setting_of_run_and_evaluation(
    rule: envs.SuccessRule, rate: float, run_in: Callable, half_trained: Path, tmp_path: Path
) -> None:
    summary = summary_of(run_in("Goes-v0", rule))
    for when in ("before", "after"):
        for how in ("deployed", "exploring"):
            evaluation = summary[when][how]
            assert (evaluation["success_rate"], evaluation["success_rule"]) == (rate, rule)
            assert (evaluation["success_once"], evaluation["success_at_end"]) == (1.0, 0.0)
    env = envs.EnvConfig(id="gym/Goes-v0", num_envs=3, num_workers=0, success=rule)
    out = tmp_path / "result.json"
    config = EvaluateConfig(checkpoint=half_trained, env=env, episodes=7, out=out, device="cpu")
    assert evaluate(config).success_rate == rate
    result = json.loads(out.read_text())["result"]
    assert [row["index"] for row in result["rows"]] == list(range(7))


def test_the_command_prints_both_definitions_where_they_differ(
    half_trained: Path, capsys: pytest.CaptureFixture
) -> None:
    env = envs.EnvConfig(id="gym/Goes-v0", num_envs=3, num_workers=0)
    evaluate(EvaluateConfig(checkpoint=half_trained, env=env, episodes=7, device="cpu"))
    assert "solved once: 100.0%, solved at the end: 0.0%" in capsys.readouterr().out
    env = envs.EnvConfig(id="gym/Without-v0", num_envs=3, num_workers=0, reward="dense")
    evaluate(EvaluateConfig(checkpoint=half_trained, env=env, episodes=7, device="cpu"))
    out = " ".join(capsys.readouterr().out.split())
    assert "flow steps: no success in info: return only, mean" in out


# Ranks and comparisons


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        # all of 30 are 88 % at least, 40 of 50 are 67 % at least
        (Evaluation.of(success=[True] * 30), Evaluation.of(success=[True] * 40 + [False] * 10)),
        (
            Evaluation.of(success=[True] * 40 + [False] * 10),
            Evaluation.of(success=[True] * 4, num_broken=46),
        ),
        (Evaluation.of(success=[False] * 50), Evaluation(rows=(), success_rule=None)),
    ],
)
def test_checkpoints_rank_by_the_bound_over_all_episodes(
    better: Evaluation,
    worse: Evaluation,
    small_preset: Callable,
    half_trained: Path,
    tmp_path: Path,
) -> None:
    assert rank_of(better.summary()) > rank_of(worse.summary())
    algorithm = rl.make(small_preset("ppo"), policies.load(half_trained))
    run = Run.create(tmp_path / "run", {}, "off")
    for iteration, evaluation in ((1, better), (2, worse), (3, worse)):
        progress = {"success_rate": evaluation.success_rate, "rank": rank_of(evaluation.summary())}
        run.save(iteration, algorithm, progress)
    assert run.best_checkpoint().name == "checkpoint_000001"


def test_a_summary_without_numbers_has_the_lowest_rank() -> None:
    assert rank_of({}) == -math.inf
    assert rank_of({"success_rate_low_all": 0.0}) == 0.0
    assert rank_of({"lower_bound_all": None, "mean_return": -3.0}) == -3.0


def test_before_and_after_are_compared_start_by_start() -> None:
    before = Evaluation.of(success=[True] * 2 + [False] * 10, num_broken=1).summary()
    after = Evaluation.of(success=[False] + [True] * 11 + [False]).summary()
    assert paired_sentence(before, after) == (
        "deployed, on the 12 starts of both: solved by the new policy alone 10, by the old one "
        "alone 1, exact p = 0.012, 1 left out as broken"
    )
    del before["rows"]
    assert paired_sentence(before, after) is None
