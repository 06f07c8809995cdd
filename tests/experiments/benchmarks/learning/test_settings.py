"""A folder of a benchmark goes on with the settings with which it was begun."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pitune.experiments.benchmarks import insulation, language
from pitune.experiments.benchmarks.learning import iterated, recap
from pitune.experiments.benchmarks.learning.results import check_settings

MODULES = [insulation, iterated, language, recap]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.rpartition(".")[2])
def test_a_folder_of_other_settings_is_refused_by_name(module: Any, tmp_path: Path) -> None:
    config = module.BenchmarkConfig(seeds=(), out=tmp_path / "out")
    module.run(config)
    module.run(replace(config, table=True))  # chooses no number
    (tmp_path / "out" / "seed_1").mkdir()
    message = (
        rf"{tmp_path}/out has results of other settings: eval_episodes: {config.eval_episodes} -> "
        r"7; gradient_steps: .* -> 5; pass another --out, or the same settings"
    )
    with pytest.raises(ValueError, match=message):
        module.run(replace(config, eval_episodes=7, gradient_steps=5))


def test_results_without_settings_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "seed_0").mkdir()
    (tmp_path / "seed_0" / "clone.json").write_text("{}")
    config = language.BenchmarkConfig(out=tmp_path)
    check_settings(tmp_path, config.fixed)
    text = " ".join(capsys.readouterr().err.split())
    assert "results of an older version of pitune, which kept no settings" in text
    assert "'dsrl_iterations': 36" in text
    check_settings(tmp_path, config.fixed)
    assert capsys.readouterr().err == ""
