"""`health`: the table of metrics, warnings from it, and the documentation that it generates."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pitune import envs, experiments, rl
from pitune.experiments.health.markdown import main, markdown, with_tables
from pitune.experiments.health.metric import Metric, entry, judge
from pitune.experiments.health.monitor import HealthMonitor
from pitune.experiments.health.symptoms import SYMPTOMS
from pitune.experiments.health.table import METRICS, metrics_of
from pitune.experiments.runs.train_config import TrainConfig
from pitune.experiments.train import train

DOCS = Path(__file__).resolve().parents[3] / "docs"
CONFIG = TrainConfig(algorithm=rl.PPOConfig(critic_warmup=3)).identity()
BEFORE = {"success_rate": 0.6, "wilson_low": 0.5, "wilson_high": 0.7}


def rows(column: str, *values: float) -> list[dict[str, Any]]:
    return [{"iteration": i, column: value} for i, value in enumerate(values, 1)]


def warnings_of(column: str, *values: float, algorithm: str = "ppo") -> list[list[str]]:
    """Return the warnings after each row."""
    monitor = HealthMonitor(algorithm, CONFIG, BEFORE)
    table = rows(column, *values)
    return [monitor.warnings(table[:num]) for num in range(1, len(table) + 1)]


@pytest.fixture(scope="module")
def columns(
    small_preset: Callable, half_trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], set[str]]:
    """Return the columns that a run of two iterations writes, by algorithm."""

    def run(name: str) -> set[str]:
        out = tmp_path_factory.mktemp("columns") / name
        config = TrainConfig(
            algorithm=small_preset(name),
            env=envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7),
            checkpoint=half_trained,
            out=out,
            num_iterations=2,
            num_chunks=4,
            eval_every=2,
            eval_episodes=4,
            wandb="off",
            video=False,
            device="cpu",
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(experiments.train, "learning_curve", lambda *_: None)
            train(config)
        with (out / "metrics.csv").open(newline="") as lines:
            return set(next(csv.reader(lines))) - {"iteration"}

    return run


# The table


@pytest.mark.parametrize("name", sorted(rl.presets()))
def test_the_table_has_every_metric_that_an_algorithm_logs_and_no_other(
    name: str, columns: Callable
) -> None:
    logged = columns(name)
    own = metrics_of(name)
    for column in logged:
        metric = entry(column, name, own)
        assert metric is not None, column
        assert metric in own
    always = [metric.name for metric in own if not metric.optional and "*" not in metric.name]
    missing = set(always) - logged
    if name == "bc":  # it collects no rollouts
        missing = {column for column in missing if not column.startswith("train/")}
    assert not missing


def test_entries_are_unique_and_complete() -> None:
    seen: set[tuple[str, str]] = set()
    for metric in METRICS:
        for algorithm in metric.algorithms or tuple(rl.presets()):
            assert (metric.name, algorithm) not in seen
            seen.add((metric.name, algorithm))
        assert set(metric.algorithms) <= rl.presets().keys(), metric.name
        assert metric.advice.endswith("."), metric.name
        assert not metric.healthy.endswith("."), metric.name
        assert metric.low < metric.high, metric.name
        assert "|" not in metric.meaning + metric.healthy + metric.advice, metric.name


def test_settings_that_limit_a_metric_exist() -> None:
    """In the config of every algorithm that logs it, also in a nested block."""
    for metric in METRICS:
        for setting in filter(None, (metric.high_setting, metric.start_setting)):
            for algorithm in metric.algorithms:
                config = TrainConfig(algorithm=rl.preset(algorithm)).identity()
                assert re.search(rf"'{setting}': ", str(config)), (metric.name, algorithm)


def test_an_algorithm_s_own_entry_counts() -> None:
    for algorithm in ("ppo", "dsrl"):
        metric = entry("entropy", algorithm, METRICS)
        assert metric is not None
        assert algorithm in metric.algorithms
    from_outside = entry("q_loss", "mine", METRICS)
    assert from_outside is not None
    assert entry("seconds/update", "ppo", METRICS) == entry("seconds/*", "ppo", METRICS)
    assert entry("unheard_of", "ppo", METRICS) is None


# Judgements


def test_limits_come_from_the_settings_of_the_run() -> None:
    kl = entry("approx_kl", "epo", METRICS)
    assert kl is not None
    assert kl.limits(CONFIG) == (-math.inf, 0.2)
    nested = TrainConfig(
        algorithm=rl.EPOConfig(ppo=rl.PPOConfig(update=rl.UpdateConfig(target_kl=0.05)))
    ).identity()
    assert kl.limits(nested) == (-math.inf, 0.05)


def test_values_of_a_shaped_reward_have_no_limit() -> None:
    q = entry("q", "wsrl", METRICS)
    assert q is not None
    sparse = TrainConfig(algorithm=rl.WSRLConfig())
    dense = replace(sparse, env=envs.EnvConfig(reward="dense"))
    learner = sparse.algorithm.learner  # type: ignore[attr-defined]
    costly = replace(learner, off_policy=replace(learner.off_policy, reward_offset=-1.0))
    assert not q.contains(3.0, sparse.identity())
    assert q.contains(3.0, dense.identity())
    assert q.contains(3.0, TrainConfig(algorithm=rl.WSRLConfig(learner=costly)).identity())


def test_a_window_judges_the_mean_of_the_latest_rows() -> None:
    metric = Metric(name="x", meaning="", healthy="", advice="", high=0.5, window=3)
    assert judge("x", rows("x", 0.9, 0.9), metric, {}).healthy is None
    verdict = judge("x", rows("x", 9.0, 0.9, 0.3, 0.0), metric, {})
    assert verdict.value == pytest.approx(0.4)
    assert verdict.healthy is True
    assert judge("x", rows("x", math.nan, 0.9, 0.9, math.nan, 0.9), metric, {}).healthy is False


# Warnings


@pytest.mark.parametrize(
    ("algorithm", "column", "values", "words"),
    [
        ("ppo", "ratio_deviation", (2e-3,), "Sampler and scorer disagree"),
        ("ppo", "approx_kl", (0.3,), "Lower the policy's learning rate"),
        ("ppo", "clip_fraction", (0.6, 0.6, 0.6), "above 0.5"),
        ("ppo", "explained_variance", (-1, -1, -1, -0.2, -0.1, -0.1), "below 0"),
        ("dsrl", "saturation", (0.6, 0.6, 0.6), "Raise `steering.magnitude`"),
        ("ppo", "train/invalid", (1.0,), "above 0"),
        ("wsrl", "q", (1.5, 1.5, 1.5), "The critics drift"),
        ("grpo", "kept_groups", (0.0,) * 5, "nothing is learned"),
        ("filtered_bc", "cloned_chunks", (0.0,) * 3, "No episode succeeded"),
    ],
)
def test_an_unhealthy_metric_is_warned_of_once(
    algorithm: str, column: str, values: tuple[float, ...], words: str
) -> None:
    found = warnings_of(column, *values, values[-1], algorithm=algorithm)
    assert [len(of_row) for of_row in found] == [0] * (len(values) - 1) + [1, 0]
    assert found[-2][0].startswith(f"{column} is ")
    assert words in found[-2][0]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("ratio_deviation", (9e-4, 1e-6)),
        ("approx_kl", (0.19, 0.0)),
        ("clip_fraction", (0.9, 0.2, 0.2, 0.2)),
        ("explained_variance", (-1, -1, -1, 0.5, -0.1, 0.1)),  # in the warm-up
        ("explained_variance", (0, 0, 0, math.nan, math.nan, math.nan)),
        ("grad_norm", (1e9,)),  # no numeric range
    ],
)
def test_a_healthy_metric_is_not_warned_of(column: str, values: tuple[float, ...]) -> None:
    assert not any(warnings_of(column, *values))


def evaluation(iteration: int, rate: float, low: float, high: float) -> dict[str, Any]:
    keys = ("success_rate", "success_rate_low", "success_rate_high")
    return {"iteration": iteration, **dict(zip(keys, (rate, low, high), strict=True))}


def test_a_drop_beyond_chance_is_warned_of_once() -> None:
    monitor = HealthMonitor("ppo", CONFIG, BEFORE)
    table = [evaluation(1, 0.45, 0.4, 0.55)]  # the intervals overlap
    assert not monitor.warnings(table)
    table.append(evaluation(2, 0.4, 0.3, 0.49))
    (warning,) = monitor.warnings(table)
    assert warning.startswith("success dropped to 40.0% [30.0%, 49.0%], from 60.0% before")
    assert "docs/troubleshooting.md" in warning
    assert not monitor.warnings([*table, evaluation(3, 0.3, 0.2, 0.4)])


def test_a_resumed_run_does_not_repeat_its_warnings() -> None:
    table = rows("ratio_deviation", 0.5, 0.5)
    monitor = HealthMonitor("ppo", CONFIG, BEFORE, table)
    assert not monitor.warnings([*table, {"iteration": 3, "ratio_deviation": 0.5}])
    assert HealthMonitor("ppo", CONFIG, BEFORE).warnings(table)


# The documentation


def test_the_documentation_has_the_tables_as_they_are() -> None:
    """Write them anew with `python -m pitune.experiments.health.markdown docs`."""
    for file in DOCS.rglob("*.md"):
        assert with_tables(file.read_text()) == file.read_text(), file


def test_troubleshooting_begins_with_a_drop_and_has_every_symptom() -> None:
    text = (DOCS / "troubleshooting.md").read_text()
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert headings[0] == "Success dropped"
    for key, symptom in SYMPTOMS.items():
        assert symptom.title in headings
        assert f"<!-- health: {key} -->" in text
        assert len({metric.name for metric in symptom.entries()}) == len(symptom.metrics), key


def test_a_table_names_every_metric_of_its_algorithm() -> None:
    table = markdown("dgn")
    for metric in metrics_of("dgn"):
        rows = (table if metric.algorithms else markdown("every_run")).count(f"| `{metric.name}` |")
        assert rows == 1
    assert "kept_groups" not in table
    assert "`train/episodes`" not in table
    assert "| `entropy` | ppo, epo |" in markdown("all")


def test_blocks_are_written_anew_and_the_rest_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "page.md"
    file.write_text("before\n<!-- health: bc -->\nold\n<!-- end of health -->\nafter\n")
    main([str(tmp_path)])
    expected = f"before\n<!-- health: bc -->\n{markdown('bc')}\n<!-- end of health -->\nafter\n"
    assert file.read_text() == expected
    assert capsys.readouterr().out == f"wrote {file}\n"
    main([str(tmp_path)])
    assert not capsys.readouterr().out


def test_a_block_of_an_unknown_name_is_rejected() -> None:
    text = "<!-- health: pppo -->\n<!-- end of health -->"
    with pytest.raises(
        ValueError, match="no health table for name='pppo'; valid: all, every_run, "
    ):
        with_tables(text)
